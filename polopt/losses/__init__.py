"""What is minimized: the policy-gradient estimator and its named variants, the pathwise gradient, weighted regression.

This file imports no torch: it holds the configs that the command line reads.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from polopt.config import Config, param
from polopt.core.errors import UsageError

_RANGE = 0.2


@dataclass(frozen=True)
class Surrogate(Config):
    """A variant of the policy-gradient estimator; `Surrogate.named` holds the published ones.

    The gradient is -sum of weight * keep * advantage * ratio * grad log_prob. `denominator` says what the ratio is
    taken against, `keep` which decisions still count once the policy has moved away from `old`: "clip" drops a decision
    exactly where PPO's min/clamp form has no gradient, that is where the advantage is positive and the ratio above
    1 + clip_high, or negative and below 1 - clip_low (and, with `dual_clip`, negative and above `dual_clip`).
    """

    denominator: str = param(
        "old",
        "PPO, equation 6",
        choices=("old", "current", "one"),
        help="ratio against the old policy, against the current one (always 1), or against 1 (the probability itself)",
    )
    keep: str = param("clip", "PPO, equation 7", choices=("all", "clip"), help="which decisions keep their gradient")
    clip_low: float = param(_RANGE, "PPO, table 1", low=0, help="ratios below 1 - clip_low are clipped")
    clip_high: float = param(_RANGE, "PPO, table 1", low=0, help="ratios above 1 + clip_high are clipped")
    dual_clip: float | None = param(
        None,
        "arXiv 1912.09729",
        above=1,
        help="largest ratio that keeps a negative advantage; none: no bound",
    )

    named: ClassVar[dict[str, "Surrogate"]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep == "all":
            for name, default in (("clip_low", _RANGE), ("clip_high", _RANGE), ("dual_clip", None)):
                if getattr(self, name) != default:
                    raise UsageError(f"{name} has no effect in a surrogate that keeps all decisions (keep 'all')")

    @property
    def clip_range(self) -> tuple[float, float]:
        """The ratios that lie inside the clip range: (1 - clip_low, 1 + clip_high), everything with keep "all"."""
        return (1.0 - self.clip_low, 1.0 + self.clip_high) if self.keep == "clip" else (0.0, math.inf)


REINFORCE = Surrogate(denominator="current", keep="all")
PPO = Surrogate()
CLIP_HIGHER = Surrogate(clip_low=0.2, clip_high=0.28)  # DAPO, arXiv 2503.14476, section 3.1
DUAL_CLIP = Surrogate(dual_clip=3.0)  # arXiv 1912.09729

Surrogate.named.update({"reinforce": REINFORCE, "ppo": PPO, "clip-higher": CLIP_HIGHER, "dual-clip": DUAL_CLIP})

"""What is minimized: the policy-gradient estimator and its named variants, the pathwise gradient, weighted regression,
preferences between pairs, denoising.

This file imports no torch: it holds the configs that the command line reads.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from polopt.config import Config, param
from polopt.core.errors import UsageError

_USES: dict[str, tuple[str, ...]] = {
    "all": (),
    "clip": ("clip_low", "clip_high", "dual_clip"),
    "two-side": ("clip_low", "clip_high"),
    "ring": ("clip_low", "clip_high", "ring_low", "ring_high"),
    "cap": ("clip_high",),
    "shape": ("shape_gamma",),
}
"""The fields that each value of `keep` reads."""


@dataclass(frozen=True)
class Surrogate(Config):
    """A variant of the policy-gradient estimator; `Surrogate.named` holds the published ones (docs/surrogates.md).

    The gradient is -sum of weight * keep * advantage * ratio * grad log_prob. Two things are the method's own: the
    advantage and the weight (`token_weights`). `denominator` says what the ratio is taken against, and `keep` how much
    of a decision still counts once the policy has moved away from `old`; it looks at rho, the ratio against `old`,
    whatever the denominator is: "current" with "clip" is clipping without importance weights.

    - "all": 1.
    - "clip": 0 where PPO's min/clamp form has no gradient, that is where the advantage is positive and rho above
      1 + clip_high, or negative and below 1 - clip_low (and, with `dual_clip`, negative and above `dual_clip`); else 1.
    - "two-side": 1 inside 1 - clip_low ... 1 + clip_high, else 0.
    - "ring": as "two-side", and 1 also where the step leads back from far outside: positive and rho at most
      1 - ring_low, or negative and at least 1 + ring_high.
    - "cap": min(rho, 1 + clip_high) / rho: large ratios are cut, no decision is dropped.
    - "shape": shape_gamma / (p + shape_gamma)^2 with p the probability itself: with the denominator "one" the gradient
      is that of p / (p + shape_gamma).

    `level` "sequence" puts the geometric mean of a row's ratios in the place of each of them.
    """

    denominator: str = param(
        "old",
        "PPO, equation 6",
        choices=("old", "current", "one"),
        help="ratio against the old policy, against the current one (always 1), or against 1 (the probability itself)",
    )
    keep: str = param("clip", "PPO, equation 7", choices=tuple(_USES), help="how much of a decision's gradient stays")
    clip_low: float = param(0.2, "PPO, table 1", low=0, help="ratios below 1 - clip_low are clipped")
    clip_high: float = param(0.2, "PPO, table 1", low=0, help="ratios above 1 + clip_high are clipped")
    dual_clip: float | None = param(
        None,
        "arXiv 1912.09729",
        above=1,
        help="largest ratio that keeps a negative advantage; none: no bound",
    )
    ring_low: float = param(0.6, "arXiv 2509.24203", low=0, help="positive advantages count again below 1 - ring_low")
    ring_high: float = param(2.0, "arXiv 2509.24203", low=0, help="negative ones count again above 1 + ring_high")
    shape_gamma: float = param(0.1, "arXiv 2504.14945", above=0, help="probability at which shaping sets in")
    level: str = param(
        "token",
        "PPO, equation 6",
        choices=("token", "sequence"),
        help="one ratio per decision, or one per row: exp of the mean of its log ratios",
    )

    named: ClassVar[dict[str, "Surrogate"]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in dict.fromkeys(field for fields in _USES.values() for field in fields):
            if name not in _USES[self.keep] and getattr(self, name) != getattr(Surrogate, name):
                raise UsageError(f"{name} has no effect in a surrogate with keep '{self.keep}'")
        if self.keep == "ring" and (self.ring_low < self.clip_low or self.ring_high < self.clip_high):
            raise UsageError("the ring of a surrogate must lie outside of its clip range")

    @property
    def needs_old(self) -> bool:
        """Whether the gradient depends on the log-probabilities of the old policy."""
        return self.denominator == "old" or self.keep not in ("all", "shape")

    @property
    def clip_range(self) -> tuple[float, float]:
        """The ratios inside the clip range: (1 - clip_low, 1 + clip_high), with 0 and infinity where nothing clips."""
        return self.scaled_range(1.0)

    def scaled_range(self, scale: Any) -> tuple[Any, Any]:
        """The clip range when `scale` (a number or a 0-d tensor) multiplies clip_low and clip_high."""
        low = 1.0 - self.clip_low * scale if "clip_low" in _USES[self.keep] else 0.0
        high = 1.0 + self.clip_high * scale if "clip_high" in _USES[self.keep] else math.inf
        return low, high


Surrogate.named.update(
    {
        "reinforce": Surrogate(denominator="current", keep="all"),
        "ppo": Surrogate(),  # arXiv 1707.06347, equation 7
        "clip-higher": Surrogate(clip_low=0.2, clip_high=0.28),  # DAPO, arXiv 2503.14476, section 3.1
        "dual-clip": Surrogate(dual_clip=3.0),  # arXiv 1912.09729
        # Language. As a surrogate, some of these equal one above: they differ in the advantage or in the weights.
        "sft": Surrogate(denominator="current", keep="all"),  # with advantage 1
        "grpo": Surrogate(),  # arXiv 2402.03300, equation 3
        "dr-grpo": Surrogate(),  # arXiv 2503.20783: no std in the advantage, a constant length in the weights
        "dapo": Surrogate(clip_low=0.2, clip_high=0.28),  # arXiv 2503.14476, equation 8
        "cispo": Surrogate(
            keep="cap"
        ),  # arXiv 2506.13585, equations 4 and 5; the bound is assumed, the paper prints none
        "gspo": Surrogate(level="sequence", clip_low=3e-4, clip_high=4e-4),  # arXiv 2507.18071, equations 5 and 7
        # The terms of demonstrations, which have no old policy (arXiv 2509.04419, table of the unified estimator).
        "srft": Surrogate(denominator="one", keep="all"),  # arXiv 2506.19767
        "luffy": Surrogate(denominator="one", keep="shape"),  # arXiv 2504.14945
        # arXiv 2509.24203: one-side is PPO's clip, "is" has importance weights, the others none.
        "rec-one-side-is": Surrogate(),
        "rec-one-side": Surrogate(denominator="current"),
        "rec-one-side-wide": Surrogate(denominator="current", clip_low=0.6, clip_high=2.0),
        "rec-two-side-is": Surrogate(keep="two-side"),
        "rec-two-side": Surrogate(denominator="current", keep="two-side"),
        "rec-ring": Surrogate(denominator="current", keep="ring"),
        "rec-seq-one-side-is": Surrogate(level="sequence"),
    }
)

"""What restrains a policy while it moves: divergences, entropy and its temperature, mirror-descent proximity, anchors.

This file imports no torch: it holds the configs that the command line reads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.regularizers.adaptive import AdaptivePenalty, AdaptiveRate
    from polopt.regularizers.entropy import EntropyTemperature


@dataclass(frozen=True)
class Learned(Config):
    """An entropy temperature learned so that the policy's mean entropy stays at `target_entropy` (arXiv 1812.05905)."""

    initial: float = param(1.0, "official code", above=0, help="temperature at the start")
    target_entropy: float | None = param(
        None, "table 1", unit="nats", help="none: minus the number of action coordinates"
    )
    form: str = param(
        "alpha",
        "equation 18",
        choices=("alpha", "log-alpha"),
        help="what multiplies the entropy gap in the loss; the official code took log-alpha until 2020",
    )
    lr: float | None = param(None, "table 1", above=0, help="learning rate; none: that of the policy")

    def build(self, spec: "Spec") -> "EntropyTemperature":
        """The temperature of a task; its target is in the units in which the policy acts."""
        from polopt.regularizers.entropy import EntropyTemperature

        target = -float(spec.action_dim) if self.target_entropy is None else self.target_entropy
        return EntropyTemperature(self.initial, target, form=self.form)


@dataclass(frozen=True)
class Fixed(Config):
    """A constant entropy temperature."""

    value: float = param(0.2, "arXiv 1801.01290", low=0, help="the temperature")

    def build(self, spec: "Spec") -> "EntropyTemperature":
        """The constant, with the interface of a learned temperature."""
        from polopt.regularizers.entropy import EntropyTemperature

        return EntropyTemperature(self.value, None)


@dataclass(frozen=True)
class AdaptiveKL(Config):
    """A learning rate that keeps the KL divergence of each update near `target` (rsl_rl; arXiv 2109.11978)."""

    target: float = param(0.01, "rsl_rl", above=0, unit="nats", help="desired KL(old || new) per update")
    factor: float = param(1.5, "rsl_rl", above=1, help="one change of the learning rate")
    low: float = param(1e-5, "rsl_rl", above=0, help="smallest learning rate")
    high: float = param(1e-2, "rsl_rl", above=0, help="largest learning rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise UsageError(f"the smallest learning rate (low {self.low:g}) is above the largest (high {self.high:g})")

    def build(self, lr: float) -> "AdaptiveRate":
        """The rule, starting at `lr`."""
        from polopt.regularizers.adaptive import AdaptiveRate

        return AdaptiveRate(lr, self.target, self.factor, self.low, self.high)


@dataclass(frozen=True)
class KLPenalty(Config):
    """PPO's penalty: coefficient * KL(old || new), the coefficient doubled or halved (arXiv 1707.06347, equation 8)."""

    initial: float = param(1.0, "assumed", low=0, help="coefficient at the start")
    target: float | None = param(0.01, "table 1", above=0, unit="nats", help="desired KL; none: a fixed coefficient")

    def build(self) -> "AdaptivePenalty":
        """The coefficient with its rule."""
        from polopt.regularizers.adaptive import AdaptivePenalty

        return AdaptivePenalty(self.initial, self.target)


@dataclass(frozen=True)
class ReferenceKL(Config):
    """coefficient * KL(policy || reference) in the loss, the reference being a fixed policy (arXiv 2402.03300)."""

    coefficient: float = param(0.04, "arXiv 2402.03300, section 4.2", low=0)
    estimator: str = param(
        "k3",
        "arXiv 2402.03300, equation 4",
        choices=("k1", "k2", "k3", "exact"),
        help="on samples of the policy k1 has no gradient on average, k2 that of the KL, k3 that of the reverse KL",
    )

"""Policies as plain data. Importing this needs no torch; `build` does.

Each `build(spec, network, normalizer=None)` returns an actor for the spaces of `spec`, or raises UsageError with one
sentence that names the space it cannot serve.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.base import Actor


@dataclass(frozen=True)
class Gaussian(Config):
    """A diagonal Gaussian in the units of the environment; actions are clamped to the bounds at the environment."""

    std: str = param("state-independent", "polopt", choices=("state-independent", "state-dependent"))
    log_std_init: float = param(0.0, "polopt", help="initial log standard deviation")
    log_std_low: float = param(-20.0, "polopt", help="lower clamp of the log standard deviation")
    log_std_high: float = param(2.0, "polopt", help="upper clamp of the log standard deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clamp(self.log_std_low, self.log_std_high)

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a Gaussian policy", "Box")
        from polopt.policies.gaussian import GaussianPolicy

        dependent = self.std == "state-dependent"
        net = network.build(spec.obs, (2 if dependent else 1) * spec.action_dim, normalizer=normalizer)
        return GaussianPolicy(
            spec,
            net,
            state_dependent=dependent,
            log_std_init=self.log_std_init,
            log_std_low=self.log_std_low,
            log_std_high=self.log_std_high,
        )


@dataclass(frozen=True)
class SquashedGaussian(Config):
    """tanh of a diagonal Gaussian: acts in [-1, 1], rescaled at the environment."""

    log_std_init: float = param(0.0, "polopt", help="added to the network's log standard deviation")
    log_std_low: float = param(-20.0, "polopt", help="lower clamp of the log standard deviation")
    log_std_high: float = param(2.0, "polopt", help="upper clamp of the log standard deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clamp(self.log_std_low, self.log_std_high)

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a squashed Gaussian", "Box", finite=True)
        from polopt.policies.gaussian import SquashedGaussianPolicy

        net = network.build(spec.obs, 2 * spec.action_dim, normalizer=normalizer)
        return SquashedGaussianPolicy(
            spec,
            net,
            state_dependent=True,
            log_std_init=self.log_std_init,
            log_std_low=self.log_std_low,
            log_std_high=self.log_std_high,
        )


@dataclass(frozen=True)
class Deterministic(Config):
    """tanh of a network: acts in [-1, 1], rescaled at the environment."""

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a deterministic policy", "Box", finite=True)
        from polopt.policies.deterministic import DeterministicPolicy

        return DeterministicPolicy(spec, network.build(spec.obs, spec.action_dim, normalizer=normalizer))


@dataclass(frozen=True)
class Categorical(Config):
    """A softmax over the actions of a Discrete space."""

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a categorical policy", "Discrete")
        from polopt.policies.categorical import CategoricalPolicy

        return CategoricalPolicy(spec, network.build(spec.obs, spec.num_actions, normalizer=normalizer))


@dataclass(frozen=True)
class MultiDiscrete(Config):
    """An independent softmax for each factor of a MultiDiscrete space."""

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a multi-discrete policy", "MultiDiscrete")
        from polopt.policies.categorical import MultiDiscretePolicy

        outputs = int(spec.action.nvec.sum())  # type: ignore[attr-defined]
        return MultiDiscretePolicy(spec, network.build(spec.obs, outputs, normalizer=normalizer))


@dataclass(frozen=True)
class TabularSoftmax(Config):
    """One logit for each state and action; `network` and `normalizer` are not used."""

    def build(self, spec: "Spec", network: Network | None = None, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a tabular softmax", "Discrete")
        if type(spec.obs).__name__ != "Discrete":
            raise UsageError(f"a tabular softmax needs a Discrete observation space; {spec.name} has {spec.obs}")
        from polopt.policies.tabular import TabularSoftmaxPolicy

        return TabularSoftmaxPolicy(spec)


@dataclass(frozen=True)
class Auto(Config):
    """The natural policy of the action space: Gaussian, categorical or multi-discrete."""

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        kinds: dict[str, Gaussian | Categorical | MultiDiscrete] = {
            "Box": Gaussian(),
            "Discrete": Categorical(),
            "MultiDiscrete": MultiDiscrete(),
        }
        name = type(spec.action).__name__
        if name not in kinds:
            raise UsageError(
                f"no policy serves the action space {spec.action} of {spec.name}; use Box, Discrete or MultiDiscrete"
            )
        return kinds[name].build(spec, network, normalizer)


def _need(spec: "Spec", policy: str, kind: str, *, finite: bool = False) -> None:
    from gymnasium import spaces

    fits = isinstance(spec.action, getattr(spaces, kind)) and (not finite or spec.bounded)
    if not fits:
        bounds = " with finite bounds" if finite else ""
        raise UsageError(f"{policy} needs a {kind} action space{bounds}; {spec.name} has {spec.action}")


def _check_clamp(low: float, high: float) -> None:
    if low > high:
        raise UsageError(f"log_std_low must be at most log_std_high, and {low:g} is above {high:g}")


AnyPolicy = Auto | Gaussian | SquashedGaussian | Deterministic | Categorical | MultiDiscrete | TabularSoftmax
"""Every policy: the type of a method's `policy` field. What a method cannot use is refused when it is built."""

__all__ = [
    "AnyPolicy",
    "Auto",
    "Categorical",
    "Deterministic",
    "Gaussian",
    "MultiDiscrete",
    "SquashedGaussian",
    "TabularSoftmax",
]

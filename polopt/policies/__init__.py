"""Policies as plain data. Importing this needs no torch; `build` does.

Each `build(spec, network, normalizer=None)` returns an actor for the spaces of `spec`, or raises UsageError with one
sentence that names the space it cannot serve.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.denoisers import AnyDenoiser, Flat
from polopt.policies.language import AnyLanguagePolicy, CausalLM, LoRA, TextModel

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.flat import Denoiser
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.base import Actor


@dataclass(frozen=True)
class Gaussian(Config):
    """A diagonal Gaussian; actions are clamped to the bounds at the environment.

    With mean "linear" it acts in the units of the environment. With "tanh" the mean is the tanh of the network, in
    [-1, 1], rescaled at the environment; the density is that of the Gaussian, finite also for actions at the bounds.
    """

    mean: str = param("linear", "polopt", choices=("linear", "tanh"))
    std: str = param("state-independent", "polopt", choices=("state-independent", "state-dependent"))
    log_std_init: float = param(0.0, "polopt", help="initial log standard deviation")
    log_std_low: float = param(-20.0, "polopt", help="lower clamp of the log standard deviation")
    log_std_high: float = param(2.0, "polopt", help="upper clamp of the log standard deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clamp(self.log_std_low, self.log_std_high)

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        bounded = self.mean == "tanh"
        _need(spec, "a Gaussian policy with a tanh mean" if bounded else "a Gaussian policy", "Box", finite=bounded)
        from polopt.policies.gaussian import GaussianPolicy

        dependent = self.std == "state-dependent"
        net = network.build(spec.obs, (2 if dependent else 1) * spec.action_dim, normalizer=normalizer)
        return GaussianPolicy(
            spec,
            net,
            mean=self.mean,
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
class Diffusion(Config):
    """A chain of denoising steps from noise to an action: acts in [-1, 1], rescaled at the environment."""

    steps: int = param(5, "arXiv 2208.06193", low=1, help="denoising steps")
    schedule: str = param("vp", "arXiv 2208.06193", choices=("vp", "linear", "cosine"), help="of the noise")
    sampler: str = param("ddpm", "arXiv 2208.06193", choices=("ddpm", "ddim"), help="ddim adds no noise on the way")
    clip: bool = param(True, "arXiv 2208.06193", help="every denoised estimate to [-1, 1]")
    min_std: float = param(
        0.1, "arXiv 2409.00588", low=0, help="floor under the noise of each step when exploring; 0: no scores"
    )
    max_std: float | None = param(None, "arXiv 2510.14830", above=0, help="ceiling of the same noise")
    time_size: int = param(16, "arXiv 2208.06193", low=2, help="size of the embedding of a time")
    greedy: str = param("sample", "arXiv 2208.06193", choices=("sample", "center"), help="center: from noise 0")
    denoiser: AnyDenoiser = param(Flat(), "arXiv 2208.06193", help="the network; flat is --network itself")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_std is not None and not self.scored:
            raise UsageError("max_std has no effect where steps are not scored: min_std 0, or the sampler ddim")
        if self.max_std is not None and self.max_std < self.min_std:
            raise UsageError(f"max_std must be at least min_std, and {self.max_std:g} is below {self.min_std:g}")

    @property
    def scored(self) -> bool:
        """Whether the steps are decisions with a density."""
        return self.sampler == "ddpm" and self.min_std > 0

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        net = _denoiser(self, spec, "a diffusion policy", network, normalizer)
        from polopt.policies.diffusion import DiffusionPolicy, ScoredDiffusionPolicy

        options = {name: getattr(self, name) for name in ("steps", "schedule", "clip", "greedy")}
        if self.scored:
            return ScoredDiffusionPolicy(spec, net, min_std=self.min_std, max_std=self.max_std, **options)
        return DiffusionPolicy(spec, net, sampler=self.sampler, **options)


@dataclass(frozen=True)
class Flow(Config):
    """Rectified flow from noise to an action: acts in [-1, 1], rescaled at the environment."""

    steps: int = param(5, "polopt", low=1, help="steps of Euler's method")
    time_size: int = param(16, "arXiv 2208.06193", low=2, help="size of the embedding of a time")
    greedy: str = param("sample", "arXiv 2208.06193", choices=("sample", "center"), help="center: from noise 0")
    denoiser: AnyDenoiser = param(Flat(), "polopt", help="the network; flat is --network itself")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        net = _denoiser(self, spec, "a flow policy", network, normalizer)
        from polopt.policies.flow import FlowPolicy

        return FlowPolicy(spec, net, steps=self.steps, greedy=self.greedy)


@dataclass(frozen=True)
class MeanFlow(Config):
    """A flow that predicts mean velocities, so that one step maps noise to an action in [-1, 1]."""

    steps: int = param(1, "arXiv 2508.13904", low=1, help="equal parts of the way from noise to action")
    flow_ratio: float = param(0.5, "arXiv 2508.13904", low=0, high=1, help="share of r = t, plain flow matching")
    time_mean: float = param(-0.4, "arXiv 2508.13904", help="of the normal before the sigmoid that draws times")
    time_std: float = param(1.0, "arXiv 2508.13904", above=0)
    time_size: int = param(16, "arXiv 2208.06193", low=2, help="size of the embedding of each time")
    greedy: str = param("sample", "arXiv 2208.06193", choices=("sample", "center"), help="center: from noise 0")
    denoiser: AnyDenoiser = param(Flat(), "arXiv 2508.13904", help="the network; flat is --network itself")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        # The slope of the field in time is taken: frequencies of its embedding are moderate.
        net = _denoiser(self, spec, "a mean-velocity flow policy", network, normalizer, times=2, highest=8.0)
        from polopt.policies.flow import MeanFlowPolicy

        names = ("steps", "flow_ratio", "time_mean", "time_std", "greedy")
        return MeanFlowPolicy(spec, net, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Autoregressive(Config):
    """A softmax over bins of each coordinate, given those before: acts in [-1, 1], rescaled at the environment."""

    bins: int = param(16, "polopt", low=2, help="equal parts of [-1, 1]")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "an autoregressive policy", "Box", finite=True)
        _memoryless(network, "an autoregressive policy")
        from polopt.policies.autoregressive import AutoregressivePolicy

        extra = spec.action_dim * self.bins + spec.action_dim
        net = network.build(spec.obs, self.bins, inputs_extra=extra, normalizer=normalizer)
        return AutoregressivePolicy(spec, net, bins=self.bins)


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
    """One logit for each state and action, in tabular tasks at each step; `network` and `normalizer` are not used."""

    def build(self, spec: "Spec", network: Network | None = None, normalizer: "Normalizer | None" = None) -> "Actor":
        _need(spec, "a tabular softmax", "Discrete")
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
            raise UsageError(f"{spec.name} {_texts(spec) or f'has {spec.action}, which no policy serves'}")
        return kinds[name].build(spec, network, normalizer)


def _need(spec: "Spec", policy: str, kind: str, *, finite: bool = False) -> None:
    from gymnasium import spaces

    fits = isinstance(spec.action, getattr(spaces, kind)) and (not finite or spec.bounded)
    if not fits:
        bounds = " with finite bounds" if finite else ""
        other = _texts(spec) or f"has {spec.action}: choose another --policy, or a method that takes it"
        raise UsageError(f"{policy} needs a {kind} action space{bounds}; {spec.name} {other}")


def _texts(spec: "Spec") -> str:
    """What to do with a task of texts, which no policy of numbers serves; "" for another one."""
    if type(spec.action).__name__ != "Text":
        return ""
    return "asks for texts, which methods for language models give: 'polopt methods --family language'"


def _memoryless(network: Network, policy: str) -> None:
    if network.recurrent != "none":
        raise UsageError(f"{policy} is feed-forward: set the network's recurrent to none")


def _denoiser(
    policy: Diffusion | Flow | MeanFlow,
    spec: "Spec",
    name: str,
    network: Network,
    normalizer: "Normalizer | None",
    *,
    times: int = 1,
    highest: float = 64.0,
) -> "Denoiser":
    """The network of a policy that turns noise into actions, which asks it at so many times."""
    _need(spec, name, "Box", finite=True)
    _memoryless(network, name)
    return policy.denoiser.build(
        network,
        spec.obs,
        spec.action_dim,
        times=times,
        time_size=policy.time_size,
        highest=highest,
        normalizer=normalizer,
    )


def _check_clamp(low: float, high: float) -> None:
    if low > high:
        raise UsageError(f"log_std_low must be at most log_std_high, and {low:g} is above {high:g}")


AnyPolicy = (
    Auto
    | Gaussian
    | SquashedGaussian
    | Deterministic
    | Diffusion
    | Flow
    | MeanFlow
    | Autoregressive
    | Categorical
    | MultiDiscrete
    | TabularSoftmax
)
"""Every policy: the type of a method's `policy` field. What a method cannot use is refused when it is built."""

__all__ = [
    "AnyLanguagePolicy",
    "AnyPolicy",
    "Auto",
    "Autoregressive",
    "Categorical",
    "CausalLM",
    "Deterministic",
    "Diffusion",
    "Flow",
    "Gaussian",
    "LoRA",
    "MeanFlow",
    "MultiDiscrete",
    "SquashedGaussian",
    "TabularSoftmax",
    "TextModel",
]

"""Flows whose actions are perturbed, as plain data. Importing this needs no torch; `build` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.denoisers import AnyDenoiser, Flat

if TYPE_CHECKING:
    import gymnasium

    from polopt.core.spec import Spec
    from polopt.networks.flat import Denoiser
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.perturbed_flow import PerturbedFlowPolicy


@dataclass(frozen=True)
class Blind(Config):
    """The method's network, of the observation alone: the flow goes equally far from everywhere."""

    def build(
        self,
        network: Network,
        space: gymnasium.Space,
        size: int,
        *,
        normalizer: Normalizer | None = None,
        **unseen: Any,
    ) -> Denoiser:
        """As `Flat.build`; what concerns times is not used."""
        from polopt.policies.perturbed_flow import BlindDenoiser

        whole: Any = network.build(space, size, normalizer=normalizer)
        return BlindDenoiser(whole)


@dataclass(frozen=True)
class PerturbedFlow(Config):
    """A flow from noise to a center, and Gaussian noise of a learned size around it: given the first noise the policy
    is a Gaussian. Actions are in the units of the environment and clamped there."""

    steps: int = param(10, "official code", low=1, help="steps of the midpoint method; the paper has 12")
    start: str = param("normal", "section 4", choices=("normal", "zero"), help="zero: the flow starts at 0")
    log_std_init: float = param(0.0, "official code", help="initial log standard deviation around the center")
    log_std_low: float = param(-20.0, "official code", help="lower clamp of the log standard deviation")
    log_std_high: float = param(4.0, "official code", help="upper clamp of the log standard deviation")
    time_size: int = param(16, "official code", low=2, help="size of the embedding of a time")
    greedy: str = param("sample", "official code", choices=("sample", "center"), help="center: from noise 0, no noise")
    denoiser: AnyDenoiser | Blind = param(Flat(), "official code", help="the network; flat is --network itself")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.log_std_low < self.log_std_high:
            raise UsageError(f"log_std_low {self.log_std_low:g} must be below log_std_high {self.log_std_high:g}")
        if isinstance(self.denoiser, Blind):
            self.refuse("time_size", because="on a blind denoiser, which sees no time")

    def build(self, spec: Spec, network: Network, normalizer: Normalizer | None = None) -> PerturbedFlowPolicy:
        from gymnasium import spaces

        if not isinstance(spec.action, spaces.Box):
            raise UsageError(f"a perturbed flow needs a Box action space; {spec.name} has {spec.action}")
        if network.recurrent != "none":
            raise UsageError("a perturbed flow is feed-forward: set the network's recurrent to none")
        from polopt.policies.perturbed_flow import PerturbedFlowPolicy

        net = self.denoiser.build(network, spec.obs, spec.action_dim, time_size=self.time_size, normalizer=normalizer)
        names = ("steps", "start", "log_std_init", "log_std_low", "log_std_high", "greedy")
        return PerturbedFlowPolicy(spec, net, **{name: getattr(self, name) for name in names})

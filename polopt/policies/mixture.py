"""Mixtures of Gaussians as plain data. Importing this needs no torch; `build` does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.gaussian_mixture import MixturePolicy


@dataclass(frozen=True)
class GaussianMixture(Config):
    """Diagonal Gaussians on one network, and a router: their weights, from a network of its own.

    With `squash` actions are tanh of a Gaussian's, in [-1, 1], rescaled at the environment; otherwise they are in the
    units of the environment and clamped there.
    """

    components: int = param(4, "assumed", low=1, help="Gaussians; 1: no router")
    squash: bool = param(True, "co-author's code", help="tanh of the Gaussians")
    std: str = param("state-dependent", "co-author's code", choices=("state-independent", "state-dependent"))
    log_std_init: float = param(0.0, "polopt", help="initial log standard deviation")
    log_std_low: float = param(-20.0, "co-author's code", help="lower clamp of the log standard deviation")
    log_std_high: float = param(2.0, "co-author's code", help="upper clamp of the log standard deviation")
    router_sizes: tuple[int, ...] = param(
        (), "co-author's code", low=1, help="hidden layers of the router; none: linear"
    )
    router_gain: float = param(0.1, "assumed", low=0, help="initial scale of its last layer; small: equal weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.log_std_low < self.log_std_high:
            raise UsageError(f"log_std_low {self.log_std_low:g} must be below log_std_high {self.log_std_high:g}")
        if self.components == 1:
            self.refuse("router_sizes", "router_gain", because="with one component")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "MixturePolicy":
        from gymnasium import spaces

        if not isinstance(spec.action, spaces.Box) or (self.squash and not spec.bounded):
            bounds = " with finite bounds" if self.squash else ""
            raise UsageError(f"a mixture of Gaussians needs a Box action space{bounds}; {spec.name} has {spec.action}")
        if network.recurrent != "none":
            raise UsageError("a mixture of Gaussians is feed-forward: set the network's recurrent to none")
        from polopt.policies.gaussian_mixture import MixturePolicy

        dependent = self.std == "state-dependent"
        outputs = (2 if dependent else 1) * spec.action_dim * self.components
        net = network.build(spec.obs, outputs, normalizer=normalizer)
        router = None
        if self.components > 1:
            shape = Network(self.router_sizes, network.activation, init=network.init, head_gain=self.router_gain)
            router = shape.build(spec.obs, self.components, normalizer=normalizer)
        return MixturePolicy(
            spec,
            net,
            router,
            components=self.components,
            squash=self.squash,
            state_dependent=dependent,
            log_std_init=self.log_std_init,
            log_std_low=self.log_std_low,
            log_std_high=self.log_std_high,
        )

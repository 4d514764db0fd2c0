"""Policies of sequences as plain data. Importing this needs no torch; `build` does."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.sequence import SequencePolicy


@dataclass(frozen=True)
class SequenceDecoder(Config):
    """Several actions from one observation: a gated recurrent unit reads the action before each, and gives the tanh of
    a Gaussian, in [-1, 1], rescaled at the environment.

    The network makes its first state of the observation: the last of the network's sizes is that of the state, without
    an activation, the others are hidden layers.
    """

    length: int = param(4, "assumed", low=1, help="actions from one observation")
    log_std_low: float = param(-20.0, "official code", help="lower clamp of the log standard deviation")
    log_std_high: float = param(2.0, "official code", help="upper clamp of the log standard deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.log_std_low < self.log_std_high:
            raise UsageError(f"log_std_low {self.log_std_low:g} must be below log_std_high {self.log_std_high:g}")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "SequencePolicy":
        from gymnasium import spaces

        if not isinstance(spec.action, spaces.Box) or not spec.bounded:
            raise UsageError(
                f"a sequence decoder needs a Box action space with finite bounds; {spec.name} has {spec.action}"
            )
        if network.recurrent != "none":
            raise UsageError("a sequence decoder sees one observation: set the network's recurrent to none")
        if not network.sizes:
            raise UsageError("a sequence decoder has a state of the network's last size, and the network has no sizes")
        from polopt.policies.sequence import SequencePolicy

        *hidden, size = network.sizes
        first = replace(network, sizes=tuple(hidden)).build(spec.obs, size, head_gain=1.0, normalizer=normalizer)
        return SequencePolicy(
            spec,
            first,
            size,
            length=self.length,
            init=network.init,
            head_gain=network.head_gain,
            log_std_low=self.log_std_low,
            log_std_high=self.log_std_high,
        )

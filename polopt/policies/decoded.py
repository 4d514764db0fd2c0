"""Gaussian policies in a latent space with a flow behind them, as plain data. Importing this needs no torch; `build`
does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.policies import Flow

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.decoded_policy import DecodedPolicy
    from polopt.policies.flow import FlowPolicy

START = math.log(math.log(2.0) + 1e-3)
"""Log of softplus(0) + 0.001, with which the official code begins."""


@dataclass(frozen=True)
class Decoded(Config):
    """A Gaussian over a latent the size of the action, which a flow decodes, and tanh: acts in [-1, 1], rescaled at the
    environment. The method's network is the Gaussian's; the decoder has its own."""

    log_std_init: float = param(START, "official code", help="added to the network's log standard deviation")
    log_std_low: float = param(math.log(1e-3), "official code", help="lower clamp of the log standard deviation")
    log_std_high: float = param(math.log(10.0), "official code", help="upper clamp of the log standard deviation")
    decoder: Flow | None = param(Flow(steps=10, time_size=8), "official code", help="none: the latent is the action")
    decoder_network: Network = param(Network((64,) * 4, "silu"), "official code: HopperStand")
    normalize_decoder: bool = param(
        True, "official code", help="observations of the decoder, by those it was fitted on"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.log_std_low < self.log_std_high:
            raise UsageError(f"log_std_low {self.log_std_low:g} must be below log_std_high {self.log_std_high:g}")
        if self.decoder is None:
            self.refuse("decoder_network", "normalize_decoder", because="without a decoder")
        self.refuse("decoder.greedy", because="on a decoder, which is told where to start")
        self.refuse("decoder_network.head_gain", because="on a decoder, whose last layer begins at 0")

    def build(self, spec: Spec, network: Network, normalizer: Normalizer | None = None) -> DecodedPolicy:
        from gymnasium import spaces

        if not isinstance(spec.action, spaces.Box) or not spec.bounded:
            raise UsageError(
                f"a decoded policy needs a Box action space with finite bounds; {spec.name} has {spec.action}"
            )
        if network.recurrent != "none":
            raise UsageError("a decoded policy is feed-forward: set the network's recurrent to none")
        from polopt.policies.decoded_policy import DecodedPolicy

        net = network.build(spec.obs, 2 * spec.action_dim, normalizer=normalizer)
        names = ("log_std_init", "log_std_low", "log_std_high")
        return DecodedPolicy(spec, net, **{name: getattr(self, name) for name in names})

    def build_decoder(self, spec: Spec) -> FlowPolicy:
        """A new decoder, whose last layer is 0: it gives every latent back as it is."""
        from polopt.networks.normalizer import Normalizer

        assert self.decoder is not None
        normalizer = Normalizer(spec.obs) if self.normalize_decoder else None
        network = replace(self.decoder_network, head_gain=0.0)
        return self.decoder.build(spec, network, normalizer=normalizer)  # type: ignore[return-value]

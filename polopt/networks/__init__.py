"""What a network looks like, as plain data. Importing this needs no torch; `build` does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    import gymnasium

    from polopt.networks.build import FeedForward, Recurrent
    from polopt.networks.normalizer import Normalizer


@dataclass(frozen=True)
class Network(Config):
    """Encoder (by the observation space), optional recurrent core, and a multilayer perceptron."""

    sizes: tuple[int, ...] = param((64, 64), "polopt", low=1, help="widths of the hidden layers")
    activation: str = param("tanh", "polopt", choices=("relu", "tanh", "elu", "gelu", "silu", "mish"))
    normalization: str = param(
        "none", "polopt", choices=("none", "layer"), help="before each hidden activation, or at the start of a block"
    )
    blocks: str = param(
        "plain", "polopt", choices=("plain", "residual"), help="residual: each width is a block of two layers"
    )
    init: str = param("default", "polopt", choices=("default", "orthogonal"), help="orthogonal: gain sqrt(2), bias 0")
    dropout: float = param(0.0, "polopt", low=0, below=1, help="after each hidden activation, only where it is trained")
    head_gain: float = param(1.0, "polopt", low=0, help="initial scale of a policy's last layer; critics use 1")
    recurrent: str = param(
        "none", "polopt", choices=("none", "gru", "clock"), help="clock: it counts the decisions of an episode"
    )
    recurrent_size: int = param(64, "polopt", low=1, help="size of the hidden state, or of the vector that tells time")
    encoder: str = param("auto", "polopt", choices=("auto", "nature-cnn", "flat"), help="auto: uint8 images by a CNN")
    make: Callable[[int, int], Any] | None = param(
        None, "polopt", help="your own trunk: make(inputs, outputs) -> module; replaces the hidden layers"
    )

    inert = {"encoder": "auto is one of the others"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recurrent == "none":
            self.refuse("recurrent_size", because="without a recurrent core")
        if self.blocks == "residual" and len(set(self.sizes)) != 1:
            raise UsageError(f"residual blocks have one width, and sizes are {self.sizes}")

    @classmethod
    def from_value(cls, value: Any) -> "Network | None":
        """A callable where a network is asked for is the user's own trunk."""
        return cls(make=value) if callable(value) else None

    def build(
        self,
        space: "gymnasium.Space",
        outputs: int,
        *,
        inputs_extra: int = 0,
        ensemble: int | None = None,
        head_gain: float | None = None,
        normalizer: "Normalizer | None" = None,
    ) -> "FeedForward | Recurrent":
        """A network from observations of `space` to [..., outputs].

        Feed-forward: `net(obs, extra=None)`; recurrent: `net(obs, hidden, first, extra=None)` over a window,
        `net.step(obs, hidden)` and `net.unroll(...)`. `extra` [..., inputs_extra] joins the features (an action).
        `ensemble=E` gives E trunks on one encoder and outputs [E, ..., outputs]. `head_gain` replaces the config's
        (critics give 1.0). Raises UsageError for an observation space that no network reads.
        """
        from polopt.networks.build import build

        return build(
            self,
            space,
            outputs,
            inputs_extra=inputs_extra,
            ensemble=ensemble,
            head_gain=head_gain,
            normalizer=normalizer,
        )


__all__ = ["Network"]

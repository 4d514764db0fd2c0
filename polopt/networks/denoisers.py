"""Denoisers as plain data: the networks of policies that turn noise into actions. Importing this needs no torch.

A denoiser has `features(obs)`, the one place that encodes observations, and `predict(features, x, *times)`, which says
something of a noisy x [..., D] at one or more times (its noise, its velocity): [..., D]. Each time is [..., 1], or
[..., D] with a time for each coordinate: `parts` are the sizes of the groups of coordinates whose times may differ.

What the method's `network` is in them: a `Flat` denoiser is that network, in the others it encodes the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    import gymnasium

    from polopt.networks import Network
    from polopt.networks.flat import Denoiser
    from polopt.networks.normalizer import Normalizer


@dataclass(frozen=True)
class Flat(Config):
    """The method's network, of everything side by side: features, noisy action, embedded times."""

    def build(
        self,
        network: Network,
        space: gymnasium.Space,
        size: int,
        *,
        times: int = 1,
        time_size: int = 16,
        highest: float = 64.0,
        parts: Sequence[int] | None = None,
        normalizer: Normalizer | None = None,
    ) -> Denoiser:
        """A denoiser of x [..., size] given observations of `space` and `times` times, each embedded in `time_size`
        numbers with frequencies up to `highest`; `parts` (none: one part) may have times of their own."""
        from polopt.networks.flat import FlatDenoiser

        parts = (size,) if parts is None else tuple(parts)
        extra = size + times * len(parts) * time_size
        whole: Any = network.build(space, size, inputs_extra=extra, normalizer=normalizer)
        return FlatDenoiser(whole, parts, times, time_size, highest)


@dataclass(frozen=True)
class DiT(Config):
    """A transformer over groups of coordinates, such as the actions of a chunk; observation and times condition it by
    adaptive layer norm (Peebles and Xie 2022, arXiv 2212.09748). The method's network encodes the observation."""

    width: int = param(64, "polopt", low=1, help="of a token")
    depth: int = param(2, "polopt", low=1, help="blocks")
    heads: int = param(4, "polopt", low=1, help="of attention; they share the width")
    token_size: int = param(1, "polopt", low=1, help="coordinates of x in one token")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(f"{self.heads} heads cannot share a width of {self.width}")

    def build(
        self,
        network: Network,
        space: gymnasium.Space,
        size: int,
        *,
        times: int = 1,
        time_size: int = 16,
        highest: float = 64.0,
        parts: Sequence[int] | None = None,
        normalizer: Normalizer | None = None,
    ) -> Denoiser:
        """As `Flat.build`; every token has a time of its own. Raises UsageError when tokens do not fill the parts."""
        from polopt.networks.dit import DiTDenoiser

        tokens = [(_tokens("a DiT denoiser", part, self.token_size), self.token_size) for part in parts or (size,)]
        encoder: Any = network.build(space, self.width, head_gain=1.0, normalizer=normalizer)
        return DiTDenoiser(
            encoder,
            tokens,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            times=times,
            time_size=time_size,
            highest=highest,
            head_gain=network.head_gain,
        )


@dataclass(frozen=True)
class Conv(Config):
    """A U-Net of convolutions along the tokens of x, which are a sequence in time; observation and times scale and
    shift its channels (Chi et al. 2023, arXiv 2303.04137). The method's network encodes the observation."""

    channels: tuple[int, ...] = param(
        (32, 64), "polopt", low=1, help="at each scale, each half as long as the one before"
    )
    kernel: int = param(5, "arXiv 2303.04137", low=1, help="width of a convolution, odd")
    token_size: int = param(1, "polopt", low=1, help="coordinates of x at one place of the sequence")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels or self.kernel % 2 == 0:
            raise UsageError("a Conv denoiser needs one number of channels at least, and an odd kernel")

    def build(
        self,
        network: Network,
        space: gymnasium.Space,
        size: int,
        *,
        times: int = 1,
        time_size: int = 16,
        highest: float = 64.0,
        parts: Sequence[int] | None = None,
        normalizer: Normalizer | None = None,
    ) -> Denoiser:
        """As `Flat.build`; every place has a time of its own. Raises UsageError when tokens do not fill the parts."""
        from polopt.networks.unet import ConvDenoiser

        length = sum(_tokens("a Conv denoiser", part, self.token_size) for part in parts or (size,))
        encoder: Any = network.build(space, self.channels[-1], head_gain=1.0, normalizer=normalizer)
        return ConvDenoiser(
            encoder,
            length,
            self.token_size,
            channels=self.channels,
            kernel=self.kernel,
            times=times,
            time_size=time_size,
            highest=highest,
            head_gain=network.head_gain,
        )


AnyDenoiser = Flat | DiT | Conv


def _tokens(what: str, size: int, token_size: int) -> int:
    if size % token_size:
        raise UsageError(f"{what} cannot cut {size} coordinates into tokens of {token_size}: set token_size")
    return size // token_size

"""Networks whose units are rectified sines of learned widths, and a dropout of gradients alone.

Ishuov et al., "Symphony", 2025, arXiv 2512.10477.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from polopt.networks.build import FeedForward
from polopt.networks.encoders import make_encoder
from polopt.networks.layers import MLP, EnsembleLayerNorm, EnsembleLinear

STEEPNESS = 1.5


class ReSine(nn.Module):
    """s sin(x / s) sigmoid(1.5 sin(x / s)) with a width s in (0, 1) of each unit, a sigmoid of what is learned.

    Values are between -0.19 s and 0.82 s. Of E networks at once, [E, B, size], each has widths of its own.
    """

    def __init__(self, size: int, members: int | None = None) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(size)
        shape = (size,) if members is None else (members, 1, size)
        self.raw = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        width = (self.raw if self.raw.dim() == 1 else self.raw[: len(x)]).sigmoid()
        sine = (x / width).sin()
        return width * sine * (STEEPNESS * sine).sigmoid()


class SilentDropout(nn.Module):
    """The identity, through which a gradient does not come back with probability `p`, drawn anew for each number; those
    that do are as they are."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not torch.is_grad_enabled():
            return x
        return torch.where(torch.rand_like(x) > self.p, x, x.detach())


class SineMLP(MLP):
    """Linear, layer normalization, Linear, `ReSine`, Linear, `SilentDropout`: [..., inputs] -> [..., outputs].

    Both hidden layers are `width` wide. `members` as in `MLP`.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, *, silent: float = 0.0, members: int | None = None
    ) -> None:
        super().__init__(inputs, outputs, (width, width), members=members)
        self.silent = SilentDropout(silent)

    def hidden(
        self, inputs: int, sizes: Sequence[int], activation: str, normalization: str, init: str, dropout: float
    ) -> list[nn.Module]:
        first, second = sizes
        linear: Any = nn.Linear if self.members is None else partial(EnsembleLinear, self.members)
        norm: Any = nn.LayerNorm if self.members is None else partial(EnsembleLayerNorm, self.members)
        return [linear(inputs, first), norm(first), linear(first, second), ReSine(second, self.members)]

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        return self.silent(super().forward(x, members))


def sine_network(
    space: gymnasium.Space,
    outputs: int,
    width: int,
    *,
    inputs_extra: int = 0,
    silent: float = 0.0,
    members: int | None = None,
) -> FeedForward:
    """A `SineMLP` on the encoder of observations of `space`: `net(obs, extra=None)` -> [..., outputs], with members
    [E, ..., outputs]. Raises UsageError for a space that no network reads."""
    encoder = make_encoder(space)
    return FeedForward(encoder, SineMLP(encoder.size + inputs_extra, outputs, width, silent=silent, members=members))

"""A small U-Net of convolutions along time as denoiser (Ronneberger et al. 2015, arXiv 1505.04597).

Of actions: Janner et al. 2022, arXiv 2205.09991; Chi et al. 2023, arXiv 2303.04137.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.networks.build import FeedForward
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser, TimeEmbedding, embedded
from polopt.networks.layers import initialize


class GroupNorm(nn.GroupNorm):
    """Of [R, C, L], by way of layer norm: PyTorch's own has no forward mode that compiles."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], self.num_groups, -1)
        alike = functional.layer_norm(groups, groups.shape[-1:], eps=self.eps).reshape(x.shape)
        return alike * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)


class Residual(nn.Module):
    """Two convolutions, [R, inputs, L] -> [R, outputs, L]; the condition [R, C, 1 or L] scales and shifts the channels
    between them (FiLM, Perez et al. 2018, arXiv 1709.07871)."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int) -> None:
        super().__init__()
        groups, padding = math.gcd(8, outputs), kernel // 2
        self.first = nn.Conv1d(inputs, outputs, kernel, padding=padding)
        self.second = nn.Conv1d(outputs, outputs, kernel, padding=padding)
        self.norms = nn.ModuleList(GroupNorm(groups, outputs) for _ in range(2))
        self.modulation = nn.Conv1d(condition, 2 * outputs, 1)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if condition.shape[-1] > 1:
            condition = functional.adaptive_avg_pool1d(condition, x.shape[-1])
        scale, shift = self.modulation(functional.mish(condition)).chunk(2, 1)
        y = functional.mish(self.norms[0](self.first(x))) * (1.0 + scale) + shift
        return self.skip(x) + functional.mish(self.norms[1](self.second(y)))


class ConvDenoiser(Denoiser):
    """x is a sequence of `length` tokens of `size` coordinates. Down: at each scale two convolutions, and half the
    length; up: twice the length, joined with what was there on the way down. A place's condition is the encoded
    observation and its times, averaged where places are joined."""

    places: Tensor

    def __init__(
        self,
        encoder: FeedForward,
        length: int,
        size: int,
        *,
        channels: Sequence[int],
        kernel: int,
        times: int,
        time_size: int,
        highest: float,
        head_gain: float,
    ) -> None:
        super().__init__()
        self.normalizer, self.encoder = encoder.normalizer, encoder
        self.shape = (length, size)
        self.register_buffer("places", size * torch.arange(length), persistent=False)
        wide = channels[-1]
        self.embeddings = nn.ModuleList(TimeEmbedding(time_size, highest) for _ in range(times))
        self.conditions = nn.Linear(times * time_size, wide)
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(Residual(a, b, wide, kernel) for a, b in zip((size, *channels), channels))
        self.shrink = nn.ModuleList(nn.Conv1d(a, a, 3, stride=2, padding=1) for a, _ in pairs)
        self.middle = Residual(wide, wide, wide, kernel)
        self.up = nn.ModuleList(Residual(b + a, a, wide, kernel) for a, b in reversed(pairs))
        self.last = nn.Conv1d(channels[0], size, 1)
        initialize(self.last, gain=head_gain)

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs)

    def predict(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        lead = x.shape[:-1]
        condition = features.unsqueeze(-2) + self.conditions(embedded(self.embeddings, times, self.places))
        shape = condition.shape[-2:]
        condition = condition.expand(*lead, *shape).reshape(-1, *shape).transpose(1, 2)
        hidden = x.reshape(-1, *self.shape).transpose(1, 2)
        skips = []
        for block, shrink in zip(self.down, [*self.shrink, None]):
            hidden = block(hidden, condition)
            if shrink is not None:
                skips.append(hidden)
                hidden = shrink(hidden)
        hidden = self.middle(hidden, condition)
        for block in self.up:
            skip = skips.pop()
            hidden = block(torch.cat([functional.interpolate(hidden, skip.shape[-1]), skip], 1), condition)
        return self.last(hidden).transpose(1, 2).reshape(*lead, -1)

"""What denoisers share, and the plain one: a multilayer perceptron of everything side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from polopt.networks.build import FeedForward, join
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer


class TimeEmbedding(nn.Module):
    """Time [..., 1] in [0, 1] -> [..., size]: sines and cosines, then two linear layers with Mish between.

    The frequencies rise geometrically from 1 to `highest`. A mean velocity is differentiated with respect to time, so
    its highest frequency must be moderate.
    """

    def __init__(self, size: int = 16, highest: float = 64.0) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(0.0, 1.0, size // 2, base=highest), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * (size // 2), 2 * size), nn.Mish(), nn.Linear(2 * size, size))

    def forward(self, time: Tensor) -> Tensor:
        angle = time * self.frequencies
        return self.layers(torch.cat([angle.sin(), angle.cos()], -1))


class Denoiser(nn.Module):
    """The network of a policy that turns noise into actions; see `polopt.networks.denoisers`."""

    recurrent = False
    normalizer: Normalizer | None

    @abstractmethod
    def features(self, obs: Obs) -> Tensor:
        """The encoded observations [..., F]: once for all the times at which something is predicted."""

    @abstractmethod
    def predict(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        """[..., D] of the noisy x [..., D], which may have more leading dimensions than the features, at `times`, each
        [..., 1] or, by coordinate, [..., D]."""


class FlatDenoiser(Denoiser):
    """`net` of [features, x, embedded times]: each of the `times` has an embedding for each part of the coordinates,
    and is read at the part's first one. Raises ValueError for times by coordinate when there is one part only."""

    def __init__(self, net: FeedForward, parts: Sequence[int], times: int, time_size: int, highest: float) -> None:
        super().__init__()
        self.normalizer, self.encoder, self.trunk = net.normalizer, net.encoder, net.trunk
        self.starts = starts(parts)
        self.embeddings = nn.ModuleList(TimeEmbedding(time_size, highest) for _ in range(times * len(parts)))

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs if self.normalizer is None else self.normalizer(obs))

    def predict(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        each = [part for time in times for part in self.by_part(time)]
        embedded = [embed(time).expand(*x.shape[:-1], -1) for embed, time in zip(self.embeddings, each)]
        return self.trunk(join(features, torch.cat([x, *embedded], -1)))

    def by_part(self, time: Tensor) -> list[Tensor]:
        """The time [..., 1] of each part."""
        if time.shape[-1] == 1:
            return [time] * len(self.starts)
        if len(self.starts) == 1:
            raise ValueError(f"this denoiser has one time for all coordinates, not {time.shape[-1]} times")
        return [time[..., start : start + 1] for start in self.starts]


def starts(parts: Sequence[int]) -> list[int]:
    """The first coordinate of each part."""
    return [0, *accumulate(parts)][:-1]


def embedded(embeddings: nn.ModuleList, times: Sequence[Tensor], places: Tensor) -> Tensor:
    """The embedded times of each token, side by side, [..., L, E], or [..., 1, E] where all tokens have the same;
    `places` [L] are their first coordinates."""

    def column(embed: nn.Module, time: Tensor) -> Tensor:
        return embed(time).unsqueeze(-2) if time.shape[-1] == 1 else embed(time[..., places].unsqueeze(-1))

    return torch.cat(torch.broadcast_tensors(*map(column, embeddings, times)), -1)

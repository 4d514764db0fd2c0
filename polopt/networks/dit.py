"""A transformer as denoiser: tokens of coordinates, conditioned on observation and times in every block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polopt.networks.build import FeedForward
from polopt.networks.encoders import Obs
from polopt.networks.flat import Denoiser, TimeEmbedding, embedded, starts
from polopt.networks.layers import initialize
from polopt.networks.transformer import Transformer


class DiTDenoiser(Denoiser):
    """x is cut into `tokens`, a (count, size) for each part, with layers into and out of the transformer for each part
    and a learned vector that tells every token apart. A token's condition is the encoded observation and its times,
    read at its first coordinate. Peebles and Xie 2022, arXiv 2212.09748; the last layer begins as others do, not at 0.
    """

    places: Tensor

    def __init__(
        self,
        encoder: FeedForward,
        tokens: Sequence[tuple[int, int]],
        *,
        width: int,
        depth: int,
        heads: int,
        times: int,
        time_size: int,
        highest: float,
        head_gain: float,
    ) -> None:
        super().__init__()
        self.normalizer, self.encoder = encoder.normalizer, encoder
        self.tokens = list(tokens)
        sizes = [size for count, size in tokens for _ in range(count)]
        self.register_buffer("places", torch.tensor(starts(sizes)), persistent=False)
        self.inputs = nn.ModuleList(nn.Linear(size, width) for _, size in tokens)
        self.names = nn.Parameter(0.02 * torch.randn(len(sizes), width))
        self.embeddings = nn.ModuleList(TimeEmbedding(time_size, highest) for _ in range(times))
        self.conditions = nn.Linear(times * time_size, width)
        self.transformer = Transformer(width, depth, heads, condition=width)
        self.outputs = nn.ModuleList(nn.Linear(width, size) for _, size in tokens)
        for layer in self.outputs:
            assert isinstance(layer, nn.Linear)
            initialize(layer, gain=head_gain)

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs)

    def predict(self, features: Tensor, x: Tensor, *times: Tensor) -> Tensor:
        parts = x.split([count * size for count, size in self.tokens], -1)
        cut = [layer(part.unflatten(-1, shape)) for layer, part, shape in zip(self.inputs, parts, self.tokens)]
        condition = features.unsqueeze(-2) + self.conditions(embedded(self.embeddings, times, self.places))
        hidden = self.transformer(torch.cat(cut, -2) + self.names, condition=condition)
        parts = hidden.split([count for count, _ in self.tokens], -2)
        return torch.cat([layer(part).flatten(-2) for layer, part in zip(self.outputs, parts)], -1)

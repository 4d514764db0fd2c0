"""Sampling by priority, from a tree of sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Priority:
    """Prioritised sampling: P(i) ~ p_i^exponent, importance (size P(i))^-correction over its largest in the batch.

    Schaul et al. 2016, equations 1 and section 3.4.
    """

    exponent: float = 0.6
    correction: float = 0.4
    floor: float = 1e-6


class SumTree:
    """Sums of non-negative weights in levels of 64 children: sampling and updating take a few vector operations."""

    WIDTH = 64

    def __init__(self, size: int) -> None:
        self.levels: list[Tensor] = []
        while not self.levels or size > 1:
            size = -(-size // self.WIDTH)
            self.levels.append(torch.zeros(size * self.WIDTH, dtype=torch.float64))

    @property
    def leaves(self) -> Tensor:
        return self.levels[0]

    @property
    def total(self) -> Tensor:
        """The sum of all weights, 0-d."""
        return self.levels[-1].sum()

    def __setitem__(self, index: Tensor, weight: Tensor) -> None:
        self.levels[0][index] = weight
        for level, above in zip(self.levels, self.levels[1:]):
            index = index // self.WIDTH
            above[index] = level.view(-1, self.WIDTH)[index].sum(1)  # summed anew: no drift

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices [count], stratified over the total weight, and their probabilities."""
        total = self.total
        draw = torch.rand(count, generator=generator, dtype=torch.float64)
        rest = (torch.arange(count) + draw) * (total / count)
        node = torch.zeros(count, dtype=torch.int64)
        for level in reversed(self.levels):
            children = level.view(-1, self.WIDTH)[node]  # [count, 64]
            sums = children.cumsum(1)
            chosen = (rest.unsqueeze(1) >= sums).sum(1).clamp_max(self.WIDTH - 1)
            # Rounding may point just past the last child with weight: take the heaviest one instead.
            empty = children.gather(1, chosen.unsqueeze(1)).squeeze(1) <= 0
            chosen = torch.where(empty, children.argmax(1), chosen)
            rest = rest - (sums - children).gather(1, chosen.unsqueeze(1)).squeeze(1)
            node = node * self.WIDTH + chosen
        return node, self.leaves[node] / total

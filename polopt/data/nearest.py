"""The nearest of recorded points."""

from __future__ import annotations

import torch
from torch import Tensor


class Nearest:
    """Finds the nearest of fixed points by Euclidean distance, by comparing with all of them: exact in double precision
    in any number of dimensions, and without a wait for the device. Of points at one distance it is the first.

    Args:
        points: [N, D], N at least 1. They stay where they are.
        chunk: how many are compared at a time: it needs B times as many numbers for B queries.
    """

    def __init__(self, points: Tensor, chunk: int = 65_536) -> None:
        self.points = points.detach().double().split(chunk)
        self.halves = [0.5 * part.square().sum(-1) for part in self.points]
        self.chunk = chunk

    @torch.no_grad()
    def __call__(self, query: Tensor) -> Tensor:
        """Index [B] of the nearest point of each row of `query` [B, D]."""
        query = query.double()
        found: list[tuple[Tensor, Tensor]] = []
        for number, (part, half) in enumerate(zip(self.points, self.halves)):
            nearness, place = (query @ part.T - half).max(1)  # |q|^2 / 2 minus half the squared distance
            found.append((nearness, place + number * self.chunk))
        best = torch.stack([nearness for nearness, _ in found]).argmax(0, keepdim=True)
        return torch.stack([place for _, place in found]).gather(0, best).squeeze(0)

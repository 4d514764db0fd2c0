"""Coverage of a grid: how much a set of visited cells is worth, a monotone submodular function of the set."""

from __future__ import annotations

import torch
from torch import Tensor


def sensed(rows: int, columns: int, radius: float) -> Tensor:
    """bool [P, P]: which cells are within this (Euclidean) distance of each cell. Walls hide nothing."""
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    return torch.cdist(place, place) <= radius + 1e-9


def smooth(rows: int, columns: int, seed: int) -> Tensor:
    """Random weights [P] in [0, 1] that change slowly: noise blurred over two cells, from its least to its largest."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    for side, axis in ((rows, 0), (columns, 1)):
        line = torch.arange(side, dtype=torch.float64)
        kernel = torch.softmax(-((line[:, None] - line) ** 2) / 8.0, dim=1)
        noise = torch.movedim(torch.tensordot(kernel, noise, dims=([1], [axis])), 0, axis)
    least, largest = noise.min(), noise.max()
    return ((noise - least) / (largest - least).clamp(min=1e-12)).flatten().to(torch.get_default_dtype())


def covered(cells: Tensor, near: Tensor, weights: Tensor) -> Tensor:
    """F [...] of the sets of visited cells [..., T]: the weights [P] of all cells that one of them senses (`near`)."""
    return near[cells].any(-2).to(weights.dtype) @ weights


def gains(cells: Tensor, near: Tensor, weights: Tensor) -> Tensor:
    """What each cell of the paths [..., T] adds to those before it, [..., T]: sums to F of the whole path."""
    reached = near[cells].to(torch.int64).cumsum(-2) > 0  # [..., T, P]
    value = reached.to(weights.dtype) @ weights
    return torch.diff(value, dim=-1, prepend=torch.zeros_like(value[..., :1]))

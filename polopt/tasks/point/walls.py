"""Walls: boxes with sides along the axes, flat ones included, that stop what runs into them."""

from __future__ import annotations

import torch
from torch import Tensor

GAP = 1e-4
"""How far in front of a wall one stops."""


def reach(place: Tensor, move: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The share [N] of each move [N, D] from `place` [N, D] that is free of the walls [W, D]: 1 for all of it.

    A move is a straight line. From inside of a wall one may leave it.
    """
    step = torch.where(move == 0, torch.finfo(move.dtype).tiny, move).unsqueeze(1)
    first, second = (low - place.unsqueeze(1)) / step, (high - place.unsqueeze(1)) / step
    enter = torch.minimum(first, second).amax(-1)  # [N, W], where the line has passed the near side along all axes
    leave = torch.maximum(first, second).amin(-1)
    share = torch.where((enter <= leave) & (enter >= 0) & (leave > 0), enter, torch.inf).amin(1)
    length = (move * move).sum(-1).sqrt()
    near = share - GAP / length.clamp(min=GAP)  # a wall that is not met, but come near to, keeps its distance too
    return near.clamp(0, 1)


def moved(place: Tensor, move: Tensor, low: Tensor, high: Tensor, slide: bool) -> Tensor:
    """Where moves [N, D] lead from `place` [N, D]; with `slide` along one axis after the other, each as far as it is
    free."""
    if not len(low):
        return place + move
    if not slide:
        return place + reach(place, move, low, high).unsqueeze(-1) * move
    axes = torch.eye(move.shape[-1], dtype=move.dtype, device=move.device)
    for axis in axes:
        part = move * axis
        place = place + reach(place, part, low, high).unsqueeze(-1) * part
    return place


def inside(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """bool [...]: the places [..., D] that are in one of the walls [W, D]."""
    at = place.unsqueeze(-2)
    return ((at >= low - GAP) & (at <= high + GAP)).all(-1).any(-1)

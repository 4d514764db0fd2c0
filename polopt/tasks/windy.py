"""A walk through one of several corridors, in some of which the wind blows: a small set of models, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def windy_walk(gusts: Tensor, lengths: Sequence[int] = (4, 6, 9)) -> tuple[Tensor, Tensor]:
    """Transitions [M, S, C, S] and rewards [S, C], float64, of M models of C corridors from the start, state 0, to the
    goal, state 1, where all ends: each takes `lengths` steps, and a step costs 1.

    At the start an action chooses a corridor; in it there is no other way. At each step within corridor c a gust
    throws the walker back to the start with probability `gusts` [M, C].
    """
    models, corridors = gusts.shape
    states = 2 + sum(length - 1 for length in lengths)
    transition = torch.zeros(models, states, corridors, states, dtype=torch.float64)
    reward = -torch.ones(states, corridors, dtype=torch.float64)
    transition[:, 1, :, 1], reward[1] = 1.0, 0.0
    cell = 2
    for corridor, length in enumerate(lengths):
        transition[:, 0, corridor, cell] = 1.0
        for step in range(1, length):
            onward = 1 if step == length - 1 else cell + 1
            blown = gusts[:, corridor].to(torch.float64)
            transition[:, cell, :, onward] += 1 - blown.unsqueeze(-1)
            transition[:, cell, :, 0] += blown.unsqueeze(-1)
            cell += 1
    return transition, reward


def gust_grid(points: int = 5, most: float = 0.5) -> Tensor:
    """Gusts [points^2, 3] of three corridors: those of the first two on a grid from 0 to `most`, none in the third."""
    line = torch.linspace(0, most, points, dtype=torch.float64)
    return torch.cat([torch.cartesian_prod(line, line), torch.zeros(points**2, 1, dtype=torch.float64)], 1)

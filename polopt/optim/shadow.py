"""A shadow of Adam for the output layer of a model: the step that it would take on the gradient of one sample alone.

Of a layer whose outputs are W h, the gradient of a sample is an outer product, slope h^T. Adam's direction on it is not
one, so what it does to the sample's own outputs, U h, is found for few samples at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.core.state import Stateful

PIECE = 1 << 22  # numbers in the gradients that stand at once


def adam_direction(
    gradient: Tensor, first: Tensor, second: Tensor, step: int, betas: tuple[float, float], eps: float
) -> Tensor:
    """U, shaped like `gradient`: the direction of Adam's step number `step` on it, from the moments before it."""
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient.square()
    return first / (1 - betas[0] ** step) / ((second / (1 - betas[1] ** step)).sqrt() + eps)


class ShadowAdam(Stateful):
    """Adam's moments of a layer [V, H], moved by `step` and not by trials; there are none before the first step.

    Attributes:
        first, second: the moments [V, H], or None.
        steps: how many were taken; by them the bias of every row is corrected.
    """

    saved = ("steps",)

    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps, self.steps = betas, eps, 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def moves(self, states: Tensor, slope: Tensor, ids: Tensor | None = None) -> Tensor:
        """U h [C, K] of samples with gradients `slope` [C, K] times `states` h [C, H], for the rows `ids` [C, K] of the
        layer (none: for all of them). While there are no moments U is the gradient itself."""
        if self.first is None or self.second is None or not len(states):
            return slope * states.square().sum(1, keepdim=True)
        self.first, self.second = self.first.to(states), self.second.to(states)
        size = max(1, PIECE // (slope.shape[1] * states.shape[1]))
        found = []
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            gradient = slope[part].unsqueeze(2) * states[part].unsqueeze(1)
            first, second = (each if ids is None else each[ids[part]] for each in (self.first, self.second))
            direction = adam_direction(gradient, first, second, self.steps + 1, self.betas, self.eps)
            found.append((direction @ states[part].unsqueeze(2)).squeeze(2))
        return torch.cat(found)

    def step(self, total: Tensor, count: Tensor) -> None:
        """One step on the mean gradient: `total` [V, H] is the sum over as many samples as `count` [V] says of each
        row. The moments of a row of none stay as they are."""
        self.steps += 1
        rows = (count > 0).nonzero().squeeze(1)
        if not len(rows):
            return
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(total), torch.zeros_like(total)
        mean = total[rows] / count[rows].unsqueeze(1)
        for moment, beta, value in zip((self.first, self.second), self.betas, (mean, mean.square())):
            moment.index_copy_(0, rows, beta * moment[rows] + (1 - beta) * value)

    def extra_state(self) -> dict[str, Any]:
        return {} if self.first is None else {"first": self.first, "second": self.second}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.first, self.second = (state[name].clone() if state else None for name in ("first", "second"))

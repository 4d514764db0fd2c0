"""Gradients of a batch whose rows are divided among several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core import ranks
from polopt.core.batch import Batch, cut, rows_of
from polopt.core.errors import UsageError


def divided_gradients(
    parameters: Sequence[Tensor], batch: Batch, loss: Any, gradients: Callable[[Batch], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Leaves the gradient of a whole batch in the parameters and returns its metrics, where each process does its parts
    of the rows (`polopt.core.ranks`).

    `gradients(part)` leaves that of some rows, in place of what is there. Raises UsageError if the `loss` draws numbers
    from torch's generator: the processes would draw the same ones for different rows.
    """
    every = cut(batch, ranks.parts())
    own, luck = [every[number] for number in ranks.own()], torch.get_rng_state()
    metrics: dict[str, Tensor] = {}
    total: list[Tensor | None] = [None] * len(parameters)
    with ranks.apart():
        for part in own:
            if rows_of(part):
                add_up(metrics, gradients(part))
                total = [_sum(one, parameter.grad) for one, parameter in zip(total, parameters)]
    if not torch.equal(luck, torch.get_rng_state()):
        name = getattr(loss, "__qualname__", "a loss")
        raise UsageError(f"{name} draws random numbers, and several processes would all draw the same: use one")
    for parameter, grad in zip(parameters, total):
        parameter.grad = grad
    return ranks.gradients_(parameters, metrics)


def add_up(metrics: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    """Adds what a loss says of one piece of a batch to what it said of those before."""
    for name, each in sums.items():
        metrics[name] = metrics[name] + each.detach() if name in metrics else each.detach()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which those that are None are none."""
    return other if one is None else one if other is None else one.add_(other)

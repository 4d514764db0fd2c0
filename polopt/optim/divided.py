"""Gradients of a batch whose rows are divided among several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core import ranks, shards, signals
from polopt.core.batch import Batch, cut, pieces, rows_of
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
    _check_luck(luck, loss)
    for parameter, grad in zip(parameters, total):
        parameter.grad = grad
    return ranks.gradients_(parameters, metrics)


def sharded_gradients(
    parameters: Sequence[Tensor],
    batch: Batch,
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    split: Callable[[Batch], Sequence[Batch]],
    shared: dict[str, Any],
) -> dict[str, Tensor]:
    """`divided_gradients` of parameters that are divided themselves (`polopt.core.shards`).

    Their gradients are added up within the pass backward, so every process makes equally many: one with fewer pieces
    than another takes a row again, to no effect.
    """
    every = cut(batch, ranks.parts())
    own = [piece for number in ranks.own() if rows_of(every[number]) for piece in split(every[number])]
    idle, luck = pieces(batch, 1)[0], torch.get_rng_state()
    metrics: dict[str, Tensor] = {}
    for parameter in parameters:
        parameter.grad = None
    passes = ranks.most(len(own))
    with ranks.apart():
        for number in range(passes):
            signals.check()
            value, sums = loss(own[number] if number < len(own) else idle, **shared)
            (value if number < len(own) else 0.0 * value).backward()
            if number < len(own):
                add_up(metrics, sums)
    shards.settle()
    _check_luck(luck, loss)
    whole = [parameter for parameter in parameters if not shards.divided(parameter)]
    return ranks.gradients_(whole, metrics, parameters[0].device)


def _check_luck(before: Tensor, loss: Any) -> None:
    if not torch.equal(before, torch.get_rng_state()):
        name = getattr(loss, "__qualname__", "a loss")
        raise UsageError(f"{name} draws random numbers, and several processes would all draw the same: use one")


def add_up(metrics: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    """Adds what a loss says of one piece of a batch to what it said of those before."""
    for name, each in sums.items():
        metrics[name] = metrics[name] + each.detach() if name in metrics else each.detach()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which those that are None are none."""
    return other if one is None else one if other is None else one.add_(other)

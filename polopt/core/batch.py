"""Batches are TensorDicts; these are the few operations that all parts share.

Keys and shapes are listed in docs/architecture.md. Slices of a TensorDict are views: nothing here or elsewhere writes
in place into a batch, and a method calls `clone(False)` (shared tensors, own keys) before it adds keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

Batch = TensorDictBase


def sides_of(batch: Batch) -> dict[str, Batch]:
    """The sides of a paired batch (batch_size [], `polopt.data.mixing.Paired`), each with rows of its own."""
    return {name: side for name, side in batch.items() if isinstance(side, TensorDictBase)}


def rows_of(batch: Batch) -> int:
    """Rows of a batch; of a paired one those of its largest side."""
    return len(batch) if batch.batch_dims else max(map(rows_of, sides_of(batch).values()), default=0)


def replaced(batch: Batch, sides: dict[str, Batch]) -> Batch:
    """A shallow copy of a paired batch with other sides; `update` would write into those that are there."""
    batch = batch.clone(False)
    for name, side in sides.items():
        batch.set(name, side)
    return batch


def pieces(batch: Batch, rows: int | None) -> Sequence[Batch]:
    """The batch in pieces of at most `rows` rows, all in one without. They are views.

    Every side of a paired batch is cut by itself into as many pieces of about equal size as the largest one needs: a
    side with fewer rows than there are pieces is empty in some. What is no side is the same in every piece.
    """
    if rows is None or rows_of(batch) <= rows:
        return (batch,)
    return batch.split(rows, dim=0) if batch.batch_dims else cut(batch, -(-rows_of(batch) // rows))


def cut(batch: Batch, count: int) -> Sequence[Batch]:
    """The batch in `count` pieces whose sizes differ by 1 at most, of a paired one each side."""
    if batch.batch_dims:
        end = [len(batch) * number // count for number in range(count + 1)]
        return [batch[end[number] : end[number + 1]] for number in range(count)]
    sides = {name: cut(side, count) for name, side in sides_of(batch).items()}
    return [replaced(batch, {name: parts[number] for name, parts in sides.items()}) for number in range(count)]


def flat(batch: Any, above: str = "") -> dict[str, Tensor]:
    """The tensors of a batch, or of dicts in dicts, by path: "obs/position".

    In a key, "~" is written "~0" and "/" "~1" (RFC 6901).
    """
    columns: dict[str, Tensor] = {}
    for key, value in batch.items():
        path = above + key.replace("~", "~0").replace("/", "~1")
        columns |= {path: value} if isinstance(value, Tensor) else flat(value, f"{path}/")
    return columns


def nested(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`: dicts in dicts."""
    batch: dict[str, Any] = {}
    for path, value in columns.items():
        *parents, leaf = (key.replace("~1", "/").replace("~0", "~") for key in path.split("/"))
        place = batch
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return batch


def opened(batch: Batch) -> tuple[dict[str, Any], tuple[torch.Size, torch.device | None]]:
    """The tensors of a batch in plain dicts, and what is needed to make it of them again (`closed`).

    A compiled function looks at all that it is given in each call, which takes many times as long for a TensorDict.
    """
    columns = {key: opened(value) if isinstance(value, TensorDictBase) else value for key, value in batch.items()}
    return columns, (batch.batch_size, batch.device)


def closed(columns: Mapping[str, Any], kind: tuple[torch.Size, torch.device | None]) -> Batch:
    """The inverse of `opened`."""
    size, device = kind
    values = {key: closed(*value) if isinstance(value, tuple) else value for key, value in columns.items()}
    return TensorDict(values, batch_size=size, device=device)


def weigh(batch: Batch) -> Batch:
    """Adds `weight` = mask / number of decisions, the mean over the decisions of one optimizer step.

    Written once per optimizer step, before micro-batches are split, so that a weighted sum over the pieces equals the
    weighted sum over the whole. `row_weight`, if the batch has it, at least 0 and shaped like the mask or like leading
    dimensions of it, says how much rows count beside the others: one of 0 might as well not be there, one of 2 as well
    be there twice. Every side of a paired batch gets weights of its own. Returns a shallow copy; `batch` keeps its
    keys. Raises ValueError for another shape.
    """
    if not batch.batch_dims:
        return replaced(batch, {name: weigh(side) for name, side in sides_of(batch).items()})
    batch = batch.clone(False)
    mask, rows = batch.get("mask", None), batch.get("row_weight", None)
    if mask is None and rows is None:
        count = batch.batch_size.numel()
        batch["weight"] = torch.full(batch.batch_size, 1.0 / max(count, 1), device=batch.device)
    else:
        ones = torch.ones(batch.batch_size, device=batch.device)
        weight = ones if mask is None else mask.to(ones.dtype)
        weight = weight if rows is None else weight * align_left(rows, weight)
        batch["weight"] = weight / positive(weight.sum())
    return batch


def positive(total: Tensor) -> Tensor:
    """`total`, and 1 where it is 0: what a sum of weights is divided by."""
    return torch.where(total > 0, total, 1.0)


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Sum of `weight * value`; the shapes must be equal: (B,) against (B, 1) is an error, never a broadcast."""
    same_shape(value=value, weight=weight)
    if value.dim() == 1 and value.dtype == weight.dtype:
        return torch.dot(weight, value)  # one operation, and one for its gradient
    return (weight * value).sum()


def same_shape(**tensors: Tensor) -> None:
    """Raises ValueError, naming every argument and its shape, unless all shapes are equal."""
    first, *others = [tensor.shape for tensor in tensors.values()]
    for shape in others:
        if shape != first:
            shapes = (f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise ValueError(f"shapes must be equal: {', '.join(shapes)}")


def align_left(value: Tensor, like: Tensor) -> Tensor:
    """Appends dimensions of size 1 until `value` has as many as `like`: [N, T] beside [N, T, K] becomes [N, T, 1].

    Right-aligned broadcasting would be silently wrong when the sizes happen to agree ([5, 5] beside [5, 5, 5]).
    Raises ValueError unless the leading dimensions of `like` are those of `value`.
    """
    if value.shape == like.shape:
        return value
    if like.shape[: value.dim()] != value.shape:
        raise ValueError(f"{tuple(value.shape)} is not a prefix of {tuple(like.shape)}")
    return value.reshape(*value.shape, *([1] * (like.dim() - value.dim())))


def spread(weight: Tensor, like: Tensor) -> Tensor:
    """The weight of each element of `like`: trailing dimensions that `weight` lacks share it in equal parts.

    The steps [N, T, K] of a chain beside a weight [N, T] count as their mean; a method that wants their sum gives a
    weight [N, T, K]. Shaped to broadcast with `like`. Raises ValueError unless `weight` has its leading dimensions.
    """
    aligned = align_left(weight, like)
    return aligned if aligned is weight else aligned / math.prod(like.shape[weight.dim() :])


def decision_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Sum of `spread(weight, value) * value`: as `weighted_mean`, where `value` may have decisions [N, T, K] that share
    the weight [N, T] of their row."""
    return (spread(weight, value) * value).sum()


def decision_sum(value: Tensor, like: Tensor) -> Tensor:
    """`value` summed over what a decision has beyond the dimensions of `like`, such as the steps of a chain."""
    return value.flatten(like.dim()).sum(-1) if value.dim() > like.dim() else value


def average(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each metric over the optimizer steps of an update; the keys are those of the first step."""
    return {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}

"""Passes over a batch in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core.batch import Batch, weigh
from polopt.values.returns import standardize, standardize_rows


def shuffled(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """A new order of so many rows, int64 [count]. An accelerator draws it itself, from a seed that `generator` draws:
    on the host a million rows take longer than to collect them."""
    if device.type == "cpu":
        return torch.randperm(count, generator=generator)
    there = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return torch.randperm(count, generator=there, device=device)


def minibatches(
    batch: Batch,
    size: int,
    epochs: int = 1,
    generator: torch.Generator | None = None,
    recurrent: bool = False,
    standardized: Sequence[str] = (),
) -> Iterator[Batch]:
    """Yields minibatches of about `size` decisions, `epochs` times over the batch, each time in a new order.

    Without `recurrent` the leading dims are flattened, decisions with a False `mask` are left out, and minibatches are
    [size]; with it whole rows are kept together, [rows, T], as many as hold `size` decisions (at least one): a
    recurrent policy replays a row from its start. The last minibatch of a pass may be smaller.

    Each minibatch is one optimizer step: its `weight` sums to 1, in the proportions of `batch["weight"]` if there is
    one, otherwise equal for every decision that exists. Columns that `standardized` names have mean 0 and standard
    deviation 1 over the decisions of each.

    Rows of tokens, batches [B] whose `mask` is [B, T], are kept whole as well, and there `size` counts rows. Their
    weights need not sum to 1 (a constant length, a sum over tokens), so a given `weight` keeps its scale per row: it is
    multiplied by B / rows of the minibatch, and the mean over the minibatches is the whole.
    """
    mask = batch.get("mask", None)
    tokens = mask is not None and mask.dim() > batch.batch_dims
    padded = mask is not None and (recurrent or tokens)
    if recurrent or tokens:
        flat = batch
        size = size if tokens else max(1, size * len(batch) // max(batch.batch_size.numel(), 1))
    else:
        flat = batch.reshape(-1)
        mask = flat.get("mask", None)
        if mask is not None:
            flat = picked(flat, mask.nonzero().flatten())
    device: Any = next(iter(flat.values(include_nested=True, leaves_only=True))).device
    for _ in range(epochs):
        whole = picked(flat, shuffled(len(flat), device, generator))  # permuted once: the parts are views
        weight = whole.get("weight", None)
        if weight is not None and not tokens:
            whole["weight"] = by_parts(shared_out, weight, size)
        if not padded:  # all at once: of small minibatches each operation takes longer to start than to run
            for name in standardized:
                whole[name] = by_parts(standardize_rows, whole[name], size)
        for part in whole.split(size):
            if weight is None:
                part = weigh(part)
            elif tokens:
                part["weight"] = part["weight"] / (len(part) / len(flat))
            if padded:
                for name in standardized:
                    part[name] = standardize(part[name], part["mask"])
            yield part


def picked(batch: Batch, rows: Tensor) -> Batch:
    """These rows [n] of a batch; indexing takes up to six times as long."""
    found: Any = batch.apply(lambda column: column.index_select(0, rows), batch_size=[len(rows), *batch.batch_size[1:]])
    return found


def by_parts(function: Callable[[Tensor], Tensor], column: Tensor, size: int) -> Tensor:
    """What `function`, [parts, elements] -> the same, makes of each `size` rows of a column [n, ...], and of those that
    are left."""
    even = len(column) // size * size
    parts = column[:even].unflatten(0, (even // size, size)).flatten(1), column[even:].flatten().unsqueeze(0)
    return torch.cat([function(part).flatten() for part in parts if part.numel()]).view_as(column)


def shared_out(weight: Tensor) -> Tensor:
    """Weights [parts, elements] in the same proportions, with the sum 1 over each part."""
    return weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)

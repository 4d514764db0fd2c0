"""Rows of tokens: padding, packing and trimming them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from polopt.core.batch import Batch, replaced, sides_of

ROW = ("prompt", "prompt_mask", "completion", "attention", "mask")  # what scoring a row takes
LEFT = ("prompt", "prompt_mask")  # padded on the left; every other token dimension on the right
NOT_TOKENS = ("turn_reward",)  # [B, M], one number a turn
PASS = 1 / 16  # of a budget: what a pass costs beside its positions


def widen(value: Tensor, size: int, left: bool = False) -> Tensor:
    """Pads the second dimension of [B, T, ...] with zeros to `size`, on the right or on the left."""
    missing = size - value.shape[1]
    if missing <= 0:
        return value
    padding = value.new_zeros(len(value), missing, *value.shape[2:])
    return torch.cat([padding, value] if left else [value, padding], 1)


def stack(values: list[Any], left: bool = False) -> Any:
    """Stacks what the steps recorded; where their second dimension (tokens) differs, it is padded with zeros first."""
    if isinstance(values[0], Tensor) and values[0].dim() > 1:
        width = max(value.shape[1] for value in values)
        values = [widen(value, width, left) for value in values]
    return torch.stack(values)


def pack(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves the tokens where `attention` [B, T] is True to the left, in order, in every column [B, T, ...], and cuts
    what no row needs; at least one position is left."""
    attention = columns["attention"]
    order = (~attention).to(torch.int8).argsort(dim=1, stable=True)[:, : max(int(attention.sum(1).max()), 1)]
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)
    return {name: value[rows, order] for name, value in columns.items()}


def used(mask: Tensor, left: bool = False) -> int:
    """Positions of a mask [B, T] that some row needs, counted from the left end (from the right end for masks that are
    padded on the left), at least 1."""
    needed = (mask.flip(1) if left else mask).any(0).nonzero()
    return int(needed.max()) + 1 if len(needed) else 1


def trim(rows: Batch) -> Batch:
    """Rows [B] of tokens without the padding that all of them have: left of prompts and right of completions.

    Reads prompt_mask [B, P] and attention [B, T]; cuts prompt, prompt_mask and every key [B, T, ...] of the length of
    the completion. At least one position stays. Nested rows (the two sides of a pair) are trimmed each by itself; other
    batches come back as they are. Shares the tensors of `rows`.
    """
    rows = rows.clone(False)
    for name, value in rows.items():
        if isinstance(value, TensorDictBase):
            rows[name] = trim(value)
    if "prompt_mask" in rows.keys():
        width = used(rows["prompt_mask"], left=True)
        rows.update({name: rows[name][:, -width:] for name in LEFT if name in rows.keys()})
    if "attention" in rows.keys():
        full, width = rows["attention"].shape[1], used(rows["attention"])
        for name, value in rows.items():
            if isinstance(value, Tensor) and value.shape[1:2] == (full,) and name not in LEFT + NOT_TOKENS:
                rows[name] = value[:, :width]
    return rows


def by_tokens(batch: Batch, budget: int) -> Sequence[Batch]:
    """The rows of a batch in trimmed pieces of at most `budget` positions, rows of about equal length together; a row
    that is longer is a piece by itself. Of all such cuts the one with the least padding, where a piece costs as much
    as `PASS` of the budget in positions: what a pass takes however short it is.

    Reads prompt_mask [B, P] and attention [B, T], of both sides where rows are pairs, which stay together. The sides of
    a paired batch (batch_size []) are cut each by itself; one with fewer pieces is empty in the last ones.
    """
    if not batch.batch_dims:
        cut = {name: [*by_tokens(side, budget)] for name, side in sides_of(batch).items()}
        count = max(map(len, cut.values()), default=0)
        for name, side in sides_of(batch).items():
            cut[name] += [side[:0]] * (count - len(cut[name]))
        return [replaced(batch, {name: parts[number] for name, parts in cut.items()}) for number in range(count)]
    sides = [batch] if "attention" in batch.keys() else [*sides_of(batch).values()]
    prompt, completion = (
        torch.stack([side[name].sum(1) for side in sides]).amax(0).clamp_min(1).tolist()
        for name in ("prompt_mask", "attention")
    )
    order = sorted(range(len(batch)), key=lambda row: prompt[row] + completion[row])
    costs, begins = [0.0], [0]  # of the best cut of the first so many rows, and where its last piece begins
    for end in range(1, len(order) + 1):
        widest, best, begin = (0, 0), math.inf, end - 1
        for start in range(end - 1, -1, -1):
            widest = max(widest[0], prompt[order[start]]), max(widest[1], completion[order[start]])
            positions = len(sides) * (end - start) * sum(widest)
            if positions > budget and start < end - 1:
                break
            if costs[start] + positions < best:
                best, begin = costs[start] + positions, start
        costs.append(best + PASS * budget)
        begins.append(begin)
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.append(order[begins[end] : end])
        end = begins[end]
    return [trim(batch[torch.tensor(rows, device=batch.device)]) for rows in reversed(parts)]

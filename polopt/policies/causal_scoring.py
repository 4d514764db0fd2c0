"""Values of the tokens of a batch from the logits of one or several causal models, which never stand whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polopt.core import ranks, shards
from polopt.core.batch import Batch, align_left
from polopt.data.tokenizing import pack_left
from polopt.policies.causal_passes import CausalPasses, shared_prompts

Value = Callable[..., Tensor]

PIECES = 8  # of the decisions of one call: the logits of so many never stand at once
LARGEST = 1 << 25  # numbers in the logits of one piece
SMALL = 1 << 22  # so many stand at once, and are kept for the backward pass: 16 MB


def read_logits(head: Any, states: Tensor) -> Tensor:
    return head(states)


def per_token(
    batch: Batch,
    value: Value,
    models: Sequence[CausalPasses],
    columns: Sequence[Tensor] = (),
    read: Callable[[Any, Tensor], Any] = read_logits,
) -> Tensor:
    """`value(logits of each model [C, V], token [C], *columns [C, ...]) -> [C, ...]` at every decision [B, T], 0
    elsewhere, in pieces.

    Reads `prompt`, `prompt_mask` [B, P], `completion`, `attention` and `mask` [B, T]; `columns` [B, T, ...] are what
    else `value` wants to know of a decision. It may be called again in the backward pass, so it draws nothing. What
    `read(head, states [C, H])` gives stands in for the logits, of models that are `headed`.
    """
    values = _per_token(batch, value, models, columns, read)
    if not torch.is_grad_enabled():
        shards.settle()  # else the pass backward needs what is gathered
    return values


def _per_token(
    batch: Batch,
    value: Value,
    models: Sequence[CausalPasses],
    columns: Sequence[Tensor],
    read: Callable[[Any, Tensor], Any],
) -> Tensor:
    completion, mask = batch["completion"], batch["mask"]
    prompt, width = batch["prompt"], batch["prompt"].shape[1]
    tokens = torch.cat((prompt, completion), 1)
    attention = torch.cat((batch["prompt_mask"], batch["attention"]), 1).bool()
    before = (attention.cumsum(1) - attention.long())[:, width:]  # real tokens that each decision has seen
    # Without holes, because attention windows count columns. A compiled graph has no sizes that depend on data.
    compiling = torch.compiler.is_compiling()
    tokens, attention = pack_left(tokens, attention, tokens.shape[1] if compiling else None)
    source = (tokens.shape[1] - attention.sum(1, keepdim=True) + before - 1).clamp_min(0)  # [B, T]
    if not all(model.headed for model in models):
        rows = [_row(models, value, *each) for each in zip(tokens, attention, source, completion, *columns)]
        values = torch.stack(rows)
        return torch.where(align_left(mask, values), values, 0.0)
    divided = any(model.divided for model in models)  # the processes make one pass each, whatever rows they have
    equal = None if compiling or divided else shared_prompts(batch)
    caches: list[Any] = [None if equal is None else model.prompt_cache() for model in models]
    if equal is not None and None not in caches:
        real, follows = batch["prompt_mask"], batch["attention"]
        hidden = [
            model.branched(prompt, real, completion, follows, *equal, cache) for model, cache in zip(models, caches)
        ]
        flat = torch.arange(mask.numel(), device=mask.device)
    else:
        hidden = [model.hidden(tokens, attention) for model in models]
        flat = (source + tokens.shape[1] * torch.arange(len(tokens), device=tokens.device).unsqueeze(1)).flatten()
    given = [completion.flatten(), *(column.flatten(0, 1) for column in columns)]
    needed = None if compiling else mask.flatten().nonzero().squeeze(1)
    if needed is not None:
        flat, given = flat[needed], [column[needed] for column in given]
    heads = [model.head for model in models]
    inputs = [*(state.flatten(0, 1)[flat] for state in hidden), *given]

    def piece(*inputs: Tensor) -> Tensor:
        logits = [read(head, state) for head, state in zip(heads, inputs)]
        return value(logits, *inputs[len(heads) :])

    vocabulary = len(heads[0].weight)
    if len(flat) * vocabulary <= SMALL:
        result = piece(*inputs)
    else:
        size = max(1, min(-(-len(flat) // PIECES), LARGEST // vocabulary))
        parts = [slice(start, start + size) for start in range(0, len(flat), size)]
        result = torch.cat([_recomputed(piece, *(x[part] for x in inputs)) for part in parts])
    if needed is None:
        values = result.unflatten(0, completion.shape)
        return torch.where(align_left(mask, values), values, 0.0)
    every = result.new_zeros(completion.numel(), *result.shape[1:])
    return every.index_copy(0, needed, result).unflatten(0, completion.shape)


def joined_per_token(batch: Batch, value: Callable[..., Tensor], models: Sequence[CausalPasses]) -> Tensor:
    """`per_token`; without gradients each process does it for rows of its own."""
    if torch.is_grad_enabled():
        return per_token(batch, value, models)
    even = any(model.divided for model in models)
    return ranks.joined(lambda rows: per_token(rows, value, models), batch, even=even)


def _row(
    models: Sequence[CausalPasses],
    value: Value,
    tokens: Tensor,
    attention: Tensor,
    source: Tensor,
    *given: Tensor,
) -> Tensor:
    """The values [T, ...] of one row [L], from logits that stand for this row only."""

    def compute(tokens: Tensor) -> Tensor:
        rows = [model.logits(tokens.unsqueeze(0), attention.unsqueeze(0))[0, source] for model in models]
        return value(rows, *given)

    return _recomputed(compute, tokens)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, whose intermediate results are computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")

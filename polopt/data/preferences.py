"""Preference pairs: tokenized, and served in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.epochs import Epochs
from polopt.tasks.text import Prompt, completion_text


def pairs(
    tokenizes: Any, prompts: Sequence[Prompt], chosen: Sequence[str], rejected: Sequence[str], **options: Any
) -> Batch:
    """Rows of tokens of both sides: `TensorDict({"chosen": rows, "rejected": rows, "index"}, [B])`.

    `tokenizes` is a language policy or its `tokenize(prompts, completions)`, which gets `options` too; the two sides
    may differ in length. `index` (int64 [B]) counts the pairs. Raises UsageError if the three differ in number.
    """
    if not len(prompts) == len(chosen) == len(rejected):
        raise UsageError(f"there are {len(prompts)} prompts, {len(chosen)} chosen and {len(rejected)} rejected answers")
    tokenize: Callable[..., Batch] = getattr(tokenizes, "tokenize", tokenizes)
    sides = {
        name: tokenize(list(prompts), list(s), **options) for name, s in (("chosen", chosen), ("rejected", rejected))
    }
    device = sides["chosen"].device
    index = torch.arange(len(prompts), device=device)
    return TensorDict({**sides, "index": index}, batch_size=[len(prompts)], device=device)


def pairs_of(task: Any, actor: Any, index: Sequence[int], extra: str | None = None) -> Batch:
    """The preference pairs of the problems `index` of a text task, tokenized by `actor`.

    `extra` names a column of further answers, one for each pair: where the task has it, the pairs hold those rows too,
    by that name. Raises UsageError for problems without a pair, and when only some have the column.
    """
    prompts, chosen, rejected = zip(*task.preferences(index))
    batch = pairs(actor, prompts, chosen, rejected)
    answers = [] if extra is None else [problem.columns.get(extra) for problem in task.problems(index)]
    if any(answer is not None for answer in answers):
        texts = [completion_text(answer) for answer in answers]
        missing = next((number for number, text in zip(index, texts) if text is None), None)
        if missing is not None:
            raise UsageError(f"prompt {missing} of {task.spec.name} has no text as its '{extra}', but others do")
        batch[extra] = actor.tokenize(list(prompts), texts)
    return batch


class Preferences(Epochs):
    """Minibatches [batch_size] of the pairs of `pairs`; see `Epochs`. Raises UsageError for other data."""

    def __init__(self, data: Batch, batch_size: int, generator: torch.Generator | None = None) -> None:
        missing = {"chosen", "rejected"} - set(data.keys())
        if missing:
            raise UsageError(f"preference pairs need '{min(missing)}'")
        super().__init__(data, batch_size, generator)

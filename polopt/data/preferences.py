"""Preference pairs: tokenized, and served in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.epochs import Epochs
from polopt.tasks.problem import Prompt
from polopt.tasks.prompt_rows import completion_text

SIDES = ("chosen", "rejected")


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


def recorded_rewards(task: Any, index: range, answers: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Rewards [2, B] of the chosen and the rejected answers to these problems, and which are known (bool [2, B]).

    They are the columns `chosen_reward` and `rejected_reward`, or what the task says of the answers. Raises UsageError
    where a column lacks a number, and where there is neither.
    """
    problems, name = task.problems(index), task.spec.name
    columns = [[problem.columns.get(f"{side}_reward") for problem in problems] for side in SIDES]
    if any(value is not None for column in columns for value in column):
        for side, column in zip(SIDES, columns):
            for number, value in zip(index, column):
                if not isinstance(value, (int, float)) or not isfinite(value):
                    raise UsageError(f"prompt {number} of {name} has no number as its '{side}_reward', but others do")
        known = torch.ones(2, len(index), dtype=torch.bool)
        return torch.tensor(columns, dtype=torch.get_default_dtype()), known
    if not task.scores or task.spec.info.get("turns", 1) > 1:
        raise UsageError(
            f"{name} has no columns 'chosen_reward' and 'rejected_reward', and cannot score answers in one turn: give "
            "--task.rewards module:function"
        )
    judge = task.twin(2 * len(index))
    judge.reset(index=torch.tensor([*index, *index]))
    _, reward, *_ = judge.step({"action": [*answers[0], *answers[1]]})
    return reward.to(torch.get_default_dtype()).reshape(2, -1), ~judge.failed.reshape(2, -1)


class Preferences(Epochs):
    """Minibatches [batch_size] of the pairs of `pairs`; see `Epochs`. Raises UsageError for other data."""

    def __init__(self, data: Batch, batch_size: int, generator: torch.Generator | None = None) -> None:
        missing = {"chosen", "rejected"} - set(data.keys())
        if missing:
            raise UsageError(f"preference pairs need '{min(missing)}'")
        super().__init__(data, batch_size, generator)

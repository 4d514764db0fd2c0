"""Worked solutions of a text task's problems, as rows to imitate."""

from __future__ import annotations

from typing import Any

import torch

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.base import Source
from polopt.data.mixing import cat_rows
from polopt.data.samplers import Sequential, Shuffled

OWN, IMITATED = 0, 1  # `origin` of a row: written by the policy, or a demonstration to imitate
NOT_SHOWN = {"log_prob": 0.0, "engine_log_prob": 0.0, "reference_log_prob": 0.0, "row_weight": 1.0}
"""What demonstrations lack of sampled rows, and the numbers that stand there for it."""


def demonstrated(task: Any, actor: Any, index: list[int]) -> Batch:
    """The demonstrations of problems `index`, tokenized by `actor`: rows [B] with prompt, prompt_mask, completion,
    attention, mask and index. Raises UsageError when a problem has none."""
    pairs = task.demonstrations(index)
    missing = next((number for number, (_, solution) in zip(index, pairs) if solution is None), None)
    if missing is not None:
        raise UsageError(f"problem {missing} of {task.spec.name} has no worked solution to learn from")
    rows = actor.tokenize([prompt for prompt, _ in pairs], [solution for _, solution in pairs])
    rows["index"] = torch.tensor(index, device=rows["mask"].device)
    return rows


def beside(own: Batch, *shown: Batch) -> Batch:
    """Completions of the policy [B] and demonstrations as the rows of one step.

    What all have stays, such as `origin`, and of the own rows the keys of `NOT_SHOWN`. Everything else (rewards,
    groups) is of own completions alone, and whatever is computed of it is computed before.
    """
    common = [name for name in own.keys() if all(name in rows.keys() for rows in shown)]
    extra = [name for name in own.keys() if name in NOT_SHOWN and name not in common]
    return cat_rows([own.select(*common, *extra), *(rows.select(*common) for rows in shown)], NOT_SHOWN)


class Demonstrated(Source):
    """`batch_size` demonstrations a call, of the problems that `sampler` draws; nothing is generated."""

    def __init__(self, task: Any, batch_size: int, sampler: Sequential | Shuffled) -> None:
        self.task = task
        self.batch_size = batch_size
        self.sampler = sampler

    def next(self, actor: Any) -> Batch:
        return demonstrated(self.task, actor, self.sampler.draw(self.batch_size))

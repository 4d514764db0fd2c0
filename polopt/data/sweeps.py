"""Completions of a whole pool of prompts, a part of it at a time, in between batches that train."""

from __future__ import annotations

from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.data.base import Acts
from polopt.data.prompt_groups import PromptGroups
from polopt.data.samplers import Sequential
from polopt.tasks.base import Task


class Sweep(PromptGroups):
    """`samples` completions of every prompt of a finite pool, in order, of at most `prompts` prompts in a batch.

    After `begin`, `next` is called until `left`, the number of prompts that are still to come, is 0. All of it is
    saved and charged to the ledger.
    """

    saved = ("left",)

    def __init__(self, task: Task, prompts: int, samples: int, *, ledger: Ledger | None = None) -> None:
        self.size: int = task.size  # type: ignore[attr-defined]
        super().__init__(task, 1, samples, sampler=Sequential(self.size), ledger=ledger)
        self.most = max(1, prompts)
        self.left = 0

    def begin(self) -> None:
        """All prompts are to come."""
        self.left = self.size

    def next(self, actor: Acts) -> Batch:
        self.count = min(self.left, self.most)
        batch = super().next(actor)
        self.left -= self.count
        return batch

"""Methods that are other methods, one after the other: imitation, then reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.core.batch import Batch
from polopt.data.base import Source
from polopt.evaluation.figures import Figure
from polopt.policies.base import Actor
from polopt.tasks.base import Task


@dataclass(frozen=True)
class Stage:
    """One stage: its learner, and how long it lasts, in ledger units from the stage's start (empty: to the end)."""

    name: str
    method: Method
    until: dict[str, int] = field(default_factory=dict)


class Staged(Method):
    """Delegates `collect` and `update` to the learner of the current stage; the loop does not know.

    Subclasses define `stage(index)`, a pure function of saved state (no search, no I/O) that returns None after the
    last stage, and may define `finish(index)` for the work between; its results go into `saved` attributes or shared
    modules. Modules that stages share are built before `super().build(task)` and handed to each learner as `parts`. On
    resume the saved scalars come first, then the stage is rebuilt, then its parts, then random state. A new
    source makes a stage; a learning-rate change does not.

    When the whole is built, each stage (of each name) is built once and dropped, so that a setting or a policy that a
    later stage refuses is refused before the first one trains.
    """

    saved = ("stage_index", "stage_start", "stage_progress_start")

    def build(self, task: Task) -> None:
        self.stage_index = 0
        self.stage_start = self.ledger.counts()
        self.stage_progress_start = 0.0
        self._enter(self.stage(0))
        self._check_stages()

    def _check_stages(self) -> None:
        with torch.random.fork_rng(devices=[]):  # what is drawn here leaves no trace
            index, names = 1, {self.stage_name}
            while (stage := self.stage(index)) is not None and stage.name not in names:
                names.add(stage.name)
                index += 1

    def stage(self, index: int) -> Stage | None:
        """The stage with this index, built anew, or None when there is none."""
        raise NotImplementedError  # abstract

    def finish(self, index: int) -> None:
        """The work after stage `index`, whose learner is still `self.learner`."""

    def _enter(self, stage: Stage | None) -> None:
        assert stage is not None
        self.learner = self.adopt(stage.method)
        self.stage_name, self.stage_until = stage.name, stage.until

    def rebuilt(self) -> None:
        self._enter(self.stage(self.stage_index))

    def figures(self) -> dict[str, Figure]:
        return self.learner.figures()

    @property
    def behavior(self) -> Actor:
        return self.learner.behavior

    @property
    def source(self) -> Source:  # type: ignore[override]
        return self.learner.source

    def collect(self) -> Batch:
        return self.learner.collect()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.learner.update(batch)
        spent = {unit: self.ledger[unit] - self.stage_start[unit] for unit in self.stage_until}
        spent = {unit: count + (unit == "updates") for unit, count in spent.items()}  # the loop counts this one later
        if self.stage_until and all(spent[unit] >= limit for unit, limit in self.stage_until.items()):
            self.finish(self.stage_index)
            following = self.stage(self.stage_index + 1)
            if following is not None:
                self.stage_index += 1
                self.stage_start = self.ledger.counts()
                self.stage_start["updates"] += 1
                self.stage_progress_start = self._progress
                self._enter(following)
        return metrics

    @property
    def progress(self) -> float:
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        """A stage with a length anneals over that length, the last one over what is left of the budget."""
        Method.progress.__set__(self, value)  # type: ignore[attr-defined]
        if self.stage_until:
            unit, limit = next(iter(self.stage_until.items()))
            part = (self.ledger[unit] - self.stage_start[unit]) / limit
        else:
            part = (value - self.stage_progress_start) / (1.0 - self.stage_progress_start)
        self.learner.progress = min(max(part, 0.0), 1.0 - 1e-9)

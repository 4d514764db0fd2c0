"""Several objectives made one reward by a weighted sum, so that any method can learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Step, Task


class Weighted(Task):
    """The rows of `task` with reward = `weights` · rewards; all else, and the state, is that of `task`.

    `weights` [m] may be set anew at any time; they are no state, and `spec.info["weights"]` says them. Raises
    UsageError for a task that names no objectives and for another number of weights than it has.
    """

    def __init__(self, task: Task, weights: Sequence[float]) -> None:
        names = task.spec.objectives
        if not names:
            raise UsageError(
                f"{task.spec.name} has one reward, so there is nothing to weigh: leave out --objective-weights"
            )
        if len(weights) != len(names):
            raise UsageError(
                f"{task.spec.name} has {len(names)} objectives ({', '.join(names)}), so it takes as many weights, not "
                f"{len(weights)}"
            )
        self.task = task
        self.weights = torch.tensor([float(weight) for weight in weights])

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        return self.task.reset(rows, index)

    def step(self, record: Mapping[str, Tensor]) -> Step:
        obs, _, terminated, truncated = self.task.step(record)
        rewards = self.task.facts["rewards"]
        return obs, rewards @ self.weights.to(rewards), terminated, truncated

    def twin(self, rows: int) -> Task:
        return Weighted(self.task.twin(rows), self.weights.tolist())

    def snapshot(self) -> list[Any]:
        return self.task.snapshot()

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        return self.task.restore(values, rows)

    def render(self) -> list[Any]:
        return self.task.render()

    def close(self) -> None:
        self.task.close()

    # What the rows are is the task's own.

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        info = {**self.task.spec.info, "weights": self.weights.tolist()}
        return replace(self.task.spec, scalar=True, info=info)

    @property
    def num(self) -> int:  # type: ignore[override]
        return self.task.num

    @property
    def environments(self) -> int:
        return self.task.environments

    @property
    def obs(self) -> Obs | None:  # type: ignore[override]
        return self.task.obs

    @property
    def first(self) -> Tensor:  # type: ignore[override]
        return self.task.first

    @property
    def facts(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        return self.task.facts

    @property
    def player(self) -> object:
        return self.task.player

    @player.setter
    def player(self, source: object) -> None:
        self.task.player = source

    @property
    def exact_restore(self) -> bool:  # type: ignore[override]
        return self.task.exact_restore

    @property
    def restore_note(self) -> str:  # type: ignore[override]
        return self.task.restore_note

"""Episodes that go on from where other rows have been: several ways from one state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.data.base import Acts
from polopt.data.episodes import Episodes, Played
from polopt.tasks.base import Task


class Branches(Episodes):
    """`samples` episodes from each of some places, values of `Task.snapshot` of this task or of one it is a twin of, to
    their ends: a batch [places samples, T] as of `Episodes`, in order of the places, which `group` counts.

    What is random in the task may repeat itself in all episodes from one place (`Task.restore`).
    """

    def __init__(self, task: Task, samples: int, *, ledger: Ledger | None = None) -> None:
        super().__init__(task, samples=samples, ledger=ledger)
        self.places: Sequence[Any] = ()

    def branch(self, places: Sequence[Any], actor: Acts) -> Batch:
        """The episodes from these places. Raises UsageError, one sentence, for a task that takes no row back."""
        self.places, self.count = places, len(places)
        return self.next(actor)

    def summaries(self, batch: Batch, played: Played) -> list[tuple[float, int]]:
        return []  # they are parts of episodes

    def next_starts(self) -> list[int]:
        return list(range(self.count))

    def start(self, task: Task, index: Tensor, rows: Tensor | None = None) -> Any:
        chosen = index if rows is None else index[rows]
        return task.restore([self.places[place] for place in chosen.tolist()], rows)

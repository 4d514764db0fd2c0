"""A replay that is full from the start, fades, and keeps how episodes ended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.data.base import Acts
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource


class Recycling(Replay):
    """A replay of single transitions that keeps how episodes ended: of those that new ones overwrite, the ones that
    terminated are stored again behind the new ones, and overwrite the next oldest, whatever these are."""

    def _store(self, columns: dict[str, Tensor], rows: int, mask: Tensor | None) -> None:
        count = len(next(iter(columns.values()))) if mask is None else int(mask.sum())
        oldest = self.added - len(self)
        end = min(max(self.added + count - self.capacity, oldest), self.added)
        ends: dict[str, Tensor] = {}
        if end > oldest:
            slots = torch.arange(oldest, end) % self.capacity
            slots = slots[self._columns["terminated"][slots]]
            ends = {path: column[slots] for path, column in self._columns.items()} if len(slots) else {}
        super()._store(columns, rows, mask)
        if ends:
            super()._store(ends, 1, None)


class FilledSource(ReplaySource):
    """A source that begins with a full replay: what the warm-up stored is repeated, in its order, until it is.

    `reward_scale` is the mean size of the rewards of the warm-up; 1 before it is over, and where all were 0. Samples
    have rewards as the task gave them. Without `fill` nothing is repeated.
    """

    saved = ("reward_scale",)  # type: ignore[assignment]

    def __init__(self, *args: Any, fill: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fill = fill
        self.reward_scale = 1.0

    def _warm_up(self, actor: Acts) -> None:
        super()._warm_up(actor)
        lived = self.replay.whole()
        self.reward_scale = float(lived["reward"].abs().mean()) or 1.0
        while self.fill and (room := self.replay.capacity - len(self.replay)):
            self.replay.add(lived[:room])

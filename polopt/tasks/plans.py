"""The actions of present episodes, which bring them back from their seeds, kept up to a length. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

LONGEST = 100_000  # steps of an episode: replaying them takes seconds
BYTES = 2**25  # of all rows together; while it is moved, three times as much is held


class Plans:
    """The actions [N, ...] of every step since the start of the oldest episode that is kept whole.

    An episode of more than `longest` steps is not kept: its row has no plan until it begins anew. That bounds memory,
    what a checkpoint holds, and the time of replaying.
    """

    def __init__(self, rows: int, space: spaces.Space) -> None:
        self._kept = np.empty((0, rows, *(space.shape or ())), dtype=space.dtype)
        self._end = 0
        step = max(1, rows * int(np.prod(space.shape or (1,))) * np.dtype(space.dtype).itemsize)
        self.longest = max(1, min(LONGEST, BYTES // step))

    def add(self, action: np.ndarray, steps: np.ndarray) -> None:
        """Keeps the actions [N, ...] of a step; the episodes had `steps` [N] before it."""
        if self._end == len(self._kept):
            self._make_room(steps)
        self._kept[self._end] = action
        self._end += 1

    def _make_room(self, steps: np.ndarray) -> None:
        """Drops what is from before the oldest kept episode, and doubles the room where that leaves less than half."""
        needed = int(steps[self.whole(steps)].max(initial=0))
        old = self._kept[self._end - needed : self._end]
        if 2 * needed >= len(self._kept):
            self._kept = np.empty((2 * needed + 64, *old.shape[1:]), old.dtype)
        self._kept[:needed] = old
        self._end = needed

    def whole(self, steps: np.ndarray) -> np.ndarray:
        """Which rows [N] have a plan, after `steps` [N] of their episodes."""
        return steps <= self.longest

    def of(self, steps: np.ndarray) -> list[np.ndarray]:
        """The actions of each row's present episode, [steps of the row, ...]; none of a row without a plan."""
        counts = np.where(self.whole(steps), steps, 0).tolist()
        return [self._kept[self._end - count : self._end, row].copy() for row, count in enumerate(counts)]

    def load(self, plans: Sequence[np.ndarray]) -> None:
        """Takes back what `of` gave; plans are aligned at their ends."""
        longest = max(map(len, plans))
        self._kept = np.zeros((longest, *self._kept.shape[1:]), self._kept.dtype)
        for row, plan in enumerate(plans):
            self._kept[longest - len(plan) :, row] = plan
        self._end = longest

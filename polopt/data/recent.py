"""The latest steps of a window that slides."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import TensorDict

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.base import Acts, Source
from polopt.data.rollouts import Rollouts


class Recent(Source):
    """The latest `steps` = T steps of every row, as one window [N, up to T] without holes, of which each call collects
    new ones by `source` and drops as many of the oldest once there are T. Where new steps begin another episode than
    the old ones left open, as after a resume that could not restore the task, the last old step is truncated.

    `window` is what there is now, None at first; `without_oldest` is what stays after the next call. All of it is
    state. Raises UsageError for steps that are no multiple of those of the source.
    """

    def __init__(self, source: Rollouts, steps: int) -> None:
        if steps % source.steps:
            raise UsageError(f"{steps} steps are no multiple of {source.steps}, which are collected at a time")
        self.source = source
        self.steps = steps
        self.window: Batch | None = None

    def next(self, actor: Acts) -> Batch:
        window, old = self.source.next(actor), self.without_oldest()
        if old is not None:
            window, seam = cast(Batch, torch.cat([old, window], 1)), old.shape[1]
            window["truncated"][:, seam - 1] |= window["first"][:, seam] & ~window["terminated"][:, seam - 1]
        self.window = window
        return window

    def without_oldest(self) -> Batch | None:
        """The steps [N, up to T - those of the source] that the next call keeps; None where there are none."""
        if self.window is None:
            return None
        kept = min(self.window.shape[1], self.steps - self.source.steps)
        return self.window[:, self.window.shape[1] - kept :] if kept else None

    def episodes(self) -> list[tuple[float, int]]:
        return self.source.episodes()

    def extra_state(self) -> dict[str, Any]:
        window = {} if self.window is None else self.window.flatten_keys("/").items()
        return dict(window)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.window = None
        if state:
            shape = state["reward"].shape[:2]
            self.window = TensorDict(dict(state), batch_size=shape).unflatten_keys("/").clone()

"""The source that collects into a replay and gives samples of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.scoring import SCORES, scoring
from polopt.data.base import Acts, Source, add_action_mask, put
from polopt.data.relabel import Delayed
from polopt.data.replay import Replay
from polopt.data.rollouts import Rollouts
from polopt.data.trajectories import Trajectories
from polopt.tasks.agents import AgentRows


class ReplaySource(Source):
    """Collects into a replay and returns samples [B] of it.

    The first call collects `warmup` environment steps with the actor that `warmup_actor` makes of the given one (random
    actions: `partial(Uniform, task.spec)`), or with the given one itself.
    Then every call returns one sample, and collects windows as needed to keep `ratio` samples per environment step:
    with one row, `steps=1` and ratio 1, that is one step and one sample a call. `store` makes of a window what is
    stored of it; by default all is.
    """

    saved = ("served", "collected", "warm")

    def __init__(
        self,
        rollouts: Rollouts | Trajectories | Delayed,
        replay: Replay,
        batch_size: int,
        warmup: int,
        ratio: float = 1.0,
        warmup_actor: Callable[[Any], Acts] | None = None,
        store: Callable[[Batch], Batch] | None = None,
    ) -> None:
        if ratio <= 0 or batch_size < 1 or warmup < 0:
            raise UsageError(
                f"a replay source needs batch_size >= 1, warmup >= 0 and ratio > 0, not {batch_size}, {warmup}, {ratio}"
            )
        if replay.n_step > 1 and isinstance(rollouts.task, AgentRows):
            name = rollouts.task.spec.name
            raise UsageError(f"n-step returns need rows without gaps, and agents of {name} may end before their team")
        self.rollouts = rollouts
        self.replay = replay
        self.batch_size = batch_size
        self.warmup = warmup
        self.ratio = ratio
        self.warmup_actor = warmup_actor
        self.store = store
        self.served = 0  # samples returned
        self.collected = 0  # environment steps after the warm-up
        self.warm = False

    def next(self, actor: Acts) -> Batch:
        if not self.warm:
            self._warm_up(actor)
        while self.served >= self.collected * self.ratio:
            self.collected += self._collect(actor)
        self.served += 1
        return put(self.replay.sample(self.batch_size), device_of(actor))

    def episodes(self) -> list[tuple[float, int]]:
        return self.rollouts.episodes()

    def _warm_up(self, actor: Acts) -> None:
        warmup_actor = actor if self.warmup_actor is None else self.warmup_actor(actor)
        done = 0
        while done < self.warmup:
            done += self._collect(warmup_actor)
        self.rollouts.forget()
        self.warm = True

    def _collect(self, actor: Acts) -> int:
        """Environment steps taken: of a team one, whatever its size."""
        before = self.rollouts.ledger.env_steps
        with scoring(not {*SCORES} <= {*self.replay.unread}):
            self._play(actor)
        return self.rollouts.ledger.env_steps - before

    def _play(self, actor: Acts) -> None:
        rollouts, here = self.rollouts, device_of(actor).type == "cpu"  # from elsewhere a window is copied at once
        if here and self.store is None and isinstance(rollouts, Rollouts) and not isinstance(rollouts.task, AgentRows):
            for step in rollouts.each(actor):
                add_action_mask(step)
                self.replay.append(step)
        else:
            window = rollouts.next(actor)
            self.replay.add(window if self.store is None else self.store(window))

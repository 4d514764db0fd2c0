"""Whole episodes as a stream of transitions with their Monte Carlo returns, and two sources one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.data.base import Acts, Source
from polopt.data.episodes import Episodes
from polopt.tasks.base import Task
from polopt.values.returns import discounted_returns

KEYS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "returns")


def returns_at_least(batch: Batch, discount: float, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Discounted return to go [..., T] of recorded episodes, a lower bound where a time limit cut them.

    What follows a time limit, or the end of the row, is taken to be the last reward for ever where that is negative,
    and 0 otherwise: exact for costs until the goal (-1 at every step), a bound for a reward at the goal. Rewards count
    as scale * reward + shift. Reads reward, terminated and truncated; episodes may follow each other in a row.
    """
    reward = scale * batch["reward"] + shift
    after = reward.clamp_max(0.0) / (1.0 - discount) if discount < 1.0 else torch.zeros_like(reward)
    return discounted_returns(reward, batch["terminated"], batch["truncated"], discount, next_value=after)


class Trajectories(Source):
    """Plays as many whole episodes a call as a task has environments, and returns their transitions [B], with `returns`
    of `returns_at_least`.

    The keys are `KEYS` and the task's facts; `next_obs` is the true successor. Rewards stay as they are: `scaling` is
    only that of the returns. It takes the place of `Rollouts` in a `ReplaySource`.
    """

    def __init__(
        self,
        task: Task,
        discount: float,
        ledger: Ledger | None = None,
        *,
        greedy: bool = False,
        scaling: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        self.task = task
        self.discount = discount
        self.scaling = scaling
        self.played = Episodes(task, task.environments, ledger=ledger, greedy=greedy)

    @property
    def ledger(self) -> Ledger:
        return self.played.ledger

    def next(self, actor: Acts) -> Batch:
        batch = self.played.next(actor).clone(False)
        batch["next_obs"] = batch["final_obs"]  # the successor of every step
        batch["returns"] = returns_at_least(batch, self.discount, *self.scaling)
        return batch.select(*KEYS, *self.task.spec.facts)[batch["mask"]]

    def episodes(self) -> list[tuple[float, int]]:
        return self.played.episodes()

    def forget(self) -> None:
        """Whole episodes leave nothing behind."""


class Then(Source):
    """The first `count` batches are those of `first`, all later ones those of `second`; None never changes."""

    saved = ("served",)

    def __init__(self, first: Source, second: Source, count: int | None) -> None:
        self.first = first
        self.second = second
        self.count = count
        self.served = 0

    @property
    def switched(self) -> bool:
        """Whether the next batch comes from `second`."""
        return self.count is not None and self.served >= self.count

    def next(self, actor: Acts) -> Batch:
        source = self.second if self.switched else self.first
        self.served += 1
        return source.next(actor)

    def episodes(self) -> list[tuple[float, int]]:
        return self.first.episodes() + self.second.episodes()

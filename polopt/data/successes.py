"""The best episodes of recorded data, as demonstrations, and a collection of them that grows while one plays."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.core.modules import device_of
from polopt.data.base import Acts, Source, put
from polopt.data.datasets import episode_returns
from polopt.data.replay import Replay
from polopt.data.trajectories import Trajectories
from polopt.tasks.base import Task


def best_episodes(data: Batch, share: float) -> Batch:
    """The decisions of that share of the episodes of a batch [B], at least one, that return most."""
    returns = episode_returns(data)
    count = max(1, round(share * len(returns)))
    chosen = torch.zeros(len(returns), dtype=torch.bool)
    chosen[returns.argsort(descending=True, stable=True)[:count]] = True
    return data[chosen[data["first"].cumsum(0) - 1]]


def admitted(reward: Tensor, ends: Tensor, bar: float) -> Tensor:
    """Which decisions [B] are of an episode whose rewards sum to at least `bar`; `ends` [B] is True at its last one."""
    episode = ends.cumsum(0) - ends.long()
    sums = torch.zeros(int(episode[-1]) + 1, dtype=torch.float64).index_add_(0, episode, reward.double())
    return sums[episode] >= bar


class Admitting(Trajectories):
    """`Trajectories` of which those that return at least `bar`, undiscounted, are added to `successes` as well."""

    def __init__(self, task: Task, discount: float, ledger: Ledger, successes: Replay, bar: float) -> None:
        super().__init__(task, discount, ledger)
        self.successes = successes
        self.bar = bar

    def next(self, actor: Acts) -> Batch:
        batch = super().next(actor)
        good = admitted(batch["reward"], batch["terminated"] | batch["truncated"], self.bar)
        if good.any():
            self.successes.add(batch[good])
        return batch


class Stored(Source):
    """Samples [batch_size] of a replay that others fill."""

    def __init__(self, replay: Replay, batch_size: int) -> None:
        self.replay = replay
        self.batch_size = batch_size

    def next(self, actor: Acts) -> Batch:
        return put(self.replay.sample(self.batch_size), device_of(actor))

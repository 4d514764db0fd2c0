from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.demonstrations import Samples
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.trajectories import KEYS, Then, Trajectories, returns_at_least
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task


def row(reward, terminated, truncated):
    columns = {"reward": torch.tensor(reward), "terminated": torch.tensor(terminated)}
    return TensorDict({**columns, "truncated": torch.tensor(truncated)}, [len(reward)])


def test_returns_by_hand():
    no, yes = False, True
    batch = row([0.0, 1.0, 0.0, 0.0, -1.0, -1.0], [no, yes, no, no, no, no], [no, no, no, yes, no, yes])
    assert returns_at_least(batch, 0.5).tolist() == pytest.approx([0.5, 1.0, 0.0, 0.0, -2.0, -2.0])
    shifted = returns_at_least(batch, 0.5, 2.0, -1.0)  # rewards -1, 1, -1, -1, -3, -3
    assert shifted.tolist() == pytest.approx([-0.5, 1.0, -2.0, -2.0, -6.0, -6.0])


def test_positive_rewards_are_not_continued_after_a_time_limit():
    batch = row([1.0, 1.0], [False, False], [False, True])
    assert returns_at_least(batch, 0.9).tolist() == pytest.approx([1.9, 1.0])
    assert returns_at_least(batch, 1.0).tolist() == pytest.approx([2.0, 1.0])


def test_trajectories_are_whole_episodes():
    ledger = Ledger()
    task = make_task("point-maze", num=3, horizon=7, speed=0.3)
    source = Trajectories(task, 0.9, ledger)
    batch = source.next(Uniform(task.spec))
    assert set(batch.keys()) == set(KEYS)
    assert ledger.episodes == 3
    ends = batch["terminated"] | batch["truncated"]
    assert ends.sum() == 3
    assert ends[-1]
    assert len(batch) == ledger.env_steps == sum(length for _, length in source.episodes())
    inside = ~ends[:-1]
    assert torch.equal(batch["next_obs"][:-1][inside], batch["obs"][1:][inside])
    moved = (batch["next_obs"] - batch["obs"]).abs().amax(-1)
    assert (moved <= 0.3 + 1e-6).all()
    assert torch.allclose(returns_at_least(batch, 0.9), batch["returns"])


def test_they_fill_a_replay_once_for_so_many_samples():
    task = make_task("point-maze", horizon=5)
    source = ReplaySource(Trajectories(task, 0.9), Replay(100, seed=0), 4, warmup=0, ratio=1.0)
    actor = Uniform(task.spec)
    sizes = []
    for _ in range(12):
        assert len(source.next(actor)) == 4
        sizes.append(len(source.replay))
    assert sizes == [5] * 5 + [10] * 5 + [15] * 2


def test_one_source_after_the_other_and_its_state():
    def build():
        sources = [Samples(TensorDict({"x": torch.full((3,), value)}, [3]), 2) for value in (0.0, 1.0)]
        return Then(*sources, count=2)

    source = build()
    assert [float(source.next(None)["x"][0]) for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]
    source, other = build(), build()
    source.next(None)
    source.next(None)
    assert source.switched
    restore(other, gather(source))
    assert float(other.next(None)["x"][0]) == 1.0
    source.count = None
    assert not source.switched

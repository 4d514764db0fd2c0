from __future__ import annotations

import torch

from polopt.core.ledger import Ledger
from polopt.data.branches import Branches
from polopt.networks import Network
from polopt.policies import Categorical
from polopt.tasks import make_task


def walked(task, actions):
    """Where the rows are after these actions, the same in all, and what is seen there."""
    obs = task.reset(index=torch.arange(task.num))
    for action in actions:
        obs, *_ = task.step({"action": torch.full((task.num,), action)})
    return task.snapshot(), obs


def test_every_place_has_its_episodes_to_their_ends():
    for name in ("grid/doors", "CartPole-v1"):
        task = make_task(name, 3)
        places, seen = walked(task, [1, 0, 1])
        ledger, policy = Ledger(), Categorical().build(task.spec, network=Network((8,)))
        source = Branches(task.twin(4), 2, ledger=ledger)  # fewer rows than episodes
        batch = source.branch(places, policy)
        assert len(batch) == 6
        assert batch["group"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(batch["obs"][:, 0].to(seen.dtype), seen.repeat_interleave(2, 0))
        ends = (batch["terminated"] | batch["truncated"]) & batch["mask"]
        assert ends.sum(1).tolist() == [1] * 6
        assert ledger.env_steps == int(batch["mask"].sum())
        assert source.episodes() == []
        horizon = task.spec.info["horizon"]
        assert int(batch["mask"].sum(1).max()) <= horizon - 3


def test_the_rows_that_were_left_stay_where_they_are():
    task = make_task("grid/doors", 2)
    places, seen = walked(task, [1])
    Branches(task.twin(4), 2).branch(places, Categorical().build(task.spec, network=Network((8,))))
    assert torch.equal(task.obs, seen)

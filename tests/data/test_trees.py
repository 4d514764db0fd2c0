"""Trajectory trees: their leaves are what every policy of the list does, and nothing is simulated twice."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.data.episodes import Episodes
from polopt.data.trees import Trees
from polopt.policies.listed import probabilities, tons
from polopt.policies.tabular import TabularMixture
from polopt.tasks import make_task
from polopt.tasks.base import Task
from polopt.tasks.lock import Layers

SMALL = {"states": 3, "horizon": 3, "layer": 1, "meet": 0.5}


class Short(Layers):
    """Ends with the first decision where that is 1; each decision pays 1."""

    def __init__(self, *args, **rest):
        super().__init__(*args, **(SMALL | rest))

    def advance(self, state, time, action):
        state, reward, _, facts = super().advance(state, time, action)
        return state, torch.ones_like(reward), (time == 0) & (action == 1), facts


class Fixed(Task):
    """A task without snapshots."""

    def __init__(self, task):
        self.spec, self.num = task.spec, 1

    def _twin(self, rows, seed):
        return Fixed(self)

    def reset(self, rows=None, index=None):
        return None


def grown(num=4, trees=5, task="layers", size=1, **options):
    task = make_task(task, num, 3, **(options or SMALL))
    policies = tons(task.spec, size)
    return task, policies, Trees(task, policies, trees, ledger=Ledger())


@pytest.mark.parametrize("size", [1, 2])
def test_a_tree_has_one_leaf_of_every_policy_and_it_is_its_episode(size):
    task, policies, source = grown(size=size)
    source.next(None)
    batch = source.next(None)  # the second one takes the next starts
    actor = TabularMixture(task.spec)
    for which in range(len(policies)):
        own = policies.act(torch.tensor(which), batch["obs", "step"], batch["obs", "state"]) == batch["action"]
        leaves = batch[own.all(1)]
        assert leaves["group"][:, 0].tolist() == list(range(5))
        actor.set(probabilities(policies.table(which), 2).unsqueeze(0), torch.ones(1))
        episodes = Episodes(make_task("layers", 5, 3, **SMALL), starts=range(5, 10)).next(actor)
        for key in ("action", "reward", "mask"):
            assert torch.equal(leaves[key], episodes[key]), key
        assert torch.equal(leaves["obs", "state"], episodes["obs", "state"])
        assert torch.equal(leaves["obs", "step"], episodes["obs", "step"])


def test_each_decision_is_simulated_once_whatever_the_rows():
    batches = []
    for num in (1, 3, 50):
        _, _, source = grown(num=num)
        batch = source.next(None)
        batches.append(batch)
        ways = torch.stack((batch["obs", "state"], batch["action"]), -1)
        prefixes = {
            (row[0], *row[1][:end]) for row in zip(batch["group"][:, 0].tolist(), map(flat, ways)) for end in (1, 2, 3)
        }
        assert source.ledger.env_steps == len(prefixes)
        assert source.ledger.env_steps == 5 * (2 + 3 + 4)  # singletons: one more way a step, and the usual one
        assert source.ledger.episodes == 5
    for batch in batches[1:]:
        assert (batch == batches[0]).all()


def flat(way):
    return [tuple(pair) for pair in way.tolist()]


def test_episodes_that_end_early_are_padded():
    _, _, source = grown(task=Short, trees=2, num=2)
    batch = source.next(None)
    lengths = batch["mask"].sum(1)
    assert set(lengths.tolist()) == {1, 3}
    assert torch.equal(lengths == 1, batch["action"][:, 0] == 1)
    assert not batch["reward"][~batch["mask"]].any()
    assert not batch["obs", "step"][~batch["mask"]].any()
    assert_close(batch["reward"][batch["mask"]], torch.ones(int(lengths.sum())))


def test_a_task_that_cannot_be_taken_back_is_refused_when_it_is_built():
    task = make_task("layers", 1, **SMALL)
    with pytest.raises(UsageError) as error:
        Trees(Fixed(task), tons(task.spec), 1)
    assert "cannot take a row back" in str(error.value)

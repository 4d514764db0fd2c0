"""Sources on a team: windows, episodes, replay and the ledger, in numbers of `Duo`."""

from __future__ import annotations

import pytest
import torch

from polopt.core.batch import weigh
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data import Episodes, Replay, ReplaySource, Rollouts, minibatches
from polopt.data.demonstrations import record
from polopt.data.trajectories import Trajectories
from polopt.evaluation.returns import evaluate_returns
from polopt.networks import Network
from polopt.policies import Auto
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows, per_agent
from polopt.values.critics import StateValue
from polopt.values.returns import gae, standardize
from tests.tasks.duo import Duo

T, F = True, False


class Number:
    """Every agent takes its own number as its action, and remembers how often it has acted."""

    def act(self, obs, carry=None, *, greedy=False):
        count = torch.zeros(len(obs), 1) if carry is None else carry["count"]
        return {"action": obs[:, 2].long(), "count": count}, {"count": count + 1}

    def env_action(self, action):
        return action


def rows(num=1, **options):
    return AgentRows(make_task(Duo, num=num, seed=5, **options))


def test_a_window_has_a_row_for_every_agent():
    """Two episodes of 4 steps in a window of 6: "b" ends at 2, and is gone until the team begins anew."""
    source = Rollouts(rows(num=2), steps=6)
    batch = source.next(Number())
    assert batch.batch_size == torch.Size([4, 6])
    a, b = batch[2], batch[3]
    assert a["reward"].tolist() == [10, 11, 12, 13, 10, 11]
    assert b["reward"].tolist() == [21, 22, 0, 0, 21, 22]
    assert a["mask"].all()
    assert b["mask"].tolist() == [T, T, F, F, T, T]
    assert a["terminated"].tolist() == [F, F, F, F, F, F]
    assert a["truncated"].tolist() == [F, F, F, T, F, F]
    assert b["terminated"].tolist() == [F, T, F, F, F, T]
    assert a["first"].tolist() == b["first"].tolist() == [T, F, F, F, T, F]
    assert a["obs"][:, 1].tolist() == [0, 1, 2, 3, 0, 1]
    assert a["final_obs"][:, 1].tolist() == [1, 2, 3, 4, 1, 2]
    assert b["final_obs"][1].tolist() == [b["obs"][0, 0], 2, 1]
    assert b["obs"][3].tolist() == [0, 0, 0]
    assert a["count"].flatten().tolist() == b["count"].flatten().tolist() == [0, 1, 2, 3, 0, 1]
    assert set(batch.keys()) & {"rewards", "alive", "terminations", "truncations"} == set()


def test_the_ledger_counts_teams():
    ledger = Ledger()
    source = Rollouts(rows(num=2), steps=6, ledger=ledger)
    source.next(Number())
    assert (ledger.env_steps, ledger.episodes) == (12, 2)
    assert source.episodes() == [(31 + 33 + 12 + 13, 4)] * 2


def test_windows_of_rows_are_those_of_the_team():
    task = make_task(Duo, num=3, seed=5)
    team = Rollouts(task, steps=5)

    class Teams(Number):
        def act(self, obs, carry=None, *, greedy=False):
            return {"action": obs[..., 2].long()}, {}

    joint = team.next(Teams())
    assert joint.batch_size == torch.Size([3, 5])
    assert joint["action"].shape == joint["rewards"].shape == (3, 5, 2)
    assert joint["alive"].dtype == joint["terminations"].dtype == torch.bool
    assert joint["alive"][0].tolist() == [[T, T], [T, T], [T, F], [T, F], [T, T]]
    assert joint["reward"][0].tolist() == [31, 33, 12, 13, 31]
    assert team.ledger.env_steps == 15
    apart, own = per_agent(joint, task.spec), Rollouts(rows(num=3), steps=5).next(Number())
    assert apart.batch_size == torch.Size([3, 2, 5])
    for name in apart.keys():
        assert torch.equal(apart[name].flatten(0, 1), own[name]), name


def test_rows_stepped_one_by_one_give_the_same_numbers():
    """`AgentRows` as a task of its own, reset row by row as a source would, beside the window of a source."""
    window = Rollouts(rows(), steps=6).next(Number())
    task = rows()
    obs = task.reset()
    for time in range(6):
        assert torch.equal(window["obs"][:, time], obs)
        assert torch.equal(window["first"][:, time], task.first)
        obs, reward, terminated, truncated = task.step({"action": obs[:, 2].long()})
        assert torch.equal(window["final_obs"][:, time], obs)
        assert torch.equal(window["reward"][:, time], reward)
        assert torch.equal(window["terminated"][:, time], terminated)
        assert torch.equal(window["truncated"][:, time], truncated)
        assert torch.equal(window["mask"][:, time], task.facts["mask"])
        obs = task.reset(terminated | truncated)


def test_a_stopped_window_goes_on_exactly():
    source = Rollouts(rows(num=2), steps=3)
    source.next(Number())
    other = Rollouts(rows(num=2), steps=3)
    restore(other, gather(source))
    one, same = source.next(Number()), other.next(Number())
    for name in one.keys():
        assert torch.equal(one[name], same[name]), name
    assert source.episodes() == other.episodes() == [(89, 4)] * 2


def test_episodes_are_those_of_teams():
    source = Episodes(rows(num=2), starts=[3, 4, 3])
    batch = source.next(Number())
    assert batch.batch_size == torch.Size([6, 4])
    assert batch["mask"][0].tolist() == [T, T, T, T]
    assert batch["mask"][1].tolist() == [T, T, F, F]
    assert batch["index"][:, 0].tolist() == [3, 3, 4, 4, 3, 3]
    assert torch.equal(batch["obs"][0], batch["obs"][4])
    assert source.episodes() == [(89, 4)] * 3
    assert (source.ledger.env_steps, source.ledger.episodes) == (12, 3)


def test_evaluation_gives_the_return_of_the_team():
    """Each reward of "b" is one higher by its action: 20 + 1, 21 + 1."""
    assert evaluate_returns(Number(), rows(num=2), 3) == {"return": 89.0, "return_std": 0.0, "length": 4.0}


def test_a_replay_stores_only_what_agents_decided():
    replay = Replay(100, seed=0)
    source = ReplaySource(Rollouts(rows(), 1), replay, batch_size=4, warmup=8, ratio=0.5)
    source.next(Number())
    assert source.rollouts.ledger.env_steps == 9  # the warm-up is in steps of teams, and one more for the first sample
    assert replay.added == 8 + 4 + 2  # two whole episodes of "a", two short ones of "b", and one step of both
    assert source.collected == 1
    source.next(Number())
    assert source.rollouts.ledger.env_steps == 11  # half a sample for each step
    source.next(Number())
    assert source.rollouts.ledger.env_steps == 13


def test_trajectories_and_demonstrations_are_those_of_agents():
    source = Trajectories(rows(num=2), 0.5)
    batch = source.next(Number())
    assert len(batch) == 2 * (4 + 2)
    assert source.ledger.env_steps == 8
    b = batch[4:6]
    assert b["reward"].tolist() == [21, 22]
    assert b["returns"].tolist() == [21 + 0.5 * 22, 22]
    data = record(Number(), rows(), 2)
    assert data["reward"].tolist() == [10, 11, 12, 13, 21, 22] * 2
    assert data["first"].tolist() == [T, F, F, F, T, F] * 2


def test_advantages_of_agents_are_those_of_their_own_episodes():
    """GAE, weights and standardization of a team's window [N, V, T], beside each agent's episode on its own."""
    torch.manual_seed(0)
    task = make_task(Duo, num=2, seed=5)

    class Teams:
        def act(self, obs, carry=None, *, greedy=False):
            return {"action": torch.zeros(obs.shape[:2], dtype=torch.int64)}, {}

        def env_action(self, action):
            return action

    batch = per_agent(Rollouts(task, steps=6).next(Teams()), task.spec)
    critic = StateValue(task.spec.agent, Network((8,)))
    value, next_value = critic.values(batch)
    assert value.shape == batch["mask"].shape == (2, 2, 6)
    advantage, _ = gae(batch["reward"], value, next_value, batch["terminated"], batch["truncated"], 0.9, 0.8)
    v = critic(batch["obs"]).detach()[1, 1].tolist()
    second = 21 - v[1]  # it terminates: nothing follows
    first = 20 + 0.9 * v[1] - v[0] + 0.9 * 0.8 * second
    assert advantage[1, 1, :2].tolist() == pytest.approx([first, second], abs=1e-4)
    v, last = critic(batch["obs"]).detach()[0, 0].tolist(), critic(batch["final_obs"]).detach()[0, 0].tolist()
    assert advantage[0, 0, 3].item() == pytest.approx(13 + 0.9 * last[3] - v[3], abs=1e-4)  # cut off: it goes on
    weighed = weigh(batch)
    assert weighed["weight"].tolist() == (batch["mask"] / batch["mask"].sum()).tolist()
    score = standardize(advantage, weighed["weight"])
    there = advantage[batch["mask"]]
    assert torch.allclose(score[batch["mask"]], (there - there.mean()) / there.std(), atol=1e-5)
    assert (score[~batch["mask"]] == 0).all()
    batch["advantage"] = advantage
    parts = list(minibatches(batch, 7))
    assert sorted(torch.cat([part["advantage"] for part in parts]).tolist()) == sorted(there.tolist())
    assert sum(len(part) for part in parts) == int(batch["mask"].sum()) == 20


def test_a_policy_acts_for_teams_as_for_rows():
    torch.manual_seed(0)
    task = make_task(Duo, num=3, seed=5)
    policy = Auto().build(task.spec.agent, network=Network((8,)))
    obs = task.reset()
    logits = policy.logits({"obs": obs})
    assert logits.shape == (3, 2, 2)
    assert torch.equal(logits.flatten(0, 1), policy.logits({"obs": AgentRows(task).obs}))

"""A team's agents as rows, with the numbers of `Duo` written out, and what a shared policy needs of the spaces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows, per_agent

from .duo import Duo
from .teams import Crew

T, F = True, False


def act(rows, *actions):
    return rows.step({"action": torch.tensor(actions)})


def test_every_agent_of_every_copy_is_a_row():
    joint = make_task(Duo, num=2, seed=5)
    rows = AgentRows(joint)
    assert (joint.num, rows.num, rows.environments) == (2, 4, 2)
    assert joint.spec.agents == 2
    assert joint.spec.obs.shape == (2, 3)
    assert joint.spec.action == spaces.MultiDiscrete([2, 2])
    assert rows.spec.agents == 1
    assert rows.spec.action == spaces.Discrete(2)
    assert rows.spec.obs == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert rows.spec.facts == {}
    assert rows.obs is None
    obs = rows.reset()
    assert obs[:, 1].tolist() == [0, 0, 0, 0]
    assert obs[:, 2].tolist() == [0, 1, 0, 1]
    assert obs[0, 0] == obs[1, 0] != obs[2, 0] == obs[3, 0]
    assert rows.first.tolist() == [T, T, T, T]


def test_a_row_ends_with_its_agent_and_waits_for_the_team():
    rows = AgentRows(make_task(Duo, seed=5))
    start = rows.reset()[0, 0].item()
    seen = []
    for time in range(4):
        obs, reward, terminated, truncated = act(rows, 1, 0)
        seen.append((reward.tolist(), terminated.tolist(), truncated.tolist(), rows.facts["mask"].tolist()))
        assert obs[0].tolist() == [start, time + 1, 0]
        assert obs[1].tolist() == ([start, time + 1, 1] if time < 2 else [0, 0, 0])
        done = terminated | truncated
        if time < 3:
            rows.reset(done)  # of one agent alone: the team goes on
            assert rows.obs[0].tolist() == [start, time + 1, 0]
    assert seen == [
        ([11, 20], [F, F], [F, F], [T, T]),
        ([12, 21], [F, T], [F, F], [T, T]),
        ([13, 0], [F, F], [F, F], [T, F]),
        ([14, 0], [F, F], [T, T], [T, F]),
    ]
    obs = rows.reset(done)
    assert obs[:, 1].tolist() == [0, 0]
    assert rows.first.tolist() == [T, T]


def test_equal_indices_start_equally_and_teams_reset_apart():
    rows = AgentRows(make_task(Duo, num=2, seed=5))
    rows.reset(index=torch.tensor([7, 7, 7, 7]))
    obs = rows.obs
    assert obs[0, 0] == obs[2, 0]
    act(rows, 0, 0, 0, 0)
    obs = rows.reset(torch.tensor([F, F, T, T]))
    assert obs[:, 1].tolist() == [1, 1, 0, 0]
    assert rows.first.tolist() == [F, F, T, T]


def test_rows_are_restored_in_the_middle_of_an_episode():
    rows = AgentRows(make_task(Duo, num=2, seed=5))
    rows.reset()
    for _ in range(3):
        act(rows, 1, 0, 0, 0)
    other = AgentRows(make_task(Duo, num=2, seed=5))
    restore(other, gather(rows))
    assert rows.exact_restore
    assert rows.restore_note == ""
    assert torch.equal(other.obs, rows.obs)
    for _ in range(2):
        one, same = act(rows, 0, 0, 1, 0), act(other, 0, 0, 1, 0)
        assert all(torch.equal(a, b) for a, b in zip(one, same))
        assert torch.equal(rows.facts["mask"], other.facts["mask"])
        over = one[2] | one[3]
        assert torch.equal(rows.reset(over), other.reset(over))


def test_a_task_of_one_agent_is_no_team():
    with pytest.raises(UsageError, match="CartPole-v1 has one agent: there is no team to take apart"):
        AgentRows(make_task("CartPole-v1"))


SPACES = [
    (spaces.Box(-1, 1, (2, 3), np.float32), spaces.Box(-1, 1, (3,), np.float32)),
    (spaces.MultiDiscrete([4, 4], start=[1, 1]), spaces.Discrete(4, start=1)),
    (spaces.MultiDiscrete([[2, 3], [2, 3]]), spaces.MultiDiscrete([2, 3])),
    (spaces.MultiBinary((2, 5)), spaces.MultiBinary((5,))),
    (
        spaces.Dict({"own": spaces.MultiDiscrete([4, 4]), "common": spaces.Box(0, 1, (7,), np.float32)}),
        spaces.Dict({"own": spaces.Discrete(4), "common": spaces.Box(0, 1, (7,), np.float32)}),
    ),
]


@pytest.mark.parametrize(("team", "agent"), SPACES)
def test_the_space_of_one_agent(team, agent):
    spec = Spec(team, spaces.MultiDiscrete([3, 3]), "duel", agents=2, shared=("common",))
    assert spec.agent == Spec(agent, spaces.Discrete(3), "duel")
    assert spec.agent.agent == spec.agent


def test_different_agents_share_no_policy():
    spec = Spec(spaces.Box(-1, 1, (2, 3), np.float32), spaces.MultiDiscrete([2, 3]), "duel", agents=2)
    with pytest.raises(UsageError, match="the actions of duel are different for different agents, which cannot share"):
        _ = spec.agent
    bounds = spaces.Box(np.array([[0.0], [1.0]]), np.array([[2.0], [2.0]]))
    with pytest.raises(UsageError, match="the actions of duel have different bounds for different agents"):
        _ = replace(spec, action=bounds).agent
    with pytest.raises(UsageError, match="the observations of duel have no axis of agents in the space Text"):
        _ = replace(spec, action=spaces.MultiDiscrete([2, 2]), obs=spaces.Text(5)).agent


def team(shape, **more):
    """A batch of teams of 3, each tensor numbered through."""
    count = int(np.prod(shape))
    flags = torch.zeros(shape, dtype=torch.bool)
    own = torch.arange(count * 3.0).reshape(*shape, 3)
    obs = TensorDict({"own": own.unsqueeze(-1), "common": torch.arange(float(count)).reshape(shape)}, shape)
    data = {"obs": obs, "log_prob": own, "reward": torch.arange(float(count)).reshape(shape)}
    return TensorDict({**data, "terminated": flags, "truncated": flags, **more}, shape)


SPEC = Spec(spaces.Discrete(2), spaces.MultiDiscrete([2, 2, 2]), agents=3, shared=("common", "state"))


def test_time_stays_last_and_what_is_shared_is_repeated():
    batch = per_agent(team([2, 4], state=torch.zeros(2, 4, 5)), SPEC)
    assert batch.batch_size == torch.Size([2, 3, 4])
    assert batch["log_prob"][1, 2].tolist() == [14, 17, 20, 23]
    assert batch["obs", "own"].shape == (2, 3, 4, 1)
    assert batch["obs", "common"][1, 2].tolist() == [4, 5, 6, 7]
    assert batch["reward"][1, 0].tolist() == [4, 5, 6, 7]  # without rewards of agents each has that of the team
    assert batch["state"].shape == (2, 3, 4, 5)
    assert "mask" not in batch.keys()


def test_without_time_agents_come_second():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    batch = per_agent(team([2], rewards=rewards), SPEC)
    assert batch.batch_size == torch.Size([2, 3])
    assert torch.equal(batch["reward"], rewards)
    assert "rewards" not in batch.keys()


def test_ends_of_agents_and_of_teams():
    """Columns: an agent terminates; one is cut off; the team is terminated; the team's clock runs out."""
    own = {
        "terminations": torch.tensor([[[T, F, F], [F, F, F], [F, F, F], [F, T, F]]]),
        "truncations": torch.tensor([[[F, F, F], [T, F, F], [F, F, F], [F, F, F]]]),
        "alive": torch.tensor([[[T, T, T], [F, T, T], [F, T, T], [F, T, T]]]),
    }
    ends = {"terminated": torch.tensor([[F, F, T, F]]), "truncated": torch.tensor([[F, F, F, T]])}
    exists = torch.tensor([[T, T, T, F]])
    batch = per_agent(team([1, 4], **own, **ends, mask=exists), SPEC)[0]
    assert batch["terminated"].tolist() == [[T, F, T, F], [F, F, T, T], [F, F, T, F]]
    assert batch["truncated"].tolist() == [[F, T, F, T], [F, F, F, F], [F, F, F, T]]
    assert batch["mask"].tolist() == [[T, F, F, F], [T, T, T, F], [T, T, T, F]]


def test_a_key_without_an_axis_of_agents_is_named():
    with pytest.raises(ValueError, match=r"'value' of shape \(2, 4\) has no axis of 3 agents, and is not shared"):
        per_agent(team([2, 4], value=torch.zeros(2, 4)), SPEC)


def test_a_batched_world_of_a_team_is_one_too():
    """Without `alive` nobody leaves; what the agents share is repeated, in observations and in facts."""
    rows = AgentRows(make_task(Crew, num=2, seed=5))
    obs = rows.reset()
    assert rows.spec.obs["place"].shape == (1,)
    assert obs["goal"].shape == obs["place"].shape == (6, 1)
    assert torch.equal(obs["goal"][0], obs["goal"][2])
    after, reward, _, truncated = act(rows, 1, 1, 0, 0, 1, 1)
    assert (after["place"] - obs["place"]).flatten().tolist() == [1, 1, -1, -1, 1, 1]
    assert torch.equal(reward, -(after["place"] - obs["goal"]).abs().flatten())
    assert dict(rows.spec.facts) == {"goal": (1,)}
    assert torch.equal(rows.facts["goal"], obs["goal"])
    assert rows.facts.keys() == {"goal"}
    for _ in range(4):
        assert not truncated.any()
        _, _, _, truncated = act(rows, 0, 0, 0, 0, 0, 0)
    assert truncated.all()


def test_twins_are_whole_teams_with_starts_of_their_own():
    rows = AgentRows(make_task(Crew, num=2, seed=5))
    first = rows.reset()["place"]
    twin = rows.twin(6)
    assert (twin.num, twin.joint.num) == (6, 2)
    assert not torch.equal(twin.reset()["place"], first)
    assert torch.equal(rows.obs["place"], first)
    with pytest.raises(UsageError, match="Crew has teams of 3, which 4 rows do not make"):
        rows.twin(4)


def test_teams_are_taken_back_whole():
    rows = AgentRows(make_task(Crew, num=2, seed=5))
    first = rows.reset()["place"].clone()
    where = rows.snapshot()
    assert len(where) == 6
    act(rows, 1, 1, 1, 1, 1, 1)
    obs = rows.restore(where[3:], torch.tensor([F, F, F, T, T, T]))
    assert (obs["place"] - first).flatten().tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.equal(rows.restore(where)["place"], first)
    with pytest.raises(UsageError, match="the agents of Crew are taken back together, as a team"):
        rows.restore(where[:1], torch.tensor([T, F, F, F, F, F]))

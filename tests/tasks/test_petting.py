"""PettingZoo's parallel environments as tasks of a team."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.test import parallel_api_test

from polopt.core.errors import RunError, UsageError
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows
from polopt.tasks.petting import TeamEnv

from .duo import Duo


class Uneven(Duo):
    """ "b" sees less and has an action more."""

    def __init__(self, **options):
        super().__init__(**options)
        self.observation_spaces["b"] = spaces.Box(-1, 1, (2,), np.float32)
        self.action_spaces = {"a": spaces.Discrete(2), "b": spaces.Discrete(3)}

    def _observations(self):
        return {name: obs[: 3 if name == "a" else 2] for name, obs in super()._observations().items()}


class Late(Duo):
    """ "b" comes in after a step."""

    def reset(self, seed=None, options=None):
        result = super().reset(seed, options)
        self.agents = ["a"]
        return result

    def step(self, actions):
        result = super().step(actions)
        self.agents = ["a", "b"]
        return result


class Silent(Duo):
    def step(self, actions):
        return {}, *super().step(actions)[1:]


class Stateless(Duo):
    def state(self):
        raise NotImplementedError


class Alone(Duo):
    possible_agents = ["a"]


def test_our_own_environment_is_one_of_pettingzoos():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(Duo(), num_cycles=20)


@pytest.mark.parametrize("cut", [True, False])
def test_a_team_steps_as_one(cut):
    env = TeamEnv(Duo(cut=cut))
    obs, _ = env.reset(seed=3)
    start = obs[0, 0]
    assert obs.tolist() == [[start, 0, 0], [start, 0, 1]]
    rewards, alive, ends = [], [], []
    for _ in range(4):
        obs, reward, terminated, truncated, info = env.step(np.array([1, 0]))
        rewards.append((reward, info["rewards"].tolist()))
        alive.append(info["alive"].tolist())
        ends.append((terminated, truncated, info["terminations"].tolist(), info["truncations"].tolist()))
    assert rewards == [(31, [11, 20]), (33, [12, 21]), (13, [13, 0]), (14, [14, 0])]
    assert alive == [[True, True], [True, True], [True, False], [True, False]]
    assert obs.tolist() == [[start, 4, 0], [0, 0, 0]]
    assert ends[1] == (False, False, [False, True], [False, False])
    assert ends[3] == (not cut, cut, [not cut, False], [cut, False])


def test_facts_of_agents_are_facts_of_the_task():
    task = make_task(Duo, num=2, seed=5, state=True)
    assert task.spec.agents == 2
    assert task.spec.info["agent_names"] == ["a", "b"]
    assert dict(task.spec.facts)["rewards"] == (2,)
    assert task.spec.state == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    obs = task.reset()
    _, reward, _, _ = task.step({"action": torch.tensor([[1, 0], [0, 1]])})
    assert reward.tolist() == [31, 31]
    assert task.facts["rewards"].tolist() == [[11, 20], [10, 21]]
    assert task.facts["alive"].dtype == torch.bool
    assert task.facts["state"].tolist() == [[obs[0, 0, 0], 0], [obs[1, 0, 0], 0]]
    assert task.facts["next_state"].tolist() == [[obs[0, 0, 0], 1], [obs[1, 0, 0], 1]]
    rows = AgentRows(task)
    assert dict(rows.spec.facts) == {"state": (2,), "next_state": (2,)}
    rows.step({"action": torch.tensor([0, 0, 0, 0])})
    assert rows.facts["state"][:, 1].tolist() == [1, 1, 1, 1]


def test_worker_processes_give_the_same():
    played = []
    for workers in (0, 2):
        task = make_task("tests.tasks.duo:duo", num=2, seed=5, workers=workers, box=True)
        obs = task.reset()
        steps = [task.step({"action": torch.full((2, 2, 1), 0.5)}) for _ in range(3)]
        played.append([obs, *(step[1] for step in steps), task.facts["rewards"], task.facts["alive"]])
        task.close()
    assert all(torch.equal(a, b) for a, b in zip(*played))
    assert played[0][3].tolist() == [12.5, 12.5]


def test_agents_may_be_told_who_they_are():
    env = TeamEnv(Duo(), agent_id=True)
    obs, _ = env.reset(seed=3)
    assert obs[:, 3:].tolist() == [[1, 0], [0, 1]]
    assert env.observation_space.contains(obs)
    assert AgentRows(make_task(Duo, agent_id=True)).spec.obs.shape == (5,)


def test_smaller_agents_are_filled_up():
    env = TeamEnv(Uneven(), pad=True, agent_id=True)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    assert obs["obs"][1].tolist() == [obs["obs"][0, 0], 0, 0]
    assert obs["action_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert obs["agent_id"].tolist() == [[1, 0], [0, 1]]
    assert env.action_space == spaces.MultiDiscrete([3, 3])
    for _ in range(3):
        obs = env.step(np.array([0, 2]))[0]
    assert obs["action_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]  # "b" is gone: any action will do
    rows = AgentRows(make_task(Uneven, pad=True))
    assert rows.reset()["action_mask"].tolist() == [[True, True, False], [True, True, True]]


def test_a_team_of_one_is_a_task_of_one_agent():
    task = make_task(Alone, seed=5)
    assert task.spec.agents == 1
    assert task.spec.action == spaces.Discrete(2)
    obs = task.reset()
    _, reward, _, _ = task.step({"action": torch.tensor([1])})
    assert obs.shape == (1, 3)
    assert reward.tolist() == [11]
    assert dict(task.facts) == {}


def test_discrete_observations_and_action_masks_have_an_axis_of_agents():
    class Symbols(Duo):
        def __init__(self):
            super().__init__()
            mask = spaces.Box(0, 1, (2,), np.int8)
            space = spaces.Dict({"symbol": spaces.Discrete(4, start=1), "action_mask": mask})
            self.observation_spaces = dict.fromkeys(self.possible_agents, space)

        def _observations(self):
            return {
                name: {"symbol": 1 + self.time % 4, "action_mask": np.array([1, 0], np.int8)} for name in self.agents
            }

    rows = AgentRows(make_task(Symbols, num=2))
    assert rows.spec.obs["symbol"] == spaces.Discrete(4)
    obs = rows.reset()
    assert obs["symbol"].tolist() == [0, 0, 0, 0]
    assert obs["action_mask"].tolist() == [[True, False]] * 4
    obs, *_ = rows.step({"action": torch.zeros(4, dtype=torch.int64)})
    assert obs["symbol"].tolist() == [1, 1, 1, 1]
    assert rows.exact_restore  # its random probe keeps to the mask


@pytest.mark.parametrize("name", ["pz/mpe/simple_spread_v3", "pz/sisl/pursuit_v5", "pz/sisl/pursuit-v5"])
def test_environments_by_id(name):
    options = {"N": 2, "max_cycles": 3} if "spread" in name else {"n_pursuers": 3, "max_cycles": 3}
    task = make_task(name, num=2, seed=5, **options)
    obs = task.reset()
    assert obs.shape[:2] == (2, task.spec.agents)
    for _ in range(3):
        _, reward, _, truncated = task.step({"action": torch.zeros(2, task.spec.agents, dtype=torch.int64)})
        assert torch.allclose(task.facts["rewards"].sum(1), reward)
    assert truncated.all()


def test_an_object_is_copied_for_each_row():
    env = Duo(length=2)
    task = make_task(env, num=2, seed=5)
    assert task.reset().shape == (2, 2, 3)
    assert env.agents == []


@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        (
            "pz/mpe/simple_spred_v3",
            {},
            "there is no task 'pz/mpe/simple_spred_v3'; did you mean 'pz/mpe/simple_spread_v3'",
        ),
        ("pz/chess_v6", {}, "there is no task 'pz/chess_v6'"),
        (
            "pz/mpe/simple_tag_v3",
            {},
            "the agents of pz/mpe/simple_tag_v3 have different observation spaces, adversary_0",
        ),
        (
            Uneven,
            {},
            r"different observation spaces, a Box\(.*\) and b Box\(.*\): --task.pad true fills up the smaller ones",
        ),
        (Stateless, {"state": True}, "Stateless has no view of the whole state: leave out --task.state"),
        (Duo, {"preset": "image"}, "the preset 'image' is for one agent, and Duo has a team"),
        (Duo(), {"length": 3}, r"is an environment already: \['length'\] cannot be set any more"),
        (
            "tests.tasks.envs:counter",
            {"pad": True},
            "counter cannot be made: TypeError: .* unexpected keyword argument 'pad'",
        ),
    ],
)
def test_what_cannot_be_made_is_said_in_one_sentence(task, options, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        make_task(task, **options)
    assert "\n" not in str(caught.value)


def test_different_actions_cannot_be_filled_up():
    class Mixed(Duo):
        def __init__(self):
            super().__init__()
            self.action_spaces = {"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (1,), np.float32)}

    sentence = "different action spaces, a Discrete.* and b Box.*, which no shared policy can have"
    with pytest.raises(UsageError, match=sentence):
        make_task(Mixed, pad=True)


def test_agents_that_take_turns_are_refused():
    from pettingzoo.utils.conversions import parallel_to_aec

    with pytest.raises(UsageError, match="take turns; polopt serves PettingZoo's parallel environments"):
        make_task(lambda: parallel_to_aec(Duo()))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Late, "b came in during an episode; a team is complete from the start"),
        (Silent, "there is no observation of a"),
    ],
)
def test_faults_name_the_agent(make, fault):
    task = make_task(make, seed=5)
    task.reset()
    with pytest.raises(RunError, match=fault):
        task.step({"action": torch.zeros(1, 2, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("name", "package"), [("pz/mpe/simple_spread_v3", "mpe2"), ("pz/sisl/pursuit_v5", "pettingzoo")]
)
def test_without_the_package_the_extra_is_named(name, package, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda part, *rest: None if part == package else found(part, *rest)
    )
    with pytest.raises(UsageError, match=r"needs a package that is not installed: pip install \"polopt\[pz\]\""):
        make_task(name)


def test_a_package_that_one_family_needs_is_named():
    if importlib.util.find_spec("pymunk"):
        pytest.skip("pymunk is installed")
    sentence = r"needs 'pymunk', which is not installed: pip install \"pettingzoo\[butterfly\]\""
    with pytest.raises(UsageError, match=sentence):
        make_task("pz/butterfly/pistonball_v6")

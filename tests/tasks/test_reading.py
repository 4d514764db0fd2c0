"""Everybody who reads an environment sees the same numbers: sources, evaluation, data sets and `predict`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

import polopt
from polopt.core.errors import RunError, UsageError
from polopt.core.modules import default_dtype
from polopt.data.demonstrations import record
from polopt.networks import Network
from polopt.policies import Auto
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.tasks.spaces import rounded, without_choice

OBS = {
    "float32": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "whole numbers": spaces.Box(-5, 5, (3,), np.int32),
    "bytes": spaces.Box(0, 3, (4,), np.uint8),
    "picture": spaces.Box(0, 255, (12, 12, 1), np.uint8),
    "from 1": spaces.Discrete(4, start=1),
    "factors from 2": spaces.MultiDiscrete([3, 2], start=[2, 0]),
    "bits": spaces.MultiBinary(3),
    "nested": spaces.Dict({"a": spaces.Discrete(3, start=3), "b": spaces.Dict({"c": spaces.Box(0, 1, (2,))})}),
}


THREE = spaces.Discrete(3)


class Shown(gymnasium.Env):
    """Shows samples of a space, five to an episode; `shown` are those since the reset."""

    def __init__(self, obs: spaces.Space, action: spaces.Space = THREE, change: Any = lambda obs: obs) -> None:
        self.observation_space, self.action_space, self.change = obs, action, change
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.shown = [self.change(self.observation_space.sample())]
        return self.shown[-1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.actions.append(np.array(action))
        self.shown.append(self.change(self.observation_space.sample()))
        return self.shown[-1], 1.0, len(self.shown) == 6, False, {}


def policy_for(task: Any) -> Any:
    torch.manual_seed(0)
    return Auto().build(task.spec, network=Network((8,)))


@pytest.mark.parametrize("name", OBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predict_reads_what_training_reads(name, dtype):
    env = Shown(OBS[name])
    with default_dtype(dtype):
        task = make_task(lambda: env)
        seen = task.reset()
        policy = policy_for(task)
        action = policy.env_action(policy.act(seen, greedy=True)[0]["action"])
        outputs = policy.net(seen)
    read = policy._read(env.shown[0])[0]
    assert policy.predict(env.shown[0]) == action.item()  # in whatever precision the caller computes
    with default_dtype(dtype):
        torch.testing.assert_close(policy.net(policy._read(env.shown[0])[0]), outputs, rtol=0, atol=0)
    if not isinstance(read, TensorDict) and not read.is_floating_point():
        assert torch.equal(read, seen)


@pytest.mark.parametrize(
    "layout", [lambda x: x[::-1], lambda x: np.asfortranarray(x), lambda x: np.broadcast_to(x, x.shape), list]
)
def test_any_memory_layout_is_read(layout):
    task = make_task(lambda: Shown(spaces.Box(-1.0, 1.0, (4, 3), np.float32)))
    policy = policy_for(task)
    obs = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    shown = layout(obs)
    assert policy.predict(shown) == policy.predict(np.array(shown, dtype=np.float32))


def test_bytes_that_are_no_picture_are_numbers():
    """Box(0, 1) of ones arrives as 1, not as 1 / 255; pixels arrive as shares of 255."""
    for high, value, expected in ((1, 1, 1.0), (255, 255, 1.0), (255, 51, 0.2)):
        from polopt.networks.encoders import make_encoder

        space = spaces.Box(0, high, (4,), np.uint8)
        encoded = make_encoder(space)(torch.full((1, 4), value, dtype=torch.uint8))
        torch.testing.assert_close(encoded, torch.full((1, 4), expected))


def test_evaluation_and_the_loop_of_a_user_give_the_same_return(tmp_path):
    """The right action is told by an observation that counts from 1."""

    class Told(Shown):
        def step(self, action: Any) -> Any:
            right = int(action) == int(self.shown[-1]) - 1
            obs, _, terminated, truncated, info = super().step(action)
            return obs, float(right), terminated, truncated, info

    def make() -> gymnasium.Env:
        return Told(spaces.Discrete(3, start=1))

    run = polopt.train("ppo", make, steps=2000, out=tmp_path / "run", loggers=(), window=64, lr=1e-2)
    policy, env = polopt.load(run.folder, task=make), make()
    obs, _ = env.reset(seed=3)
    total, over = 0.0, False
    while not over:
        obs, reward, over, _, _ = env.step(policy.predict(obs))
        total += reward
    assert total == 5.0 == polopt.evaluate(run.folder, task=make, episodes=2)["return"]


# What an environment must not do


@pytest.mark.parametrize("workers", [0, 1])
def test_floats_in_a_space_of_bytes_are_a_fault(workers):
    task = make_task(Floats, workers=workers)
    said = r"float32 numbers for a space of uint8: cast them, or declare that space \(row 0, step 0 of the"
    with pytest.raises(RunError, match=said):
        task.reset()
    task.close()


class Floats(Shown):
    def __init__(self) -> None:
        super().__init__(spaces.Box(0, 255, (4,), np.uint8), change=lambda obs: obs.astype(np.float32))


def test_numbers_may_narrow_within_their_kind():
    for change in (lambda obs: obs.astype(np.float64), list):
        make_task(lambda change=change: Shown(spaces.Box(-1, 1, (2,), np.float32), change=change)).reset()
    make_task(lambda: Shown(spaces.MultiBinary(2), change=lambda obs: obs.astype(np.int64))).reset()
    for change, said in (
        (lambda obs: obs.astype(np.int64) + 300, "the number 30[01] for a space of int8"),
        (lambda obs: obs.astype(np.uint8) + 0.5, "float64 numbers for a space of int8"),
    ):
        task = make_task(lambda change=change: Shown(spaces.MultiBinary(2), change=change))
        with pytest.raises(RunError, match=said):
            task.reset()


class Masked(Shown):
    """Its mask forbids every action from the step `at` on; the last observation is the sixth."""

    def __init__(self, at: int, action: spaces.Space = THREE, forbidden: slice = slice(None)) -> None:
        size = 3 if isinstance(action, spaces.Discrete) else int(action.nvec.sum())
        super().__init__(spaces.Dict({"x": spaces.Box(0, 1, (2,)), "action_mask": spaces.MultiBinary(size)}), action)
        self.at, self.forbidden = at, forbidden
        self.shown: list[Any] = []
        self.change = self.masked

    def reset(self, **options: Any) -> Any:
        self.shown = []
        return super().reset(**options)

    def masked(self, obs: Any) -> Any:
        mask = np.ones_like(obs["action_mask"])
        if len(self.shown) >= self.at:
            mask[self.forbidden] = 0
        return obs | {"action_mask": mask}


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize(
    ("action", "forbidden"), [(spaces.Discrete(3), slice(None)), (spaces.MultiDiscrete([2, 3]), slice(2, 5))]
)
def test_a_mask_that_forbids_everything_is_a_fault_before_anybody_acts(action, forbidden, warmup):
    env = Masked(2, action, forbidden)
    task = make_task(lambda: env)
    policy = policy_for(task)
    actor = Uniform(task.spec, like=policy) if warmup else policy
    with pytest.raises(RunError, match=r"action_mask forbids every action \(row 0, step 2 of the episode\)"):
        record(actor, task, 1)
    assert len(env.actions) == 2
    env.reset(seed=0)
    env.step(0), env.step(0)
    with pytest.raises(UsageError, match="whose action_mask forbids every action"):
        policy.predict(env.shown[-1])


def test_a_terminal_observation_may_allow_nothing():
    env = Masked(5)
    task = make_task(lambda: env)
    assert len(record(policy_for(task), task, 2)) == 10


def test_rows_without_a_choice_by_hand():
    mask = torch.tensor([[True, False, True], [False, False, True], [True, True, False]])
    assert without_choice(mask, spaces.Discrete(3)).tolist() == [False, False, False]
    assert without_choice(mask, spaces.MultiDiscrete([2, 1])).tolist() == [False, True, True]


@pytest.mark.parametrize("reward", [np.array([2.0]), np.float64(2.0), 2, np.array([[2.0]])])
def test_a_reward_of_size_one_is_a_number(reward):
    assert float(make_task_of(reward).step({"action": torch.tensor([0])})[1]) == 2.0


def test_a_reward_of_another_shape_is_named():
    with pytest.raises(RunError, match=r"a reward of shape \(2,\), not a number"):
        make_task_of(np.zeros(2)).step({"action": torch.tensor([0])})


def make_task_of(reward: Any) -> Any:
    class Paid(Shown):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, reward, *rest

    task = make_task(lambda: Paid(OBS["float32"]))
    task.reset()
    return task


# Actions that are whole numbers


def test_a_box_of_whole_numbers_gets_each_its_share():
    """Uniform numbers in [-2, 2], rounded: an eighth for either end and a quarter for each between."""
    env = Shown(OBS["float32"], spaces.Box(-2, 2, (1,), np.int64))
    task = make_task(lambda: env)
    data = record(Uniform(task.spec), task, 300, greedy=False)
    played = np.array(env.actions).ravel()
    assert played.dtype == np.int64
    shares = [float((played == value).mean()) for value in range(-2, 3)]
    assert shares == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], abs=0.045)  # 1500 draws: 4 deviations
    assert data["action"].flatten().tolist() == played.tolist()  # what is recorded is what was played


def test_predict_and_the_environment_agree_on_whole_numbers():
    env = Shown(OBS["float32"], spaces.Box(-2, 2, (2,), np.int64))
    task = make_task(lambda: env)
    policy = policy_for(task)
    act = policy.act(task.reset(), greedy=True)[0]["action"]
    task.step({"action": policy.env_action(act)})
    assert env.actions[-1].tolist() == policy.predict(env.shown[0]).tolist()
    assert policy.predict(env.shown[0]).dtype == np.int64
    assert rounded(torch.tensor([[1.6, -0.4]]), env.action_space).tolist() == [[2.0, -0.0]]


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        (np.zeros(2, np.float32), r"an observation of shape \(2,\), but its observation space has shape \(3,\)"),
        (np.full(3, np.nan, np.float32), "an observation that is not finite"),
        ("abc", "an observation of type str"),
    ],
)
def test_predict_refuses_what_is_no_observation(obs, said):
    policy = policy_for(make_task(lambda: Shown(OBS["float32"])))
    with pytest.raises(UsageError, match=f"predict was given {said}"):
        policy.predict(obs)

"""One tiny task for every kind of space that a policy may need."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Walk(gymnasium.Env):
    """Ten steps; the reward is higher for small actions. The observation is as `obs_space` says; the info has the size
    of the action as "effort" and of each coordinate as "parts"."""

    def __init__(self, action_space: spaces.Space, obs_space: spaces.Space) -> None:
        self.action_space, self.observation_space = action_space, obs_space
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.time += 1
        effort = float(np.sum(np.abs(action)))
        info = {"effort": effort, "parts": np.abs(action)}
        return self._observe(), -effort, self.time == 10, False, info

    def _observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Discrete):
            return np.int64(self.np_random.integers(self.observation_space.n))
        return self.np_random.normal(size=self.observation_space.shape).astype(np.float32)


class Errand(Walk):
    """A walk that is rewarded for small actions, and for ending soon: it may stop where the first action is below 0."""

    reward_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    objectives = ("calm", "soon")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, calm, over, _, info = super().step(action)
        return obs, np.array([calm, -1.0]), over or bool(np.ravel(action)[0] < 0), False, info


class Pair(ParallelEnv):
    """Two agents walk, each rewarded for small actions of its own; the second leaves after five of the ten steps."""

    metadata = {"name": "pair"}
    possible_agents = ["long", "short"]

    def __init__(self) -> None:
        self.spaces = spaces.Box(-2.0, 1.0, (2,), np.float32), VECTOR
        self.agents: list[str] = []

    def action_space(self, agent: str) -> spaces.Space:
        return self.spaces[0]

    def observation_space(self, agent: str) -> spaces.Space:
        return self.spaces[1]

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.time, self.agents = 0, list(self.possible_agents)
        return self._observe(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents)
        assert all(self.spaces[0].contains(action) for action in actions.values())
        self.time += 1
        obs, rewards = self._observe(), {name: -float(np.abs(action).sum()) for name, action in actions.items()}
        ends = {name: self.time == (10 if name == "long" else 5) for name in self.agents}
        self.agents = [name for name in self.agents if not ends[name]]
        return obs, rewards, ends, dict.fromkeys(ends, False), {}

    def _observe(self) -> dict[str, np.ndarray]:
        return {name: self.random.normal(size=3).astype(np.float32) for name in self.agents}


VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def box() -> gymnasium.Env:
    return Walk(spaces.Box(-2.0, 1.0, (2,), np.float32), VECTOR)


def unbounded() -> gymnasium.Env:
    return Walk(spaces.Box(-np.inf, np.inf, (2,), np.float32), VECTOR)


def discrete() -> gymnasium.Env:
    return Walk(spaces.Discrete(3), VECTOR)


def multi_discrete() -> gymnasium.Env:
    return Walk(spaces.MultiDiscrete([2, 3]), VECTOR)


def finite() -> gymnasium.Env:
    return Walk(spaces.Discrete(3), spaces.Discrete(4))


def multi_binary() -> gymnasium.Env:
    return Walk(spaces.MultiBinary(3), VECTOR)


def several() -> gymnasium.Env:
    """Two objectives and no one reward."""
    return Errand(spaces.Box(-2.0, 1.0, (2,), np.float32), VECTOR)


def team() -> ParallelEnv:
    return Pair()

"""One tiny task for every kind of space that a policy may need."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


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

"""Environments that are wrong in the ways in which first attempts are."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

VALUE = 3
MASK = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (3,)), "action_mask": spaces.MultiBinary(3)})


class Plain(gymnasium.Env):
    """Five steps; the reward of each is `reward`."""

    def __init__(self, obs: Any = MASK["x"], action: Any = None, reward: Any = 1.0) -> None:
        self.observation_space, self.action_space = obs, action or spaces.Discrete(3)
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {"action_mask": np.ones(3, np.int8)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.time += 1
        info = {"cost": 1.0, "action_mask": np.ones(3, np.int8)}
        return self.observation_space.sample(), self.reward, self.time == 5, False, info


class Bare(gymnasium.Env):
    """Has no spaces."""


def words() -> Plain:
    return Plain(reward="one")


def bits() -> Plain:
    return Plain(action=spaces.MultiBinary(3))


def masked_box() -> Plain:
    return Plain(MASK, spaces.Box(-1.0, 1.0, (3,)))


def keys() -> Plain:
    env = Plain(spaces.Dict({"a": MASK["x"], "b": MASK["x"]}))
    env.observation_space.sample = lambda: {"a": np.zeros(3, np.float32)}  # type: ignore[method-assign]
    return env

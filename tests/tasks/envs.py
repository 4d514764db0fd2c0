"""Small environments with known numbers, and some that misbehave. Imports no torch: workers import what they run."""

from __future__ import annotations

import math
import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observation [start + t, start], start a seeded whole number in [0, 1000); reward t + 1; ends after `length`.

    `end` says how: "terminated", "truncated" or "both".
    """

    def __init__(self, length: int = 3, end: str = "terminated") -> None:
        self.length, self.end = length, end
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.start, self.time = float(self.np_random.integers(1000)), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        over = self.time >= self.length
        terminated, truncated = over and self.end != "truncated", over and self.end != "terminated"
        return self.observe(), float(self.time), terminated, truncated, {"time": self.time}

    def observe(self) -> Any:
        return np.array([self.start + self.time, self.start])


class Faulty(Counter):
    """Misbehaves at its second step, or in `reset`, as `fault` says."""

    def __init__(self, fault: str) -> None:
        super().__init__(length=10)
        self.fault = fault

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        if self.fault == "reset raises":
            raise OSError("no\nconnection")
        if self.fault == "reset shape":
            return np.zeros(3), info
        if self.fault == "reset nan":
            return np.array([np.nan, 0.0]), info
        return obs if self.fault == "reset old" else (obs, info)

    def step(self, action: Any) -> Any:
        reward: Any
        obs, reward, terminated, truncated, info = super().step(action)
        if self.time == 2:
            if self.fault == "step raises":
                raise ValueError("joint 3 broke")
            if self.fault == "step dies":
                os._exit(3)
            if self.fault == "step old":
                return obs, reward, terminated, info
            obs = {"step shape": np.zeros(1), "nan obs": np.array([0.0, np.inf])}.get(self.fault, obs)
            reward = {"nan reward": float("nan"), "no reward": None}.get(self.fault, reward)
        return obs, reward, terminated, truncated, info


class Echo(gymnasium.Env):
    """Shows what it was sent: the observation is Dict-structured and holds the last action; images and ints beside."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.size = int(np.prod(action_space.shape or (1,)))
        self.observation_space = spaces.Dict(
            {
                "action": spaces.Box(-np.inf, np.inf, (self.size,), np.float64),
                "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
                "place": spaces.Discrete(3, start=5),
                "flags": spaces.MultiBinary(2),
                "action_mask": spaces.MultiBinary(2),
                "inner": spaces.Dict({"int": spaces.Box(0, 9, (2,), np.int32)}),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observe(np.zeros(self.size)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if isinstance(self.action_space, spaces.Box):
            assert action.shape == self.action_space.shape
            assert action.dtype == self.action_space.dtype
        assert self.action_space.contains(action)
        return self.observe(np.asarray(action, dtype=np.float64).reshape(-1)), 0.0, False, False, {}

    def observe(self, action: np.ndarray) -> dict[str, Any]:
        return {
            "action": action,
            "image": np.full((4, 4, 3), 200, np.uint8),
            "place": np.int64(7),
            "flags": np.array([1, 0], np.int8),
            "action_mask": np.array([0, 1], np.int8),
            "inner": {"int": np.array([4, 9], np.int32)},
        }


class Unseeded(Counter):
    """Draws from a generator that no seed reaches."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        super().reset(**kwargs)
        self.start = float(np.random.default_rng().random())
        return self.observe(), {}


class Drifting(Counter):
    """Looks repeatable for a dozen steps, then is not: only a comparison at restoring can tell."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs + (np.random.default_rng().random() if self.time > 12 else 0.0), reward, terminated, truncated, info


class FakeAtari(gymnasium.Env):
    """What the Atari preset needs of a game: lives are lost at frames 40 and 80, which ends it; reward 5 a frame."""

    def __init__(self, frameskip: int = 4) -> None:
        self._frameskip = frameskip
        self.observation_space = spaces.Box(0, 255, (210, 160, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.ale = self
        self.pressed: list[int] = []
        self.frame = 0

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE", "RIGHT"]

    def lives(self) -> int:
        return 2 - self.frame // 40

    def getScreenGrayscale(self, out: np.ndarray) -> None:
        out[...] = self.frame

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.frame = 0
        return np.zeros((210, 160, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.frame += 1
        self.pressed.append(int(action))
        return np.zeros((210, 160, 3), np.uint8), 5.0, self.frame >= 80, False, {}


def endless() -> Counter:
    return Counter(length=10**9)


def counter(length: int = 3, end: str = "terminated") -> gymnasium.Env:
    return Counter(length, end)


def not_an_env() -> str:
    return "hello"


class Costly(Counter):
    """Its info tells of every step: cost (10 start + t), energy [t, -t], words. At step 3 it may do as `fault` says."""

    def __init__(self, length: int = 3, fault: str = "") -> None:
        super().__init__(length)
        self.fault = fault

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = super().step(action)
        info: dict[str, Any] = {"cost": 10 * self.start + self.time, "energy": np.array([self.time, -self.time])}
        info["words"] = "far"
        if self.time == 3 and self.fault == "missing":
            del info["cost"]
        if self.time == 3 and self.fault in ("shape", "nan", "words"):
            info["energy"] = {"shape": np.ones(3), "nan": np.array([0.0, np.nan]), "words": "none"}[self.fault]
        return obs, reward, terminated, truncated, info


class Troubled(gymnasium.Env):
    """Cart-pole's spaces, episodes of `length` steps, and one `fault` after `after` steps in all."""

    def __init__(
        self, fault: str = "", after: int = 40, length: int = 10, box: bool = False, high: float = 1.0
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = spaces.Box(-high, high, (1,), np.float32) if box else spaces.Discrete(2)
        self.fault, self.after, self.length = fault, after, length
        self.total = self.time = 0

    @property
    def due(self) -> bool:
        return self.total >= self.after

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        if self.due and self.fault == "reset raises":
            raise ValueError("the arm is stuck")
        if self.due and self.fault == "reset shape":
            return np.zeros(5), {}
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.total += 1
        self.time += 1
        reward = 1.0
        obs = self.observe()
        if self.due and self.fault == "step raises":
            raise ValueError("joint 3\nbroke")
        if self.due and self.fault == "nan reward":
            reward = math.nan
        if self.due and self.fault == "nan observation":
            obs[1] = math.nan
        return obs, reward, self.time >= self.length, False, {}

    def observe(self) -> np.ndarray:
        return self.np_random.normal(size=4)


def troubled(**kwargs: Any) -> gymnasium.Env:
    return Troubled(**kwargs)


class Endless(gymnasium.Env):
    """Nothing ever ends it."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.low, 1.0, False, False, {}

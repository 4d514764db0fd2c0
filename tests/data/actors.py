"""Stand-in actors, and an environment with known numbers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


class Random:
    """Uniform actions in [-1, 1] or among the legal ones; the environment gets `scale` times a Box action."""

    def __init__(self, spec: Any, scale: float = 1.0) -> None:
        self.spec, self.scale = spec, scale

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        assert not torch.is_grad_enabled()
        rows = len(obs)
        if not self.spec.discrete:
            action = 2 * torch.rand(rows, self.spec.action_dim) - 1
        elif isinstance(obs, Tensor):
            action = torch.randint(self.spec.num_actions, (rows,))
        else:
            action = torch.multinomial(obs["action_mask"].float(), 1).squeeze(1)
        return {"action": action * (0 if greedy else 1), "log_prob": -torch.rand(rows)}, carry

    def env_action(self, action: Tensor) -> Tensor:
        return action if self.spec.discrete else self.scale * action


class Counting:
    """Remembers how often it acted in this episode, in `carry`, and records it before each step."""

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        if carry is None:
            carry = {"count": torch.zeros(len(obs), 1), "alive": torch.zeros(len(obs), dtype=torch.int64)}
        record = {"action": torch.zeros(len(obs), dtype=torch.int64), "hidden": carry["count"], "alive": carry["alive"]}
        return record, {"count": carry["count"] + 1, "alive": torch.ones_like(carry["alive"])}

    def env_action(self, action: Tensor) -> Tensor:
        return action


class Lengths(gymnasium.Env):
    """Observation [start, time]; the episode's start is a seeded whole number in [0, 1000), reward start + time.

    It ends after 1 + start % 4 steps: terminated when start is even, else truncated.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.start, self.time = int(self.np_random.integers(1000)), 0
        return np.array([self.start, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        over = self.time == 1 + self.start % 4
        obs = np.array([self.start, self.time], np.float32)
        return obs, float(self.start + self.time), over and self.start % 2 == 0, over and self.start % 2 == 1, {}

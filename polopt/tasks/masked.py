"""A task in which some actions are illegal."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Masked(gymnasium.Env):
    """At each step some of the actions are legal and each action has a visible worth; an illegal action raises.

    Observation: Dict of "worth" (Box [actions], uniform in [0, 1]) and "action_mask" (1 = legal; at least one is).
    Action: Discrete(actions); its worth is the reward. Episodes are truncated after `horizon` steps.
    """

    def __init__(self, actions: int = 5, horizon: int = 10) -> None:
        self.horizon = horizon
        self.observation_space = spaces.Dict(
            {"worth": spaces.Box(0.0, 1.0, (actions,), np.float32), "action_mask": spaces.MultiBinary(actions)}
        )
        self.action_space = spaces.Discrete(actions)
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._draw(), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        if not self.mask[action]:
            raise ValueError(f"the action {int(action)} is illegal here")
        reward = float(self.worth[action])
        self.time += 1
        return self._draw(), reward, False, self.time >= self.horizon, {}

    def _draw(self) -> dict[str, np.ndarray]:
        size = self.action_space.n  # type: ignore[attr-defined]
        self.worth = self.np_random.random(size, dtype=np.float32)
        self.mask = (self.np_random.random(size) < 0.5).astype(np.int8)
        self.mask[self.np_random.integers(size)] = 1
        return {"worth": self.worth, "action_mask": self.mask.copy()}

"""A task that cannot be solved without memory."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Recall(gymnasium.Env):
    """The first observation shows a cue; after `delay` blank steps a signal asks for it.

    Observation: Box [cues + 1], the cue one-hot at the first step only, then the signal at the last step. Action:
    Discrete(cues), judged at the last step: reward 1 when it names the cue, else 0; every other reward is 0. Episodes
    have `delay + 2` decisions and terminate. The mean return is the share of cues recalled: 1 / cues without memory.
    """

    def __init__(self, delay: int = 4, cues: int = 2) -> None:
        self.delay = delay
        self.cues = cues
        self.observation_space = spaces.Box(0.0, 1.0, (cues + 1,), np.float32)
        self.action_space = spaces.Discrete(cues)
        self.cue = 0
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(self.cues))
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        last = self.time == self.delay + 1
        reward = float(last and int(action) == self.cue)
        self.time += 1
        return self._observe(), reward, last, False, {}

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.cues + 1, np.float32)
        if self.time == 0:
            obs[self.cue] = 1.0
        obs[-1] = float(self.time == self.delay + 1)
        return obs

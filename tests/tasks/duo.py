"""A team of two with known numbers, in which one agent ends before the other. Imports no torch: workers import it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Duo(ParallelEnv):
    """Agents "a" (number 0) and "b" (number 1) observe [start, time, number]; start is a seeded number in [0, 100).

    Agent i earns 10 (i + 1) + time + action. "b" terminates after 2 steps, "a" after `length`: truncated if `cut`, else
    terminated. The state is [start, time].
    """

    metadata = {"name": "duo", "render_modes": ["rgb_array"], "render_fps": 5}
    possible_agents = ["a", "b"]

    def __init__(self, length: int = 4, cut: bool = True, box: bool = False, render_mode: str | None = None) -> None:
        self.length, self.cut, self.render_mode = length, cut, render_mode
        self.observation_spaces = {name: spaces.Box(-np.inf, np.inf, (3,), np.float32) for name in self.possible_agents}
        action = spaces.Box(-1.0, 1.0, (1,), np.float32) if box else spaces.Discrete(2)
        self.action_spaces = dict.fromkeys(self.possible_agents, action)
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def _observations(self) -> dict[str, np.ndarray]:
        return {name: np.array([self.start, self.time, "ab".index(name)], np.float32) for name in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.start, self.time = int(self.random.integers(100)), 0
        self.agents = list(self.possible_agents)
        return self._observations(), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents)
        rewards = {
            name: 10.0 * ("ab".index(name) + 1) + self.time + float(np.sum(actions[name])) for name in self.agents
        }
        self.time += 1
        over = self.time >= self.length
        terminated = {name: (name == "b" and self.time == 2) or (over and not self.cut) for name in self.agents}
        truncated = {name: over and self.cut and not terminated[name] for name in self.agents}
        observations, infos = self._observations(), {name: {} for name in self.agents}
        self.agents = [name for name in self.agents if not terminated[name] and not truncated[name]]
        return observations, rewards, terminated, truncated, infos

    def state(self) -> np.ndarray:
        return np.array([self.start, self.time], np.float32)

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 20 * self.time, np.uint8)


def duo(**kwargs: Any) -> Duo:
    return Duo(**kwargs)

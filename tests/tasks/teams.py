"""A team of two with known numbers, in which one agent ends before the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from torch import Tensor

from polopt.core.spec import Spec
from polopt.tasks.simulated import Simulated, State


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


class Crew(Simulated):
    """A batched world of three agents at drawn places, who go left or right by 1 and see one goal; each earns minus its
    distance from it."""

    def __init__(self, *args: Any, horizon: int = 5, **rest: Any) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        real = spaces.Box(-np.inf, np.inf, (3, 1), np.float32)
        obs = spaces.Dict({"place": real, "goal": spaces.Box(-np.inf, np.inf, (1,), np.float32)})
        action = spaces.MultiDiscrete([2, 2, 2])
        facts = {"rewards": (3,), "goal": (1,)}
        self.spec = Spec(obs, action, self.name, facts=facts, agents=3, shared=("goal",))

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {name: torch.randint(-9, 10, (size,), generator=generator) for name, size in (("place", 3), ("goal", 1))}

    def begin(self, draws: State) -> State:
        return draws

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        place = state["place"] + 2 * action - 1
        rewards = -(place - state["goal"]).abs().to(torch.get_default_dtype())
        facts = {"rewards": rewards, "goal": state["goal"].to(rewards.dtype)}
        return {**state, "place": place}, rewards.sum(1), torch.zeros(len(time), dtype=torch.bool), facts

    def observe(self, state: State, time: Tensor) -> Any:
        dtype = torch.get_default_dtype()
        return {"place": state["place"].to(dtype).unsqueeze(-1), "goal": state["goal"].to(dtype)}

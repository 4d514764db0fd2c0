"""How a policy of any library is evaluated while it learns to control: the same episodes, off the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

FIRST_SEED = 10_000  # of the evaluation episodes: the same starts for every library, seed and moment


class Evaluations:
    """Rows of a learning curve. Time spent in `row` is no training time.

    Evaluation episode i starts from `reset(seed=FIRST_SEED + i)`; all are played at once. `act` is the deterministic
    policy: observations [n, ...] as the environment gives them -> actions [n, ...] as the environment takes them.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.every: int = job["eval_every"]
        self.envs = [gymnasium.make(job["task"], disable_env_checker=True) for _ in range(job["eval_episodes"])]
        self.spent = np.zeros(2)  # evaluating: seconds, processor seconds
        self.steps = 0  # at the last row
        self.begin = _clocks()

    def start(self) -> None:
        """Training begins now."""
        self.begin, self.spent = _clocks(), np.zeros(2)

    def due(self, steps: int) -> bool:
        """Whether a multiple of `eval_every` was reached since the last row."""
        return steps // self.every > self.steps // self.every

    def row(self, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        before = _clocks()
        seconds, cpu_seconds = before - self.begin - self.spent
        returns = self.play(act)
        self.steps = steps
        self.spent += _clocks() - before
        row = {"steps": steps, "seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}
        return row | {"return": float(np.mean(returns)), "returns": [round(each, 3) for each in returns.tolist()]}

    def play(self, act: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The undiscounted return of each episode."""
        obs = np.stack([env.reset(seed=FIRST_SEED + index)[0] for index, env in enumerate(self.envs)])
        returns, alive = np.zeros(len(self.envs)), np.arange(len(self.envs))
        while len(alive):
            going = []
            for index, action in zip(alive.tolist(), act(obs[alive])):
                obs[index], reward, terminated, truncated, _ = self.envs[index].step(action)
                returns[index] += float(reward)
                if not (terminated or truncated):
                    going.append(index)
            alive = np.array(going, dtype=int)
        return returns


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])

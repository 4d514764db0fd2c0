"""Your own environment: any gymnasium.Env, given as a class or function.    python examples/own_environment.py [STEPS]

On the command line the same is `--task my_module:Thermostat --task.target 19`.
"""

import sys

import gymnasium
import numpy as np
from gymnasium import spaces

import polopt


class Thermostat(gymnasium.Env):
    """Keep a room at `target` degrees: heat or cool with a power in [-1, 1] while it leaks to a random outside."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, target: float = 20.0) -> None:
        self.target = target

    def _obs(self) -> np.ndarray:
        return np.array([self.room - self.target, self.outside - self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # draw everything random from self.np_random: runs are then reproducible
        self.room, self.outside = self.np_random.uniform(5.0, 30.0, size=2)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.room += 2.0 * float(action[0]) + 0.05 * (self.outside - self.room)
        self.steps += 1
        reward = -abs(self.room - self.target)
        # `terminated`: nothing comes after this state.  `truncated`: only the clock has run out.
        return self._obs(), reward, False, self.steps >= 50, {}


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000

run = polopt.train(
    "sac", Thermostat, task_options={"target": 19.0}, steps=steps, preset="pendulum", warmup=min(500, steps // 2)
)
print("return at the end:", run.final["eval/return"])

# A run folder never imports code by itself: give your environment again when you load.
actor = polopt.load(run.folder, task=Thermostat)
print("power for a room 5 degrees too cold:", actor.predict(np.array([-5.0, -5.0], np.float32)))

"""The same grid as an author would write it for Gymnasium, without polopt: with its map and rules, in two ways.

"numpy" is one `VectorEnv` on arrays, whose moves are one look-up in a table made before; "python" is an `Env` of plain
numbers, of which Gymnasium's `SyncVectorEnv` steps one a row, without copies. `tests/figures/test_worlds.py` shows that
both do what polopt's grid does.
"""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from protocol import Job, Run, serve

MAP = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)
SIDE, HORIZON = 13, 100
WALLS = np.array([[letter == "#" for letter in line] for line in MAP])
FREE = np.flatnonzero(~WALLS)
OBSERVATION = spaces.Box(-1.0, 1.0, (4,), np.float32)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


class Rooms(VectorEnv):
    """All rows in arrays: cells [N] and goals [N] by number, the time of each episode [N]."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBSERVATION, spaces.Discrete(4)
        self.observation_space = batch_space(OBSERVATION, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
        self.place = np.stack([row, column], 1).astype(np.float32)
        self.after = np.tile(np.arange(SIDE * SIDE)[:, None], 4)
        for cell in FREE:
            for action, (down, right) in enumerate(MOVES):
                target = (row[cell] + down) * SIDE + column[cell] + right
                self.after[cell, action] = cell if WALLS.flat[target] else target
        self.cell, self.goal, self.time = np.zeros((3, num_envs), np.int64)
        self.over = np.zeros(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._begin(np.arange(self.num_envs))
        self.over[:] = False
        return self._observe(), {}

    def _begin(self, rows: np.ndarray) -> None:
        first = self.np_random.integers(len(FREE), size=len(rows))
        other = self.np_random.integers(len(FREE) - 1, size=len(rows))
        self.cell[rows], self.goal[rows] = FREE[first], FREE[other + (other >= first)]
        self.time[rows] = 0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        begun = self.over
        self.cell = self.after[self.cell, actions]
        self.time += 1
        terminated = (self.cell == self.goal) & ~begun
        truncated = (self.time >= HORIZON) & ~terminated & ~begun
        if begun.any():
            self._begin(np.flatnonzero(begun))
        self.over = terminated | truncated
        return self._observe(), terminated.astype(np.float64), terminated, truncated, {}

    def _observe(self) -> np.ndarray:
        place = self.place[self.cell]
        return np.concatenate([place / 6 - 1, (self.place[self.goal] - place) / 12], 1)


class Room(gymnasium.Env):
    """One row in plain numbers."""

    observation_space, action_space = OBSERVATION, spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        first, other = self.np_random.choice(len(FREE), 2, replace=False)
        self.row, self.column = divmod(int(FREE[first]), SIDE)
        self.goal = divmod(int(FREE[other]), SIDE)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        down, right = MOVES[action]
        if MAP[self.row + down][self.column + right] != "#":
            self.row, self.column = self.row + down, self.column + right
        self.time += 1
        reached = (self.row, self.column) == self.goal
        return self._observe(), float(reached), reached, not reached and self.time >= HORIZON, {}

    def _observe(self) -> np.ndarray:
        row, column, goal = self.row, self.column, self.goal
        place = (row / 6 - 1, column / 6 - 1, (goal[0] - row) / 12, (goal[1] - column) / 12)
        return np.array(place, np.float32)


def world(job: Job) -> Run:
    rows = job["rows"]
    env: Any = Rooms(rows) if job["how"] == "numpy" else SyncVectorEnv([Room] * rows, copy=False)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=(100, rows))

    def run(units: int) -> None:
        for step in range(-(-units // rows)):
            env.step(actions[step % 100])

    run(5 * rows)

    def clocked(units: int) -> dict[str, float]:
        begin = time.process_time()
        run(units)
        return {"processor": time.process_time() - begin}

    return clocked


CASES = {"world": world}

if __name__ == "__main__":
    serve(CASES, ("numpy", "gymnasium"))

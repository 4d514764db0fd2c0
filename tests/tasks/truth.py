"""An environment of which every number is known beforehand, and which writes down itself what it was truly given."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MASK = "action_mask"
LONG = 64  # more steps than any episode here has


def reward_of(key: int, time: int) -> float:
    """A whole number that says which episode and which step it is of; exact in float32."""
    return float(key * LONG + time)


def step_of(reward: float) -> tuple[int, int]:
    """The inverse of `reward_of`."""
    return divmod(int(reward), LONG)


def known(space: spaces.Space, key: int, time: int, action: spaces.Space | None = None, salt: int = 0) -> Any:
    """The observation of a space at a step of an episode, in the space's own type."""
    if isinstance(space, spaces.Dict):
        parts = enumerate(space.spaces.items())
        return {
            name: legal(action, key, time).astype(part.dtype)
            if name == MASK
            else known(part, key, time, salt=7 * salt + number + 1)
            for number, (name, part) in parts
        }
    if isinstance(space, spaces.Tuple):
        return tuple(known(part, key, time, salt=7 * salt + number + 1) for number, part in enumerate(space.spaces))
    shape = space.shape or ()
    share = ((31 * key + 17 * time + 5 * salt + 3 * np.arange(int(np.prod(shape)))) % 101).reshape(shape) / 101
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start + np.floor(share * space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + np.floor(share * space.nvec)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return (share > 0.5).astype(np.int8)
    low = np.where(np.isfinite(space.low), space.low, np.minimum(space.high, 5.0) - 10.0).astype(np.float64)
    high = np.where(np.isfinite(space.high), space.high, low + 10.0).astype(np.float64)
    if np.issubdtype(space.dtype, np.floating):
        return (low + share * (high - low)).astype(space.dtype)
    return (low + np.floor(share * (high - low + 1))).astype(space.dtype)


def legal(action: Any, key: int, time: int) -> np.ndarray:
    """Which actions are legal: flags [A], at least one in each factor."""
    counts = [action.n] if isinstance(action, spaces.Discrete) else action.nvec.reshape(-1).tolist()
    flags = [np.array([(key + 2 * time + number) % 3 == 0 for number in range(count)]) for count in counts]
    for part in flags:
        part[(key + time) % len(part)] = True
    return np.concatenate(flags)


class Layout:
    """Hands arrays over in another memory layout, with the values that they have."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.buffers: dict[str, np.ndarray] = {}

    def __call__(self, value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self(part, f"{path}/{name}") for name, part in value.items()}
        if isinstance(value, tuple):
            return tuple(self(part, f"{path}/{number}") for number, part in enumerate(value))
        if self.kind == "lists" and value.dtype != np.uint8:  # whose signed numbers would be a fault
            return value.tolist()
        if self.kind == "wide" and value.dtype != np.uint8:
            return value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
        if not isinstance(value, np.ndarray) or not value.ndim:
            return value
        if self.kind == "negative strides":
            return np.ascontiguousarray(value[::-1])[::-1]
        if self.kind == "every second":
            return np.repeat(value, 2, axis=-1)[..., ::2]
        if self.kind == "fortran":
            return np.asfortranarray(value)
        if self.kind == "read-only":
            value.setflags(write=False)
        if self.kind == "one buffer":
            buffer = self.buffers.setdefault(path, np.empty_like(value))
            buffer[...] = value
            return buffer
        return value


class Truth(gymnasium.Env):
    """Shows `known` observations and pays `reward_of`; the info has "where", [key, time + 1].

    `key` follows from the seed of the reset. Every step is a line in a file of this instance in the folder `log`: [key,
    time, the action as it came, its type, its shape, whether it is in the space and legal]. Then it writes over the
    action: nobody may need it again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, cell: Cell, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = cell.obs, cell.action
        self.cell, self.render_mode = cell, render_mode
        self.layout = Layout(cell.layout)
        self.file = Path(cell.log) / f"{os.getpid()}-{uuid.uuid4().hex}.jsonl"
        self.key = self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.key, self.time = int(self.np_random.integers(1, 4096)), 0
        return self._observe(), {"where": np.array([self.key, 0])}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        fits = bool(self.action_space.contains(action)) and self._is_legal(action)
        line = [self.key, self.time, np.asarray(action).tolist(), str(np.asarray(action).dtype)]
        with self.file.open("a") as file:
            file.write(json.dumps([*line, list(np.shape(action)), fits]) + "\n")
        if isinstance(action, np.ndarray) and action.ndim:
            action[...] = self.action_space.sample()
        reward = reward_of(self.key, self.time)
        self.time += 1
        over = self.time == self.cell.length
        info = {"where": np.array([self.key, self.time])}
        end = self.cell.end
        return self._observe(), reward, over and end != "truncated", over and end != "terminated", info

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), min(self.time, 255), np.uint8)

    def _observe(self) -> Any:
        return self.layout(known(self.observation_space, self.key, self.time, self.action_space))

    def _is_legal(self, action: Any) -> bool:
        if not isinstance(self.observation_space, spaces.Dict) or MASK not in self.observation_space.spaces:
            return True
        space: Any = self.action_space
        flags, numbers = legal(space, self.key, self.time), np.ravel(action) - np.ravel(space.start)
        counts = [0] if isinstance(space, spaces.Discrete) else [0, *np.cumsum(space.nvec.reshape(-1))[:-1].tolist()]
        return all(flags[first + number] for first, number in zip(counts, numbers.tolist()))


@dataclass(frozen=True)
class Cell:
    """One place of the table: called, it makes the environment."""

    obs: spaces.Space
    action: spaces.Space
    length: int = 5
    end: str = "terminated"
    layout: str = "plain"
    log: str = ""

    __name__ = "truth"

    def __call__(self, render_mode: str | None = None) -> Truth:
        return Truth(self, render_mode)

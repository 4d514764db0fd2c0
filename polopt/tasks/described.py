"""What a policy must know of its task, as JSON: a saved policy is built of it where the task itself is not.

Only training and evaluation need the environment's code, its package, its data or its reward functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Step, Task
from polopt.tasks.problem import Ladder

SAID = (
    *("num", "environments", "size", "pool", "count", "scores", "verifiable", "turns", "conversational"),
    *("differentiable", "horizon"),
)
"""What methods ask of a task while they are built, besides its spec."""

SPACES = ("obs", "action", "state", "env_obs")


class NotHere(UsageError, AttributeError):
    """The task itself was asked for, of which only a description is here."""


def describe(task: Task) -> dict[str, Any] | None:
    """JSON values that `Described` reads back; None for a task that says more than JSON can hold, such as the model of
    a tabular one."""
    try:
        spec = {item.name: getattr(task.spec, item.name) for item in fields(Spec)}
        spec |= {name: None if spec[name] is None else _written(spec[name]) for name in SPACES}
        said = {name: getattr(task, name) for name in SAID if hasattr(task, name)}
        record: dict[str, Any] = _plain({"spec": spec, "said": said})
        found = Described(record).spec
    except TypeError:
        return None
    return record if all(getattr(found, name) == getattr(task.spec, name) for name in SPACES) else None


class Described(Task):
    """A task of which only what `describe` wrote is known: enough to build a policy, and nothing to step.

    Raises NotHere, one sentence, for whatever else is asked of it, and KeyError, TypeError or ValueError for a record
    that `describe` did not write.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        spec = dict(record["spec"])
        spec |= {name: None if spec[name] is None else _space(spec[name]) for name in SPACES}
        spec |= {"facts": {name: tuple(shape) for name, shape in spec["facts"].items()}}
        self.spec = Spec(**spec | {name: tuple(spec[name]) for name in ("objectives", "shared")})
        self._said = dict(record["said"])
        self.num = self._said["num"]
        self.first = torch.ones(self.num, dtype=torch.bool)

    @property
    def environments(self) -> int:
        return int(self._said["environments"])

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_said", {}):
            return self._said[name]
        if name.startswith("_"):
            raise AttributeError(name)
        raise self._absent()

    def reset(self, rows: Any = None, index: Any = None) -> Obs:
        raise self._absent()

    def step(self, record: Mapping[str, Any]) -> Step:
        raise self._absent()

    def _twin(self, rows: int, seed: int) -> Task:
        each = {"num": rows, "environments": rows}
        return Described({**self._record, "said": {**self._said, **each}})

    def with_ladder(self, ladder: Ladder) -> Described:
        """As `TextTask.with_ladder`: ids of every problem with every help."""
        count = self._said["count"]
        size = None if count is None else count * (ladder.levels + 1)
        return Described({**self._record, "said": {**self._said, "size": size}})

    def _absent(self) -> NotHere:
        return NotHere(f"of {self.spec.name} only the spaces are here, and this needs the task itself")


def _written(space: spaces.Space) -> dict[str, Any]:
    """A space as JSON values. Raises TypeError for one that no task has."""
    if isinstance(space, spaces.Dict):
        return {"dict": {key: _written(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"tuple": [_written(part) for part in space.spaces]}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"box": {"shape": space.shape, "dtype": str(space.dtype), **bounds}}
    if isinstance(space, spaces.Discrete):
        return {"discrete": {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}}
    if isinstance(space, spaces.MultiDiscrete):
        start = space.start.tolist()
        return {"multi-discrete": {"nvec": space.nvec.tolist(), "start": start, "dtype": str(space.dtype)}}
    if isinstance(space, spaces.MultiBinary):
        return {"multi-binary": {"n": space.n if isinstance(space.n, int) else space.shape}}
    if isinstance(space, spaces.Text):
        return {"text": {"max_length": space.max_length, "min_length": space.min_length}}
    raise TypeError(type(space).__name__)


def _space(written: Mapping[str, Any]) -> spaces.Space:
    ((kind, what),) = written.items()
    if kind == "dict":
        return spaces.Dict({key: _space(part) for key, part in what.items()})
    if kind == "tuple":
        return spaces.Tuple([_space(part) for part in what])
    if kind == "box":
        shape, dtype = tuple(what["shape"]), np.dtype(what["dtype"])
        low, high = (np.broadcast_to(np.array(what[name], dtype=dtype), shape).copy() for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "discrete":
        return spaces.Discrete(what["n"], start=what["start"], dtype=np.dtype(what["dtype"]).type)
    if kind == "multi-discrete":
        return spaces.MultiDiscrete(what["nvec"], dtype=np.dtype(what["dtype"]).type, start=what["start"])
    if kind == "multi-binary":
        return spaces.MultiBinary(what["n"])
    if kind == "text":
        return spaces.Text(**what)
    raise ValueError(f"there is no space '{kind}'")


def _bound(values: np.ndarray) -> Any:
    """The bounds of a Box: one number where all are equal, as in images."""
    return values.flat[0].item() if values.size and (values == values.flat[0]).all() else values.tolist()


def _plain(value: Any) -> Any:
    """JSON values, infinities as texts. Raises TypeError for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(type(value).__name__)

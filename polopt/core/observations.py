"""Observation spaces: which are served as what, and whether one raw observation is in its space. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError

MASK_KEY = "action_mask"
Check = Callable[[Any], str]  # what is wrong with an observation, or ""


def served(space: spaces.Space) -> spaces.Space:
    """The space of the tensors that the task gives: MultiBinary becomes a Box, unless it is an action mask, a Tuple a
    Dict with the keys "0", "1", ..., and what is counted from elsewhere is counted from 0."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({k: v if k == MASK_KEY else served(v) for k, v in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Dict({str(number): served(part) for number, part in enumerate(space.spaces)})
    if isinstance(space, spaces.MultiBinary):
        return spaces.Box(0.0, 1.0, space.shape, np.float32)
    if isinstance(space, spaces.Discrete) and space.start:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.start.any():
        return spaces.MultiDiscrete(space.nvec)
    return space


def check_spaces(obs: spaces.Space, action: spaces.Space, name: str) -> None:
    """Raises UsageError, one sentence, for spaces of an environment that polopt does not serve."""
    check_observed(obs, name)
    if not isinstance(action, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        how = "wrap it with gymnasium.wrappers.TransformAction"
        if isinstance(action, spaces.MultiBinary):
            how = f"declare MultiDiscrete([2] * {action.n})"
        kind = type(action).__name__
        raise UsageError(f"{name} has a {kind} action space; polopt serves Box, Discrete and MultiDiscrete: {how}")


def check_observed(space: spaces.Space, name: str) -> None:
    """Raises UsageError, one sentence, for an observation space that polopt does not serve."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            check_observed(part, name)
    elif not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise UsageError(
            f"{name} has a {type(space).__name__} observation space; polopt serves Box, Discrete, MultiDiscrete, "
            "MultiBinary, and Dict and Tuple of these: wrap it with gymnasium.wrappers.TransformObservation"
        )


def checker(space: spaces.Space) -> Check:
    """A quick test of one observation: shapes, types and ranges that a buffer would hide by broadcasting or wrapping.

    Numbers may narrow within their kind, where they fit: float64 in a float32 space, int64 in one of int8.
    """
    if isinstance(space, spaces.Dict):
        parts = {key: checker(part) for key, part in space.spaces.items()}

        def check_dict(obs: Any) -> str:
            if not isinstance(obs, dict) or set(obs) != set(parts):
                found = sorted(map(str, obs)) if isinstance(obs, dict) else type(obs).__name__
                return f"an observation with the keys {found}, but its observation space has {sorted(parts)}"
            for key, check in parts.items():
                problem = check(obs[key])
                if problem:
                    return f"{problem} under '{key}'"
            return ""

        return check_dict
    if isinstance(space, spaces.Tuple):
        checks = [checker(part) for part in space.spaces]

        def check_tuple(obs: Any) -> str:
            if not isinstance(obs, tuple) or len(obs) != len(checks):
                found = f"a tuple of {len(obs)}" if isinstance(obs, tuple) else f"of type {type(obs).__name__}"
                return f"an observation that is {found}, not a tuple of {len(checks)}"
            problems = (check(part) for check, part in zip(checks, obs))
            return next((f"{problem} at place {number}" for number, problem in enumerate(problems) if problem), "")

        return check_tuple
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n)

        def check_discrete(obs: Any) -> str:
            try:
                if np.ndim(obs) == 0 and low <= obs < high and int(obs) == obs:
                    return ""
            except (ValueError, TypeError):  # no number
                pass
            return f"the observation {obs!r}, which is not in {space}"

        return check_discrete
    if isinstance(space, spaces.MultiDiscrete):

        def check_discretes(obs: Any) -> str:
            try:
                if space.contains(np.asarray(obs)):
                    return ""
            except (ValueError, TypeError):  # no array of numbers
                pass
            return f"the observation {obs!r}, which is not in {space}"

        return check_discretes
    shape, dtype = space.shape, space.dtype

    def check_array(obs: Any) -> str:
        if isinstance(obs, np.ndarray) and obs.shape == shape and obs.dtype == dtype:
            return ""
        try:
            array = np.asarray(obs)
        except (ValueError, TypeError, RuntimeError):
            return "an observation that is not an array"
        if array.dtype == object or array.dtype.kind in "USV":
            return f"an observation of type {type(obs).__name__}, not an array of numbers"
        if array.shape != shape:
            return f"an observation of shape {array.shape}, but its observation space has shape {shape}"
        return misfit(array, dtype)

    return check_array


def misfit(array: np.ndarray, dtype: Any) -> str:
    """Why an array of numbers cannot be stored as `dtype` without losing what it says, or ""."""
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        return f"{array.dtype} numbers for a space of {np.dtype(dtype)}: cast them, or declare that space"
    if np.issubdtype(dtype, np.integer) and array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        for value in (array.min(), array.max()):
            if not limits.min <= value <= limits.max:
                return f"the number {value} for a space of {np.dtype(dtype)}, which cannot hold it"
    return ""


def rows_in(space: spaces.Space, obs: Any) -> int | None:
    """How many rows a batch of raw observations has, None where `obs` is one observation, or neither."""
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple) or len(obs) != len(space.spaces):
            return None
        counts = {rows_in(part, many) for part, many in zip(space.spaces, obs)}
        return counts.pop() if len(counts) == 1 else None
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or set(obs) != set(space.spaces):
            return None
        counts = {rows_in(part, obs[key]) for key, part in space.spaces.items()}
        return counts.pop() if len(counts) == 1 else None
    shape = space.shape or ()
    try:
        found = np.shape(obs)
    except (ValueError, TypeError, RuntimeError):  # no array
        return None
    return found[0] if len(found) == len(shape) + 1 and found[1:] == shape else None


def row_of(space: spaces.Space, obs: Any, row: int) -> Any:
    """One observation out of a batch of raw ones."""
    if isinstance(space, spaces.Dict):
        return {key: row_of(part, obs[key], row) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_of(part, many, row) for part, many in zip(space.spaces, obs))
    return obs[row]


def stacked(space: spaces.Space, obs: Any) -> Any:
    """A batch of raw observations, of any memory layout, in the types of its space."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, obs[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, many) for part, many in zip(space.spaces, obs))
    return np.asarray(obs, dtype=space.dtype)


def lifted(space: spaces.Space, obs: Any) -> Any:
    """One raw observation, of any memory layout, as a batch of one row."""
    if isinstance(space, spaces.Dict):
        return {key: lifted(part, obs[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(lifted(part, one) for part, one in zip(space.spaces, obs))
    return np.asarray(obs, dtype=space.dtype)[None]

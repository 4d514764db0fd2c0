"""What an environment says beside one reward: entries of its `info`, the parts of a vector reward. Imports no torch.

One array of floats crosses the pipes of worker processes and the dicts of Gymnasium's vectors at the price of one
entry, whatever it holds; its shapes are fixed when a task is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError, nearest
from polopt.core.observations import check_spaces

Shapes = dict[str, tuple[int, ...]]


def pack(info: Mapping[str, Any], shapes: Shapes) -> np.ndarray:
    """The entries `shapes` of an info, one after the other, as floats. Raises ValueError for a wrong one."""
    parts = []
    for name, shape in shapes.items():
        if name not in info:
            raise ValueError(f"an info without '{name}'")
        value = _floats(name, info[name])
        if value.shape != shape:
            raise ValueError(f"'{name}' of shape {value.shape}, not {shape} as at first")
        if not np.isfinite(value).all():
            raise ValueError(f"'{name}' that is not finite")
        parts.append(value.ravel())
    return np.concatenate(parts)


def objectives(env: gymnasium.Env) -> tuple[str, ...]:
    """Names of the parts of a vector reward, which an environment has that says `reward_space`, a Box [m]; else ().

    They are its `objectives`, if it has such an attribute, and "0", "1", ... if not: MO-Gymnasium names none.
    """
    try:
        shape = env.get_wrapper_attr("reward_space").shape or ()
    except AttributeError:
        return ()
    if not shape:
        return ()
    try:
        return tuple(map(str, env.get_wrapper_attr("objectives")))
    except AttributeError:
        return tuple(map(str, range(shape[0])))


def probe(make: Callable[[], gymnasium.Env], names: Sequence[str], task: str) -> Shapes:
    """The shapes of the entries `names` of the info, from one step of a throw-away environment.

    Raises UsageError when the info of that step lacks one, or it is no array of numbers, and for spaces that are not
    served.
    """
    env = make()
    try:
        check_spaces(env.observation_space, env.action_space, task)
        obs, _ = env.reset(seed=0)
        info = env.step(legal(env.action_space, obs, np.random.default_rng(0)))[-1]
    finally:
        env.close()
    shapes: Shapes = {}
    for name in names:
        if name not in info:
            known = sorted(map(str, info))
            raise UsageError(f"the info of {task} has no '{name}' at the first step{nearest(name, known)}")
        try:
            shapes[name] = _floats(name, info[name]).shape
        except ValueError as error:
            raise UsageError(f"a step of {task} returned {error}") from None
    return shapes


def legal(space: Any, obs: Any, rng: np.random.Generator) -> Any:
    """A random action that the "action_mask" of the observation allows, if it has one."""
    space.seed(int(rng.integers(2**31)))
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    if mask is None:
        return space.sample()
    mask = np.asarray(mask, dtype=np.int8)
    if isinstance(space, spaces.MultiDiscrete):
        flat = spaces.MultiDiscrete(space.nvec.ravel(), start=space.start.ravel(), seed=space.np_random)
        return flat.sample(mask=tuple(np.split(mask.ravel(), np.cumsum(flat.nvec)[:-1]))).reshape(space.shape)
    return space.sample(mask=mask)


def _floats(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"'{name}' that is no array of numbers ({type(value).__name__})") from None

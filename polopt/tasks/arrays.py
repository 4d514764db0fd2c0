"""Recorded decisions as plain arrays under the names of D4RL: in an HDF5 file, an .npz, or Python. Imports no torch.

Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", 2020, arXiv 2004.07219.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.tasks.named import ARRAYS

REQUIRED = ("observations", "actions", "rewards", "terminals")
NAMES = (*REQUIRED, "timeouts", "next_observations")
COLUMNS = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}
UNIT = 1.0 + 1e-6  # how far actions that were scaled to [-1, 1] may reach


def is_arrays(source: Any) -> bool:
    """Whether a task or a dataset is arrays of decisions: a dict of them, or a file by its name."""
    return isinstance(source, Mapping) or (isinstance(source, str) and source.endswith(ARRAYS))


def arrays_name(source: Any) -> str:
    """How messages call it."""
    return source if isinstance(source, str) else "the dict of arrays"


@dataclass(frozen=True)
class Decisions:
    """Decisions in the order in which they were made.

    Attributes:
        name: how messages call where they are from.
        columns: obs, action, next_obs [B, ...]; reward [B] float64; terminated, truncated, first [B] bool; and facts.
        notes: sentences about what the arrays left open, and how it was read.
    """

    name: str
    columns: dict[str, np.ndarray]
    notes: tuple[str, ...]


def decisions(source: Any, facts: Iterable[str] = ()) -> Decisions:
    """Reads arrays under `NAMES`, and of `facts` those that are there (under their name, or "infos/NAME").

    An episode ends where `terminals` or `timeouts` say so, and where what was observed next is not what the following
    decision saw. Without `next_observations` that is the observation of the following decision; a terminated episode's
    last successor is then its last observation, since nothing follows, and a last decision that is not terminated has
    none and is left out.

    Raises UsageError, one sentence: nothing there, no such file, a name that is missing or misspelt, a wrong shape,
    lengths that differ, numbers that are not finite, and arrays from which no one could tell where episodes end.
    """
    name, facts = arrays_name(source), tuple(facts)
    found = _read(source, (*NAMES, *facts, *(f"infos/{fact}" for fact in facts)))
    _check_names(name, found)
    arrays = {key: _numbers(name, key, value) for key, value in found.items() if value is not None}
    count = len(arrays["actions"])
    if count == 0:
        raise UsageError(f"{name} is empty: it holds no decision")
    for key, array in arrays.items():
        if len(array) != count:
            raise UsageError(
                f"{name} has {count:,} actions and {len(array):,} {key}: one of each belongs to a decision"
            )
    arrays |= {key: _column(name, key, arrays[key]) for key in ("rewards", "terminals", "timeouts") if key in arrays}
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        shapes = f"{arrays['observations'].shape} and {arrays['next_observations'].shape}"
        raise UsageError(f"the observations and next_observations of {name} have different shapes, {shapes}")
    for key, array in arrays.items():
        _check_finite(name, key, array)
    columns = {"obs": arrays["observations"], "action": arrays["actions"], "reward": arrays["rewards"].astype(float)}
    columns["terminated"] = _flags(name, "terminals", arrays["terminals"])
    told = "timeouts" in arrays
    columns["truncated"] = _flags(name, "timeouts", arrays["timeouts"]) if told else np.zeros(count, dtype=bool)
    columns |= {fact: arrays[key] for fact in facts for key in (f"infos/{fact}", fact) if key in arrays}
    if "next_observations" in arrays:
        columns["next_obs"] = arrays["next_observations"]
        return Decisions(name, *_ended(columns, told))
    return Decisions(name, *_followed(name, columns))


def _ended(columns: dict[str, np.ndarray], told: bool) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Ends episodes where the next decision saw something else than what followed."""
    obs, after = columns["obs"][1:], columns["next_obs"][:-1]
    same = obs == after if obs.dtype.kind in "bui" else np.isclose(after, obs)
    broken = ~same.reshape(len(same), -1).all(1) & ~(columns["terminated"] | columns["truncated"])[:-1]
    columns["truncated"][:-1] |= broken
    columns["truncated"][-1] |= not columns["terminated"][-1]
    where, notes = int(broken.sum()), []
    if where > len(obs) / 2:
        notes.append(
            f"{where:,} of {len(obs) + 1:,} decisions are not followed by their successor, so the rows are in no "
            "order: each counts as an episode of its own, and returns of episodes mean nothing"
        )
    elif where and told:
        notes.append(
            f"{where:,} decisions that are neither terminals nor timeouts are not followed by their successor: an "
            "episode ends there as by a time limit"
        )
    return _begun(columns), tuple(notes)


def _followed(name: str, columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Takes the next decision's observation for what followed; a last decision without one is left out."""
    obs, terminated, truncated = columns["obs"], columns["terminated"], columns["truncated"]
    after = np.concatenate([obs[1:], obs[-1:]])
    ended = terminated | truncated
    after[terminated] = obs[terminated]
    keep = terminated | ~truncated
    keep[-1] = terminated[-1]
    dropped = ~keep
    left_out = int(dropped.sum())
    before = dropped[1:] & ~ended[:-1]  # what is now the last decision of its episode
    truncated[:-1] |= before
    if not keep.any():
        raise UsageError(f"{name} holds no decision whose successor was observed: give next_observations")
    columns = {key: value[keep] for key, value in (columns | {"next_obs": after}).items()}
    note = f"without next_observations, what followed the last decision of {left_out:,} episodes that did not "
    return _begun(columns), (note + "terminate is not known: these decisions are left out",) if left_out else ()


def _begun(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first = np.ones(len(columns["reward"]), dtype=bool)
    first[1:] = (columns["terminated"] | columns["truncated"])[:-1]
    return columns | {"first": first}


# Spaces


def spaces_of(
    found: Decisions, low: Any = None, high: Any = None, actions: int | None = None
) -> tuple[spaces.Space, spaces.Space]:
    """(observation space, action space) of decisions that come without an environment.

    Observations are a Box without bounds, of uint8 one of images; whole numbers, one a decision, are Discrete. Whole
    actions are Discrete (MultiDiscrete, several a decision), up to the largest or `actions` many. Others are a Box from
    `low` to `high`, one number or one a coordinate; by default [-1, 1] where all are in it, and otherwise the range of
    each coordinate. Raises UsageError, one sentence, for options that do not fit the arrays.
    """
    name, obs, action = found.name, found.columns["obs"], found.columns["action"]
    if action.dtype.kind in "bui":
        if low is not None or high is not None:
            raise UsageError(
                f"the actions of {name} are whole numbers: 'actions' says how many there are, not low, high"
            )
        return _obs_space(found, obs), _discrete_space(name, action, actions)
    if actions is not None:
        raise UsageError(f"the actions of {name} are no whole numbers: low and high are their bounds, not 'actions'")
    if action.ndim == 1:
        raise UsageError(
            f"the actions of {name} have the shape {action.shape}: give one coordinate as ({len(action)}, 1)"
        )
    shape, unit = action.shape[1:], bool((np.abs(action) <= UNIT).all())
    bounds = []
    for option, given, reach, default in (("low", low, action.min(0), -1.0), ("high", high, action.max(0), 1.0)):
        try:
            chosen = (default if unit else reach) if given is None else given
            bounds.append(np.broadcast_to(np.asarray(chosen, dtype=np.float32), shape).copy())
        except (ValueError, TypeError):
            raise UsageError(f"'{option}' is one number, or one for each of {shape} coordinates, not {given}") from None
    if not (bounds[0] < bounds[1]).all():
        raise UsageError(f"the actions of {name} need bounds with low below high in every coordinate: say low and high")
    return _obs_space(found, obs), spaces.Box(bounds[0], bounds[1], dtype=np.float32)


def _obs_space(found: Decisions, obs: np.ndarray) -> spaces.Space:
    if obs.dtype == np.uint8:
        return spaces.Box(0, 255, obs.shape[1:], np.uint8)
    if obs.ndim == 1 and obs.dtype.kind in "ui":
        if obs.min() < 0:
            raise UsageError(f"the observations of {found.name} are whole numbers, of which {obs.min()} is below 0")
        return spaces.Discrete(int(max(obs.max(), found.columns["next_obs"].max())) + 1)
    if obs.ndim == 1:
        shape = f"({len(obs)}, 1)"
        raise UsageError(f"the observations of {found.name} have the shape {obs.shape}: give one coordinate as {shape}")
    return spaces.Box(-np.inf, np.inf, obs.shape[1:], np.float32)


def _discrete_space(name: str, action: np.ndarray, count: int | None) -> spaces.Space:
    if action.min() < 0:
        raise UsageError(f"the actions of {name} are whole numbers, of which {action.min()} is below 0")
    most = int(action.max()) + 1
    if count is not None and (not isinstance(count, int) or count < most):
        raise UsageError(f"'actions' is {count}, and {name} has the action {most - 1}: there are at least {most}")
    if action[0].size == 1:
        return spaces.Discrete(count or most)
    return spaces.MultiDiscrete(np.full(action.shape[1:], count) if count else action.max(0).astype(np.int64) + 1)


# Reading


def _read(source: Any, names: Iterable[str]) -> dict[str, Any]:
    """What is there under these names, and None under others."""
    if isinstance(source, Mapping):
        return {str(key): source[key] if key in names else None for key in source}
    try:
        if not source.endswith(".npz"):
            return _read_hdf5(source, names)
        with np.load(source, allow_pickle=False) as file:
            return {key: file[key] if key in names else None for key in file.files}
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"there is no file {source}{_looked(source)}") from None
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        kind = ".npz of arrays of numbers" if source.endswith(".npz") else "HDF5"
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UsageError(f"{source} cannot be read as {kind}: {said}") from None


def _looked(source: str) -> str:
    return "" if Path(source).is_absolute() else f" in {Path.cwd()}"


def _read_hdf5(source: str, names: Iterable[str]) -> dict[str, Any]:
    try:
        import h5py
    except ImportError:
        raise UsageError('HDF5 files need a package that is not installed: pip install "polopt[offline]"') from None
    found: dict[str, Any] = {}
    with h5py.File(source, "r") as file:
        file.visititems(lambda key, item: found.update({key: item[()] if key in names and _is_array(item) else None}))
    return found


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape")  # a group has none


def _check_names(name: str, found: Mapping[str, Any]) -> None:
    missing = [key for key in NAMES if found.get(key) is None]
    others = sorted(key for key in found if key not in NAMES and "/" not in key)
    for key in missing:
        if close := difflib.get_close_matches(key, others, n=1, cutoff=0.7):
            raise UsageError(f"{name} has '{close[0]}' and no '{key}': that is the name that is read")
    for key in REQUIRED:
        if key in missing:
            there = ", ".join([*(one for one in NAMES if one not in missing), *others][:12]) or "nothing"
            group = " but a group of that name, and only arrays are read" if key in found else ""
            raise UsageError(f"{name} has no array '{key}'{group}: it has {there}, and needs {', '.join(REQUIRED)}")
    if {"timeouts", "next_observations"} <= set(missing):
        raise UsageError(
            f"{name} has neither timeouts nor next_observations, so where a time limit ended an episode is not known: "
            "give one of them (timeouts that are all False, if there was no limit)"
        )


def _numbers(name: str, key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the {key} of {name} are no array: {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        said = f"of type {array.dtype}" if array.ndim else "a single value"
        raise UsageError(f"the {key} of {name} are {said}, and not an array of numbers with a row for each decision")
    return array


def _column(name: str, key: str, array: np.ndarray) -> np.ndarray:
    """[B] of [B] or [B, 1]."""
    if array.size != len(array):
        raise UsageError(f"the {key} of {name} have the shape {array.shape}: there is one for each decision")
    return array.reshape(-1)


def _flags(name: str, key: str, array: np.ndarray) -> np.ndarray:
    if not np.isin(array, (0, 1)).all():
        raise UsageError(f"the {key} of {name} are not 0 or 1 (False or True) only")
    return array.astype(bool)


def _check_finite(name: str, key: str, array: np.ndarray) -> None:
    if array.dtype.kind != "f":
        return
    wrong = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    if len(wrong):
        others = f", and so are {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        raise UsageError(f"row {wrong[0]} of '{key}' in {name} is not finite{others}")

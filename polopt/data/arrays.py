"""Recorded decisions in plain arrays, as tensors: D4RL-shaped HDF5, .npz, or a dict of arrays from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.observations import misfit, served
from polopt.core.spec import Spec
from polopt.data.datasets import Dataset, action_reader, load_dataset, returns_to_go, within
from polopt.tasks import arrays
from polopt.tasks.spaces import reader
from polopt.tasks.unplayed import Unplayed


def load_arrays(
    source: Any,
    spec: Spec | None = None,
    *,
    low: Any = None,
    high: Any = None,
    actions: int | None = None,
    returns: float | None = None,
    facts: Iterable[str] = (),
) -> Dataset:
    """Reads decisions out of arrays under D4RL's names; `polopt.data.storing.write_dataset` makes a Minari set of them.

    Args:
        source: "PATH.hdf5", "PATH.npz", or {"observations": [B, ...], "actions": [B, ...], "rewards": [B], "terminals":
            [B], "timeouts": [B], "next_observations": [B, ...]}, of which the last two may be absent, but not both.
        spec: of the task that they belong to; without it, spaces that follow from the arrays and from `low`, `high` and
            `actions` (`polopt.tasks.arrays.spaces_of`).
        returns: with a discount, `data` also has the key `returns` [B], the return to go.
        facts: further arrays [B, ...] that `data` is to have, if they are there.

    How episodes are told apart: `polopt.tasks.arrays.decisions`. Raises UsageError, one sentence, for what cannot be
    read, and for arrays that do not fit the spec.
    """
    found = arrays.decisions(source, facts)
    if spec is None:
        obs, action = arrays.spaces_of(found, low, high, actions)
        spec = Spec(served(obs), action, found.name, env_obs=obs)
    return dataset_of(found, spec, returns)


def dataset_of(found: arrays.Decisions, spec: Spec, returns: float | None = None) -> Dataset:
    """Decisions as a dataset of a task with this spec, with a warning for each of their notes, which are in its
    metadata. Raises UsageError, one sentence, when they do not fit its spaces."""
    for note in found.notes:
        warnings.warn(f"{found.name}: {note}", stacklevel=3)
    columns, dtype = dict(found.columns), torch.get_default_dtype()
    _check_held(found, dtype)
    data: dict[str, Any] = {}
    for key in ("obs", "next_obs"):
        data[key] = reader(spec.raw_obs, found.name)(
            _fitting(columns.pop(key), spec.raw_obs, "observations", found, spec)
        )
    data["action"] = action_reader(spec.action, found.name)(
        _fitting(columns.pop("action"), spec.action, "actions", found, spec)
    )
    if isinstance(spec.obs, (spaces.Discrete, spaces.MultiDiscrete)) and not within(data["obs"], spec.obs).all():
        raise UsageError(f"the observations of {found.name} are not all in {spec.raw_obs}")
    wrong = (~within(data["action"], spec.action).reshape(len(data["action"]), -1).all(1)).nonzero().flatten()
    if len(wrong):
        raise UsageError(f"row {int(wrong[0])} of the actions of {found.name} is not in {spec.action}")
    data |= {
        key: torch.from_numpy(value).to(dtype if value.dtype.kind != "b" else torch.bool)
        for key, value in columns.items()
    }
    data["index"] = torch.arange(len(data["reward"]))
    batch = TensorDict(data, batch_size=[len(data["reward"])])
    if returns is not None:
        batch["returns"] = returns_to_go(batch, returns)
    return Dataset(found.name, spec, batch, None, {"notes": found.notes})


def _check_held(found: arrays.Decisions, dtype: torch.dtype) -> None:
    """Raises UsageError for numbers that are finite in float64 and not in `dtype`."""
    most = torch.finfo(dtype).max
    for key, column in found.columns.items():
        if column.dtype.kind == "f" and column.size and (largest := np.abs(column).max()) > most:
            said = f"reach {largest:.3g}, and {str(dtype).removeprefix('torch.')} ends at {most:.3g}: scale them"
            raise UsageError(f"the {arrays.COLUMNS.get(key, key)} of {found.name} {said}")


def _fitting(array: np.ndarray, space: spaces.Space, what: str, found: arrays.Decisions, spec: Spec) -> np.ndarray:
    """The array [B, *space.shape]. Raises UsageError for one of another shape or kind."""
    shape = space.shape
    if shape is None:
        raise UsageError(
            f"{spec.name} has {what} of several parts, {space}, which arrays do not name: write_dataset does"
        )
    if array.shape[1:] != shape and not (array[0].size == 1 and np.prod(shape) == 1):
        raise UsageError(
            f"the {what} of {found.name} have the shape {array.shape[1:]}, and those of {spec.name} {shape}"
        )
    if problem := misfit(array, space.dtype):
        raise UsageError(f"the {what} of {found.name} are {problem}")
    return array.reshape(len(array), *shape)


# Of a task that is nothing but recorded


def training_data(task: Unplayed) -> Batch:
    """The decisions [B] that methods learn from: of all episodes but the held-out ones."""
    data = _dataset(task)
    held = _held_out(len(data.starts), task.heldout)
    kept = ~torch.from_numpy(held)[data.data["first"].cumsum(0) - 1]
    batch = data.data[kept]
    return batch.set("index", torch.arange(len(batch)))


def held_out_data(task: Unplayed, episodes: int) -> tuple[Batch, int]:
    """The decisions [B] of at most `episodes` held-out episodes, spread evenly over the recording, and how many these
    are; 0, and decisions that are learned from, where nothing is held out."""
    if episodes in task.scored:
        return task.scored[episodes]
    data = _dataset(task)
    held = _held_out(len(data.starts), task.heldout)
    there = np.flatnonzero(held) if held.any() else np.arange(len(held))
    chosen = np.zeros(len(held), dtype=bool)
    chosen[there[_spread(min(episodes, len(there)), len(there))]] = True
    batch = data.data[torch.from_numpy(chosen)[data.data["first"].cumsum(0) - 1]]
    task.scored[episodes] = batch, int((chosen & held).sum())
    return task.scored[episodes]


def _dataset(task: Unplayed) -> Dataset:
    if arrays.is_arrays(task.source):
        return dataset_of(task.decisions(), task.spec)
    return load_dataset(task.source, facts=task.spec.facts)


def _held_out(episodes: int, share: float) -> np.ndarray:
    """Which episodes are held out: the same in every run, spread evenly, and none of a single one."""
    held = np.zeros(episodes, dtype=bool)
    if share > 0.0 and episodes > 1:
        held[_spread(min(max(round(share * episodes), 1), episodes - 1), episodes)] = True
    return held


def _spread(count: int, of: int) -> np.ndarray:
    """`count` different ones of 0 .. of - 1 in the middles of equal parts."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)

"""Writing recorded datasets in Minari's format, so that Minari reads them: the environment's own observations and
actions, in its own spaces."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core import files
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.observations import misfit
from polopt.core.spec import Spec
from polopt.tasks import recorded
from polopt.tasks.spaces import as_given

Episode = Mapping[str, Any]
"""obs [T + 1, ...] (a dict or tuple of them for such spaces), action, reward, terminated and truncated [T, ...], as
arrays in the environment's own units; and facts, if there are some, a dict of [T, ...]."""

ENDS = ("terminated", "truncated")


def write_dataset(
    name: str,
    episodes: Batch | Iterable[Episode],
    spec: Spec,
    *,
    task: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    env_spec: Any = None,
    references: tuple[float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a dataset that `minari.load_dataset(name)` reads; it appears under its name whole or not at all.

    Args:
        name: its id, "namespace/name-v0".
        episodes: a batch [B] of decisions (keys as in `Dataset.data`), or episodes as arrays (`Episode`).
        spec: the spaces of the task; its facts are stored as Minari's `infos`, 0 before the first decision.
        task: the task by name, and `task_options`, so that `--task NAME` makes it again.
        env_spec: its `gymnasium.EnvSpec`, for other readers.
        references: (return of a random policy, of an expert).
        metadata: more to store: JSON values.

    Raises UsageError when the name is taken or no id, or an episode does not fit the spaces, or a key of the
    observations cannot be stored; RunError when the disk refuses.
    """
    recorded.minari_package()
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = recorded.dataset_folder(name)
    if folder.exists():
        raise UsageError(f"there is a dataset {name} already: choose another name, or remove {folder}")
    for key in _keys(spec.raw_obs):
        if "/" in key or not key:
            raise UsageError(f"{spec.name} observes something under '{key}', a key that Minari cannot store: rename it")
    parts = episodes_of(episodes, spec.raw_obs, spec.facts) if isinstance(episodes, TensorDict) else list(episodes)
    if not any(len(part["reward"]) for part in parts):
        raise UsageError(f"there is nothing to write to {name}: no episode has a decision")
    with files.new_folder(folder) as new, warnings.catch_warnings():
        # On a disk that becomes full HDF5 takes the whole process down.
        files.reserve(folder, sum(_size(_columns(number, part, spec)) for number, part in enumerate(parts)))
        warnings.simplefilter("ignore")
        storage = MinariStorage.new(new / "data", spec.raw_obs, spec.action, env_spec, jpeg_encoding=False)
        low, high = references or (None, None)
        storage.update_metadata(
            {
                "dataset_id": name,
                "minari_version": importlib.metadata.version("minari"),
                "author": {"polopt"},
                "algorithm_name": "polopt",
                "polopt_task": None if task is None else {"name": task, "options": dict(task_options or {})},
                **({} if low is None else {"ref_min_score": low, "ref_max_score": high}),
                **(metadata or {}),
            }
        )
        storage.update_episodes(
            EpisodeBuffer(**_columns(number, part, spec)) for number, part in enumerate(parts) if len(part["reward"])
        )
    return folder


def write_references(name: str, references: tuple[float, float]) -> None:
    """Stores (return of a random policy, of an expert) in the metadata of a dataset."""
    path = recorded.dataset_folder(name) / "data" / "metadata.json"  # Minari would empty it before it writes it
    record = json.loads(path.read_text()) | {"ref_min_score": references[0], "ref_max_score": references[1]}
    files.replace(path, json.dumps(record).encode())


def episodes_of(data: Batch, space: spaces.Space, facts: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The episodes of a batch [B] of decisions in order (keys as in `Dataset.data`), as the environment gives them,
    whose observation space is `space`, with those of `facts` that it has."""
    bounds = [*data["first"].nonzero().flatten().tolist(), len(data)]
    found = []
    for low, high in pairwise(bounds):
        part = data[low:high]
        episode = {key: part[key].numpy() for key in ("reward", *ENDS)}
        episode["action"] = part["action"].numpy()
        episode["facts"] = {name: part[name].numpy() for name in facts if name in part.keys()}
        episode["obs"] = as_given(space, torch.cat([part["obs"], part["next_obs"][-1:]]))
        found.append(episode)
    return found


def _size(stored: Any) -> int:
    """At most so many bytes of an HDF5 file, for arrays in dicts and tuples and what describes each of them."""
    if isinstance(stored, np.ndarray):
        return stored.nbytes + 4096
    parts = stored.values() if isinstance(stored, dict) else stored
    return 4096 + sum(map(_size, parts))


def _columns(number: int, episode: Episode, spec: Spec) -> dict[str, Any]:
    """An episode as Minari takes it. Raises UsageError when its arrays do not fit the spaces or each other."""
    count = len(episode["reward"])
    try:
        return {
            "observations": _as_stored(episode["obs"], spec.raw_obs, count + 1),
            "actions": _as_stored(episode["action"], spec.action, count, rounds=True),
            "rewards": np.asarray(episode["reward"], dtype=np.float64),
            "terminations": np.asarray(episode["terminated"], dtype=bool).reshape(count),
            "truncations": np.asarray(episode["truncated"], dtype=bool).reshape(count),
            "infos": {name: _led(values, count) for name, values in episode.get("facts", {}).items()},
        }
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"episode {number}, of {count} decisions, does not fit the spaces of {spec.name}: {error}"
        ) from None


def _as_stored(value: Any, space: gymnasium.Space, count: int, rounds: bool = False) -> Any:
    """Arrays in the type of the space; of actions, `rounds`. Raises ValueError where that would lose what they say."""
    if isinstance(space, spaces.Dict):
        return {key: _as_stored(value[key], part, count) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_as_stored(one, part, count) for one, part in zip(value, space.spaces))
    array = np.asarray(value)
    if rounds and array.dtype.kind == "f" and np.issubdtype(space.dtype, np.integer):
        array = np.rint(array).astype(space.dtype)
    if problem := misfit(array, space.dtype):
        raise ValueError(problem)
    return array.astype(space.dtype).reshape(count, *(space.shape or ()))


def _led(values: Any, count: int) -> np.ndarray:
    """The inverse of `_after`. Raises ValueError unless there is one value for each decision."""
    array = np.asarray(values)
    if len(array) != count:
        raise ValueError(f"a fact has {len(array)} values")
    return np.concatenate([np.zeros_like(array[:1]), array])


def _keys(space: gymnasium.Space) -> Iterator[str]:
    """The keys of a space and of all that is in it."""
    if isinstance(space, spaces.Dict):
        yield from space.spaces
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _keys(part)

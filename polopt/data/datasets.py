"""Recorded datasets in Minari's format: reading them into plain tensors, and writing them so that Minari reads them.

Younis et al., "Minari", 2024. They live where Minari keeps them (`polopt.tasks.recorded.datasets_folder`). This module
is the only one that imports minari.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.core.observations import misfit, served
from polopt.core.spec import Spec
from polopt.tasks import recorded
from polopt.tasks.spaces import NonFinite, reader

Episode = Mapping[str, Any]
"""obs [T + 1, ...] (a dict of them for Dict spaces), action, reward, terminated and truncated [T, ...], as arrays in
the environment's own units; and facts, if there are some, a dict of [T, ...]."""

ENDS = ("terminated", "truncated")


@dataclass(frozen=True)
class Dataset:
    """A recorded dataset.

    Attributes:
        name: its id.
        spec: the spaces it was recorded with; `spec.name` is that of the environment, if it says so.
        data: every decision [B], episode after episode: obs, action (as a task takes it: in the environment's units,
            discrete ones counted from 0), reward, next_obs (the true successor), terminated, truncated, first, index
            (0 .. B - 1), and the facts that were asked for. The last decision of an episode that has no end of its own
            counts as truncated.
        references: (return of a random policy, of an expert), for normalized scores, or None.
        metadata: all that Minari stores about it.
    """

    name: str
    spec: Spec
    data: Batch
    references: tuple[float, float] | None
    metadata: dict[str, Any]

    @property
    def starts(self) -> Tensor:
        """Index [episodes] of the first decision of each episode."""
        return self.data["first"].nonzero().flatten()

    @property
    def lengths(self) -> Tensor:
        """Number of decisions [episodes] of each episode, int64."""
        return lengths(self.data)

    @property
    def returns(self) -> Tensor:
        """Undiscounted return [episodes] of each episode, float64."""
        return episode_returns(self.data)

    def normalized(self, score: float) -> float:
        """100 (score - random) / (expert - random), as D4RL has it. Raises UsageError without references."""
        if self.references is None:
            raise UsageError(f"{self.name} has no references: 'polopt dataset measure {self.name}' measures them")
        low, high = self.references
        return 100.0 * (score - low) / (high - low)

    def check(self, spec: Spec) -> Dataset:
        """Itself. Raises UsageError when its spaces are not those of a task."""
        for what, mine, its in (("observations", self.spec.obs, spec.obs), ("actions", self.spec.action, spec.action)):
            if not _equal_spaces(mine, its):
                raise UsageError(f"the {what} of {self.name} are {mine}, and those of {spec.name} are {its}")
        return self


def lengths(data: Batch) -> Tensor:
    """Number of decisions [episodes] of each episode of a batch [B] with the key `first`."""
    starts = data["first"].nonzero().flatten()
    return torch.diff(starts, append=torch.tensor([len(data)]))


def episode_returns(data: Batch) -> Tensor:
    """Undiscounted return [episodes], float64, of each episode of a batch [B] with the keys `first` and `reward`."""
    episode = data["first"].cumsum(0) - 1
    return torch.zeros(int(episode[-1]) + 1, dtype=torch.float64).index_add_(0, episode, data["reward"].double())


def returns_to_go(data: Batch, discount: float = 1.0) -> Tensor:
    """Monte Carlo return [B] from each decision to the end of its episode; what follows a time limit counts as 0."""
    reward, last = data["reward"].double().numpy(), np.flatnonzero(data["first"].numpy())[1:] - 1
    ends = np.zeros(len(reward), dtype=bool)
    ends[[*last, len(reward) - 1]] = True
    total, result = 0.0, np.empty_like(reward)
    for step in range(len(reward) - 1, -1, -1):
        total = reward[step] + (0.0 if ends[step] else discount * total)
        result[step] = total
    return torch.from_numpy(result).to(data["reward"].dtype)


# Reading


def load_dataset(name: str, *, returns: float | None = None, facts: Iterable[str] = ()) -> Dataset:
    """Reads a dataset; one that is not here is downloaded first.

    Args:
        name: its id, such as "pendulum/medium-v0" or "D4RL/door/human-v2".
        returns: with a discount, `data` also has the key `returns` [B], the return to go.
        facts: entries of Minari's `infos`; of those that it stores, `data` has the values after each decision.

    Raises UsageError, one sentence: an unknown id (with the nearest one that is here), no network, or what is there is
    not Minari's, damaged or empty.
    """
    minari = recorded.minari_package()
    if not recorded.is_local(name):
        recorded.download(name)
    metadata = recorded.metadata(name)
    columns: dict[str, list[Any]] = {key: [] for key in ("obs", "next_obs", "action", "reward", *ENDS)}
    counts: list[int] = []
    kept: dict[str, list[np.ndarray]] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = minari.MinariDataset(recorded.dataset_folder(name) / "data")
        obs_space, action_space = stored.observation_space, stored.action_space
        read_obs, read_action = reader(obs_space, name), _action_reader(action_space, name)
        for episode in stored.iterate_episodes():
            count = len(episode.rewards)
            if not count:
                continue
            columns["obs"].append(_cut(episode.observations, 0, count, f"the observations of {count} decisions"))
            after = _cut(episode.observations, 1, count + 1, f"the observations of {count} decisions")
            columns["next_obs"].append(after)
            columns["action"].append(_cut(episode.actions, 0, count, f"the actions of {count} decisions"))
            columns["reward"].append(np.asarray(episode.rewards, dtype=np.float64))
            columns["terminated"].append(np.asarray(episode.terminations, dtype=bool))
            columns["truncated"].append(np.asarray(episode.truncations, dtype=bool))
            if not counts:
                kept = {fact: [] for fact in facts if fact in (episode.infos or {})}
            for fact, parts in kept.items():
                parts.append(_after(episode.infos[fact], count, f"the values of '{fact}' for {count} decisions"))
            if {len(part) for key in ("reward", *ENDS) for part in columns[key][-1:]} != {count}:
                raise ValueError(f"episode {episode.id} has columns of different lengths")
            counts.append(count)
    except UsageError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the dataset {name} is damaged: {said.rstrip('.')}") from None
    if not counts:
        raise UsageError(f"the dataset {name} is empty: it holds no decision")
    if sum(counts) != metadata["total_steps"]:
        raise UsageError(
            f"the dataset {name} is damaged: it should hold {metadata['total_steps']} decisions and holds {sum(counts)}"
        )
    try:
        data: dict[str, Any] = {key: read_obs(_join(columns.pop(key))) for key in ("obs", "next_obs")}
    except NonFinite as error:
        raise UsageError(f"the dataset {name} is damaged: an observation{error.where} is not finite") from None
    data["action"] = read_action(_join(columns["action"]))
    data["reward"] = torch.from_numpy(_join(columns["reward"])).to(torch.get_default_dtype())
    for key, what in (("reward", "a reward"), ("action", "an action")):
        if not torch.isfinite(data[key]).all():
            raise UsageError(f"the dataset {name} is damaged: {what} is not finite")
    for fact, parts in kept.items():
        values = torch.from_numpy(_join(parts))
        data[fact] = values if values.dtype == torch.bool else values.to(torch.get_default_dtype())
    size, last = sum(counts), np.cumsum(counts) - 1
    data |= {key: torch.from_numpy(_join(columns[key])) for key in ENDS}
    data["truncated"][last] |= ~data["terminated"][last]
    data["first"] = torch.zeros(size, dtype=torch.bool)
    data["first"][[0, *(last[:-1] + 1)]] = True
    data["index"] = torch.arange(size)
    batch = TensorDict(data, batch_size=[size])
    if returns is not None:
        batch["returns"] = returns_to_go(batch, returns)
    shapes = {fact: tuple(data[fact].shape[1:]) for fact in kept}
    info = {"dataset": name}
    spec = Spec(served(obs_space), action_space, _environment_name(name), info, shapes, env_obs=obs_space)
    return Dataset(name, spec, batch, recorded.references(name), metadata)


def episodes_of(data: Batch, facts: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The episodes of a batch [B] of decisions in order (keys as in `Dataset.data`), in the environment's units, with
    those of `facts` that it has."""
    bounds = [*data["first"].nonzero().flatten().tolist(), len(data)]
    found = []
    for low, high in pairwise(bounds):
        part = data[low:high]
        episode = {key: part[key].numpy() for key in ("reward", *ENDS)}
        episode["action"] = part["action"].numpy()
        episode["facts"] = {name: part[name].numpy() for name in facts if name in part.keys()}
        episode["obs"] = _trail(part["obs"], part["next_obs"][-1:])
        found.append(episode)
    return found


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

    Raises UsageError when the name is taken or no id, or an episode does not fit the spaces; RunError when the disk
    refuses.
    """
    recorded.minari_package()
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = recorded.dataset_folder(name)
    if folder.exists():
        raise UsageError(f"there is a dataset {name} already: choose another name, or remove {folder}")
    parts = episodes_of(episodes, spec.facts) if isinstance(episodes, TensorDict) else list(episodes)
    if not any(len(part["reward"]) for part in parts):
        raise UsageError(f"there is nothing to write to {name}: no episode has a decision")
    new = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=recorded.datasets_folder()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = MinariStorage.new(new / "data", spec.obs, spec.action, env_spec, jpeg_encoding=False)
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
                EpisodeBuffer(**_columns(number, part, spec))
                for number, part in enumerate(parts)
                if len(part["reward"])
            )
        os.replace(new, folder)
    except OSError as error:
        raise RunError(f"could not write {folder}: {error.strerror or error}; nothing is left of it") from error
    finally:
        if new is not None and new.exists():
            shutil.rmtree(new, ignore_errors=True)
    return folder


def write_references(name: str, references: tuple[float, float]) -> None:
    """Stores (return of a random policy, of an expert) in the metadata of a dataset."""
    recorded.minari_package()
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(recorded.dataset_folder(name) / "data")
    storage.update_metadata({"ref_min_score": references[0], "ref_max_score": references[1]})


def _environment_name(name: str) -> str:
    try:
        source, _ = recorded.environment(name)
    except UsageError:
        return name
    return source if isinstance(source, str) else source.id


def _cut(value: Any, low: int, high: int, what: str) -> Any:
    """Elements low .. high - 1. Raises ValueError when there are fewer."""
    if isinstance(value, Mapping):
        return {key: _cut(part, low, high, what) for key, part in value.items()}
    if len(value) < high:
        raise ValueError(f"{what} are {high} and not {len(value)}")
    return value[low:high]


def _after(values: Any, count: int, what: str) -> np.ndarray:
    """The values [T, ...] after each decision: Minari stores the info of the reset before them."""
    array = np.asarray(values)
    if len(array) not in (count, count + 1):
        raise ValueError(f"{what} are {len(array)}")
    return array[len(array) - count :]


def _led(values: Any, count: int) -> np.ndarray:
    """The inverse of `_after`. Raises ValueError unless there is one value for each decision."""
    array = np.asarray(values)
    if len(array) != count:
        raise ValueError(f"a fact has {len(array)} values")
    return np.concatenate([np.zeros_like(array[:1]), array])


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def _trail(obs: Any, final: Any) -> Any:
    """Observations [T + 1, ...] as arrays: those of T decisions, and the one after the last."""
    if isinstance(obs, Tensor):
        return torch.cat([obs, final]).numpy()
    return {key: _trail(value, final[key]) for key, value in obs.items()}


def _action_reader(space: gymnasium.Space, name: str) -> Any:
    """Stored actions as a task takes them: floats in the default dtype, discrete ones int64."""
    if isinstance(space, spaces.Box):
        return lambda raw: torch.from_numpy(np.array(raw)).to(torch.get_default_dtype())
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return lambda raw: torch.from_numpy(np.array(raw, dtype=np.int64))
    raise UsageError(
        f"the dataset {name} has a {type(space).__name__} action space; polopt serves Box and discrete ones"
    )


def _columns(number: int, episode: Episode, spec: Spec) -> dict[str, Any]:
    """An episode as Minari takes it. Raises UsageError when its arrays do not fit the spaces or each other."""
    count = len(episode["reward"])
    try:
        return {
            "observations": _as_stored(episode["obs"], spec.obs, count + 1),
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
    """Arrays in the type of the space. Raises ValueError where that would lose what they say; `rounds` is for actions.

    Integers of a Box are served as floats, so whole floats go back into one; images are not.
    """
    if isinstance(space, spaces.Dict):
        return {key: _as_stored(value[key], part, count) for key, part in space.spaces.items()}
    array = np.asarray(value)
    if array.dtype.kind == "f" and np.issubdtype(space.dtype, np.integer) and space.dtype != np.uint8:
        whole = np.rint(array)
        array = whole.astype(space.dtype) if rounds or np.array_equal(whole, array) else array
    if problem := misfit(array, space.dtype):
        raise ValueError(problem)
    return array.astype(space.dtype).reshape(count, *(space.shape or ()))


def _equal_spaces(one: gymnasium.Space, other: gymnasium.Space) -> bool:
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        keys = one.spaces.keys()
        return keys == other.spaces.keys() and all(_equal_spaces(one[key], other[key]) for key in keys)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        same = one.shape == other.shape and (one.dtype == np.uint8) == (other.dtype == np.uint8)
        return same and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    return bool(one == other)

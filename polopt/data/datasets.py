"""Recorded datasets in Minari's format, read into plain tensors; `polopt.data.storing` writes them.

Younis et al., "Minari", 2024. They live where Minari keeps them (`polopt.tasks.recorded.datasets_folder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.observations import served
from polopt.core.spec import Spec
from polopt.data.storing import ENDS
from polopt.tasks import recorded
from polopt.tasks.spaces import NonFinite, reader


@dataclass(frozen=True)
class Dataset:
    """A recorded dataset.

    Attributes:
        name: its id.
        spec: the spaces it was recorded with; `spec.name` is that of the environment, if it says so.
        data: every decision [B], episode after episode: obs (as a task gives it), action (as a task takes it, in the
            environment's units), reward, next_obs (the true successor), terminated, truncated, first, index
            (0 .. B - 1), and the facts that were asked for. The last decision of an episode that has no end of its own
            counts as truncated.
        references: (return of a random policy, of an expert), for normalized scores, or None.
        metadata: all that Minari stores about it.
        broken: bool [episodes], those that have no end of their own; None: not told, as of arrays.
    """

    name: str
    spec: Spec
    data: Batch
    references: tuple[float, float] | None
    metadata: dict[str, Any]
    broken: Tensor | None = None

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
    recorded.minari_package()
    if not recorded.is_local(name):
        recorded.download(name)
    metadata = recorded.metadata(name)
    columns: dict[str, list[Any]] = {key: [] for key in ("obs", "next_obs", "action", "reward", *ENDS)}
    counts: list[int] = []
    ids: list[int] = []
    kept: dict[str, list[np.ndarray]] = {}
    try:
        stored = recorded.stored(name)
        obs_space, action_space = stored.observation_space, stored.action_space
        read_obs, read_action = reader(obs_space, name), action_reader(action_space, name)
        for episode in stored.iterate_episodes():
            count = len(episode.rewards)
            if not count:
                continue
            ids.append(int(episode.id))
            told = f"episode {episode.id} has {count} rewards and"
            needs = f"observations: it needs {count + 1}, one before each decision and one after the last"
            columns["obs"].append(_cut(episode.observations, 0, count, told, needs))
            columns["next_obs"].append(_cut(episode.observations, 1, count + 1, told, needs))
            columns["action"].append(_cut(episode.actions, 0, count, told, f"actions: it needs {count}"))
            columns["reward"].append(np.asarray(episode.rewards, dtype=np.float64))
            columns["terminated"].append(np.asarray(episode.terminations, dtype=bool))
            columns["truncated"].append(np.asarray(episode.truncations, dtype=bool))
            if not counts:
                kept = {fact: [] for fact in facts if fact in (episode.infos or {})}
            for fact, parts in kept.items():
                parts.append(_after(episode.infos[fact], count, told, f"values of '{fact}': it needs {count}"))
            for key in ENDS:
                if len(columns[key][-1]) != count:
                    raise ValueError(f"{told} {len(columns[key][-1])} flags '{key}': it needs {count}")
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

    def check(what: str, sound: Tensor, but: str) -> None:
        """Raises UsageError for the first decision that is not `sound` [B, ...]."""
        wrong = (~sound.reshape(len(sound), -1).all(1)).nonzero().flatten()
        if len(wrong):
            row, ends = int(wrong[0]), np.cumsum(counts)
            episode = int(np.searchsorted(ends, row, side="right"))
            place = f"decision {row} (step {row - int(ends[episode]) + counts[episode]} of episode {ids[episode]})"
            others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UsageError(f"the dataset {name} is damaged: {what} of {place} {but}{others}")

    data: dict[str, Any] = {}
    for key, what in (("obs", "the observation"), ("next_obs", "what was observed after the action")):
        try:
            data[key] = read_obs(_join(columns.pop(key)))
        except NonFinite as error:
            check(f"{what}{error.where}", torch.arange(sum(counts)) != error.row, "is not finite")
    data["action"] = read_action(_join(columns["action"]))
    data["reward"] = torch.from_numpy(_join(columns["reward"])).to(torch.get_default_dtype())
    check("the reward", torch.isfinite(data["reward"]), "is not finite")
    check("the action", torch.isfinite(data["action"]), "is not finite")
    check("the action", within(data["action"], action_space), f"is not in {action_space}")
    for fact, parts in kept.items():
        values = torch.from_numpy(_join(parts))
        data[fact] = values if values.dtype == torch.bool else values.to(torch.get_default_dtype())
    size, last = sum(counts), np.cumsum(counts) - 1
    data |= {key: torch.from_numpy(_join(columns[key])) for key in ENDS}
    broken = ~(data["terminated"] | data["truncated"])[last]
    data["truncated"][last] |= broken
    data["first"] = torch.zeros(size, dtype=torch.bool)
    data["first"][[0, *(last[:-1] + 1)]] = True
    data["index"] = torch.arange(size)
    batch = TensorDict(data, batch_size=[size])
    if returns is not None:
        batch["returns"] = returns_to_go(batch, returns)
    shapes = {fact: tuple(data[fact].shape[1:]) for fact in kept}
    info = {"dataset": name}
    spec = Spec(served(obs_space), action_space, _environment_name(name), info, shapes, env_obs=obs_space)
    return Dataset(name, spec, batch, recorded.references(name), metadata, broken)


def _environment_name(name: str) -> str:
    try:
        source, _ = recorded.environment(name)
    except UsageError:
        return name
    return source if isinstance(source, str) else source.id


def _cut(value: Any, low: int, high: int, told: str, needs: str) -> Any:
    """Elements low .. high - 1. Raises ValueError, "`told` 3 `needs`", when there are fewer."""
    if isinstance(value, Mapping):
        return {key: _cut(part, low, high, told, needs) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(part, low, high, told, needs) for part in value)
    if len(value) < high:
        raise ValueError(f"{told} {len(value)} {needs}")
    return value[low:high]


def _after(values: Any, count: int, told: str, needs: str) -> np.ndarray:
    """The values [T, ...] after each decision: Minari stores the info of the reset before them."""
    array = np.asarray(values)
    if len(array) not in (count, count + 1):
        raise ValueError(f"{told} {len(array)} {needs}")
    return array[len(array) - count :]


def within(action: Tensor, space: gymnasium.Space) -> Tensor:
    """Which of discrete actions [B, ...] are in their space; all of others are, since policies clamp them."""
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return torch.ones(len(action), dtype=torch.bool)
    start = torch.as_tensor(space.start)
    count = torch.as_tensor(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    return (start <= action) & (action < start + count)


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(map(_join, zip(*parts)))
    return np.concatenate(parts)


def action_reader(space: gymnasium.Space, name: str) -> Any:
    """Stored actions as a task takes them: floats in the default dtype, discrete ones int64."""
    if isinstance(space, spaces.Box):
        return lambda raw: torch.from_numpy(np.array(raw)).to(torch.get_default_dtype())
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return lambda raw: torch.from_numpy(np.array(raw, dtype=np.int64))
    raise UsageError(
        f"the dataset {name} has a {type(space).__name__} action space; polopt serves Box and discrete ones"
    )


def _equal_spaces(one: gymnasium.Space, other: gymnasium.Space) -> bool:
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        keys = one.spaces.keys()
        return keys == other.spaces.keys() and all(_equal_spaces(one[key], other[key]) for key in keys)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        same = one.shape == other.shape and (one.dtype == np.uint8) == (other.dtype == np.uint8)
        return same and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    return bool(one == other)

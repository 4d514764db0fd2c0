"""Decisions in plain arrays of D4RL's shape: what they are read as, and what is said of those that cannot be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.bases.offline import recorded_data
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.arrays import held_out_data, load_arrays, training_data
from polopt.data.datasets import load_dataset
from polopt.data.storing import write_dataset
from polopt.tasks import make_task

h5py = pytest.importorskip("h5py")


def arrays(*episodes: tuple[int, str], without: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """Episodes of (length, "terminal", "timeout" or "neither"): the n-th sees [t, n], acts t / 10 - 0.5, is paid n."""
    columns: dict[str, list[Any]] = {key: [] for key in KEYS}
    for number, (length, end) in enumerate(episodes):
        for time in range(length):
            last = time == length - 1
            columns["observations"].append([time, number])
            columns["next_observations"].append([time + 1, number])
            columns["actions"].append([time / 10 - 0.5])
            columns["rewards"].append(number)
            columns["terminals"].append(last and end == "terminal")
            columns["timeouts"].append(last and end == "timeout")
    found: dict[str, Any] = {key: np.array(value) for key, value in columns.items() if key not in without}
    for key in ("observations", "next_observations", "actions", "rewards"):
        if key in found:
            found[key] = found[key].astype(np.float32)
    return found | changes


TWO = np.array([1, 2])
KEYS = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")
THREE = ((3, "terminal"), (2, "timeout"), (4, "neither"))


def quiet(source: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_arrays(source, **options)


def stored(kind: str, folder: Path, found: dict[str, Any]) -> Any:
    if kind == "dict":
        return found
    path = folder / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, **found)
        return str(path)
    with h5py.File(path, "w") as file:
        for key, value in found.items():
            file[key] = value
        file["metadata/algorithm"] = "sac"  # as D4RL has it
        file["infos/qpos"] = np.zeros((len(found["actions"]), 3))
    return str(path)


@pytest.mark.parametrize("kind", ["dict", "npz", "hdf5", "h5"])
def test_decisions_are_what_was_recorded(kind, tmp_path):
    data = quiet(stored(kind, tmp_path, arrays(*THREE)))
    batch = data.data
    assert data.lengths.tolist() == [3, 2, 4]
    assert data.returns.tolist() == [0.0, 2.0, 8.0]
    assert batch["obs"].tolist() == [[t, n] for n, length in enumerate((3, 2, 4)) for t in range(length)]
    assert torch.equal(batch["next_obs"] - batch["obs"], torch.tensor([[1.0, 0.0]]).expand(9, 2))
    assert batch["terminated"].nonzero().flatten().tolist() == [2]
    assert batch["truncated"].nonzero().flatten().tolist() == [4, 8]  # the end of the recording is no termination
    assert batch["first"].nonzero().flatten().tolist() == [0, 3, 5]
    assert batch["index"].tolist() == list(range(9))
    assert data.spec.obs == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert data.spec.action == spaces.Box(-1.0, 1.0, (1,), np.float32)
    torch.testing.assert_close(batch["action"][:3, 0], torch.tensor([-0.5, -0.4, -0.3]))


def test_time_limits_are_seen_in_what_follows():
    """Without timeouts an episode ends where the next decision saw something else than what followed."""
    data = quiet(arrays(*THREE, without=("timeouts",)))
    assert data.data["truncated"].nonzero().flatten().tolist() == [4, 8]
    assert data.lengths.tolist() == [3, 2, 4]


def test_a_missing_last_observation():
    """A last decision whose successor was not observed is left out, and the one before ends the episode; after a
    termination nothing follows, so that decision stays."""
    told = "the last decision of 2 episodes that did not terminate is not known: these decisions are left out"
    with pytest.warns(UserWarning, match=told):
        data = load_arrays(arrays(*THREE, without=("next_observations",)))
    batch = data.data
    assert data.lengths.tolist() == [3, 1, 3]
    assert batch["obs"][:, 0].tolist() == [0, 1, 2, 0, 0, 1, 2]
    assert batch["next_obs"][:, 0].tolist() == [1, 2, 2, 1, 1, 2, 3]  # never of another episode
    assert batch["next_obs"][:, 1].tolist() == batch["obs"][:, 1].tolist()
    assert batch["terminated"].nonzero().flatten().tolist() == [2]
    assert batch["truncated"].nonzero().flatten().tolist() == [3, 6]
    with pytest.raises(UsageError, match="holds no decision whose successor was observed: give next_observations"):
        load_arrays(arrays((1, "timeout"), (1, "timeout"), without=("next_observations",)))
    quiet(arrays((3, "terminal"), (2, "terminal"), without=("next_observations",)))


def test_unsorted_rows_are_read_one_by_one():
    found = arrays((20, "terminal"), (20, "timeout"))
    order = np.random.default_rng(0).permutation(40)
    mixed = {key: value[order] for key, value in found.items()}
    with pytest.warns(UserWarning, match="of 40 decisions are not followed by their successor, so the rows are in no"):
        data = load_arrays(mixed)
    torch.testing.assert_close(data.data["next_obs"] - data.data["obs"], torch.tensor([[1.0, 0.0]]).expand(40, 2))
    assert int(data.data["terminated"].sum()) == 1
    assert len(data.starts) > 30
    swapped = {key: np.concatenate([value[20:], value[:20]]) for key, value in found.items()}  # whole episodes
    assert quiet(swapped).lengths.tolist() == [20, 20]
    cut = {key: np.delete(value, 5, axis=0) for key, value in found.items()}
    with pytest.warns(UserWarning, match="1 decisions that are neither terminals nor timeouts are not followed by"):
        assert load_arrays(cut).lengths.tolist() == [5, 14, 20]


def test_one_episode_and_no_terminal_ever():
    data = quiet(arrays((5, "neither")))
    assert (data.lengths.tolist(), bool(data.data["terminated"].any())) == ([5], False)
    assert data.data["truncated"].tolist() == [False] * 4 + [True]


def test_wide_numbers_and_columns():
    wide = {key: value.astype(np.float64) for key, value in arrays(*THREE).items()}
    wide |= {key: wide[key][:, None] for key in ("rewards", "terminals", "timeouts")}
    data = quiet(wide)
    for key, value in quiet(arrays(*THREE)).data.items():
        assert torch.equal(data.data[key], value), key
        assert data.data[key].dtype == value.dtype


@pytest.mark.parametrize(
    ("changes", "options", "space"),
    [
        ({"actions": np.linspace(-2, 1, 9)[:, None]}, {}, spaces.Box(-2, 1, (1,))),
        ({"actions": np.linspace(-2, 1, 9)[:, None]}, {"low": -2, "high": 2}, spaces.Box(-2, 2, (1,))),
        ({"actions": np.linspace(-0.5, 0.5, 9)[:, None]}, {"low": -0.5}, spaces.Box(-0.5, 1, (1,))),
        ({"actions": np.zeros((9, 2))}, {"low": [-1, -2], "high": [1, 2]}, spaces.Box(-TWO, TWO)),
        ({"actions": np.arange(9) % 3}, {}, spaces.Discrete(3)),
        ({"actions": (np.arange(9) % 3)[:, None]}, {"actions": 5}, spaces.Discrete(5)),
        ({"actions": np.stack([np.arange(9) % 3, np.arange(9) % 2], 1)}, {}, spaces.MultiDiscrete([3, 2])),
    ],
)  # fmt: skip
def test_action_spaces(changes, options, space):
    found = quiet(arrays(*THREE, **changes), **options)
    low = getattr(space, "low", None)
    assert found.spec.action == (space if low is None else spaces.Box(space.low, space.high, dtype=np.float32))
    assert found.data["action"].shape == (9, *(space.shape or ()))


def test_observation_spaces():
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    found = quiet(arrays(*THREE, observations=images[:9], next_observations=images[1:]))
    assert found.spec.obs == spaces.Box(0, 255, (3, 8, 8), np.uint8)
    assert found.data["obs"].dtype == torch.uint8
    states = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    found = quiet(arrays(*THREE, observations=states, next_observations=states + 1))
    assert found.spec.obs == spaces.Discrete(10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": None}, r"the rewards of the dict of arrays are of type object|has no array 'rewards'"),
        ({"rewards": np.ones(8)}, r"the dict of arrays has 9 actions and 8 rewards: one of each belongs to a decision"),
        ({"rewards": np.ones((9, 2))}, r"the rewards of .* have the shape \(9, 2\): there is one for each decision"),
        ({"terminals": np.arange(9)}, r"the terminals of .* are not 0 or 1 \(False or True\) only"),
        ({"observations": np.zeros(9), "next_observations": np.zeros(9)}, r"shape \(9,\): give one coordinate as \(9,"),
        ({"observations": np.zeros((9, 3))}, r"have different shapes, \(9, 3\) and \(9, 2\)"),
        ({"actions": np.zeros(9)}, r"the actions of .* have the shape \(9,\): give one coordinate as \(9, 1\)"),
        ({"actions": np.full((9, 1), 3.0)}, r"need bounds with low below high in every coordinate: say low and high"),
        ({"actions": np.arange(9) - 1}, r"the actions of .* are whole numbers, of which -1 is below 0"),
        ({"actions": np.array(["a"] * 9)}, r"the actions of .* are of type <U1, and not an array of numbers"),
        ({"actions": np.array([{}] * 9)}, r"the actions of .* are of type object, and not an array of numbers"),
        ({"actions": 3.0}, r"the actions of .* are a single value, and not an array of numbers"),
        ({"next_observation": np.zeros(1)}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_read(changes, said):
    found = arrays(*THREE, **changes)
    if said is None:
        quiet(found)  # another name beside the right one means nothing
        del found["next_observations"]
        said = r"has 'next_observation' and no 'next_observations': that is the name that is read"
    with pytest.raises(UsageError, match=said) as error:
        load_arrays(found)
    assert "\n" not in str(error.value)


def test_names_that_are_missing():
    found = arrays(*THREE, dones=np.zeros(9))
    del found["terminals"]
    said = r"has no array 'terminals': it has observations, actions, rewards, timeouts, next_observations, dones, and"
    with pytest.raises(UsageError, match=said):
        load_arrays(found)
    said = "has neither timeouts nor next_observations, so where a time limit ended an episode is not known"
    with pytest.raises(UsageError, match=said):
        load_arrays(arrays(*THREE, without=("timeouts", "next_observations")))
    with pytest.raises(UsageError, match="the dict of arrays is empty"):
        load_arrays({key: value[:0] for key, value in arrays(*THREE).items()})


@pytest.mark.parametrize("key", ["observations", "next_observations", "actions", "rewards"])
def test_numbers_that_are_none(key):
    found = arrays(*THREE)
    found[key][4:6] = np.nan
    with pytest.raises(UsageError, match=rf"row 4 of '{key}' in the dict of arrays is not finite, and so are 1 more"):
        load_arrays(found)


@pytest.mark.parametrize("key", ["observations", "next_observations", "actions", "rewards"])
def test_numbers_that_are_too_large(key, float64):
    found = {name: value.astype(float) for name, value in arrays(*THREE).items()}
    found[key][4] = -1e39
    assert load_arrays(found).data["reward"].dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UsageError, match=rf"^the {key} of the dict of arrays reach 1e\+39, and float32 ends at 3.4e"):
        load_arrays(found)


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"low": [1, 2]}, {}, r"'low' is one number, or one for each of \(1,\) coordinates, not \[1, 2\]"),
        ({"low": 1, "high": -1}, {}, "need bounds with low below high"),
        ({"actions": 3}, {}, "are no whole numbers: low and high are their bounds, not 'actions'"),
        ({"low": 0}, {"actions": np.arange(9)}, "are whole numbers: 'actions' says how many there are, not low, high"),
        ({"actions": 3}, {"actions": np.arange(9)}, "'actions' is 3, and .* has the action 8: there are at least 9"),
    ],
)
def test_options_that_do_not_fit(options, changes, said):
    with pytest.raises(UsageError, match=said):
        load_arrays(arrays(*THREE, **changes), **options)


@pytest.mark.parametrize("name", ["none.npz", "none.hdf5"])
def test_files_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"^there is no file {name} in {tmp_path}"):
        load_arrays(name)
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match=rf"^{name} cannot be read as"):
        load_arrays(name)


def test_nothing_is_unpickled(tmp_path):
    class Planted:
        def __reduce__(self):
            return Path(tmp_path / "ran").write_text, ("x",)

    np.savez(tmp_path / "planted.npz", **arrays(*THREE, rewards=np.array([Planted()] * 9, dtype=object)))
    with pytest.raises(
        UsageError, match=r"cannot be read as \.npz of arrays of numbers: Object arrays cannot be loaded"
    ):
        load_arrays(str(tmp_path / "planted.npz"))
    assert not (tmp_path / "ran").exists()


def test_a_group_in_place_of_an_array(tmp_path):
    with h5py.File(tmp_path / "group.hdf5", "w") as file:
        for key, value in arrays(*THREE).items():
            file[f"{key}/a" if key == "observations" else key] = value
    with pytest.raises(UsageError, match="has no array 'observations' but a group of that name, and only arrays are"):
        load_arrays(str(tmp_path / "group.hdf5"))


# Beside a task


def test_arrays_of_a_task(tmp_path):
    """--dataset FILE beside an environment: its spaces hold, and actions beyond its bounds stay as they are."""
    task = make_task("Pendulum-v1")
    beyond = np.linspace(-3, 3, 9)[:, None]
    obs = np.zeros((9, 3))
    path = stored("npz", tmp_path, arrays(*THREE, observations=obs, next_observations=obs, actions=beyond))
    data = recorded_data(path, task, random_episodes=1)
    assert data is not None
    torch.testing.assert_close(data["action"], torch.from_numpy(beyond).float())
    with pytest.raises(UsageError, match=r"the observations of .*mine.npz have the shape \(3,\), and those of Mount"):
        recorded_data(path, make_task("MountainCarContinuous-v0"), random_episodes=1)
    cart = make_task("CartPole-v1")
    path = stored("npz", tmp_path, arrays(*THREE, observations=np.zeros((9, 4)), next_observations=np.zeros((9, 4))))
    with pytest.raises(UsageError, match=r"the actions of .* are float32 numbers for a space of int64"):
        recorded_data(path, cart, random_episodes=1)
    actions = np.arange(9) % 3
    path = stored(
        "npz",
        tmp_path,
        arrays(*THREE, observations=np.zeros((9, 4)), next_observations=np.zeros((9, 4)), actions=actions),
    )
    with pytest.raises(UsageError, match=r"row 2 of the actions of .* is not in Discrete\(2\)"):
        recorded_data(path, cart, random_episodes=1)
    with pytest.raises(UsageError, match=r"has observations of several parts, .*, which arrays do not name"):
        recorded_data(path, make_task("masked"), random_episodes=1)


def test_facts_are_further_arrays(tmp_path):
    path = stored("hdf5", tmp_path, arrays(*THREE, cost=np.arange(9.0)))
    data = quiet(path, facts=("cost", "qpos", "none")).data
    assert data["cost"].tolist() == list(range(9))
    assert data["qpos"].shape == (9, 3)
    assert "none" not in data.keys()
    assert make_task(path, facts=("qpos",)).spec.facts == {"qpos": (3,)}
    with pytest.raises(UsageError, match="has no array 'none'"):
        make_task(path, facts=("none",))


def test_arrays_become_a_dataset_of_minari(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    found = load_arrays(arrays(*THREE))
    write_dataset("mine/arrays-v0", found.data, found.spec)
    again = load_dataset("mine/arrays-v0")
    for key, value in found.data.items():
        assert torch.equal(again.data[key], value), key
    task = make_task("mine/arrays-v0")  # which names no environment
    assert task.spec.action == found.spec.action
    assert len(training_data(task)) + len(held_out_data(task, 10)[0]) == 9  # type: ignore[arg-type]


# What is held out


def test_held_out_episodes_are_never_learned_from():
    task: Any = make_task(arrays(*[(3, "terminal")] * 10, (2, "timeout")), heldout=0.3)
    learned = training_data(task)
    held, count = held_out_data(task, 10)
    assert count == 3
    assert len(learned) + len(held) == 32
    assert not set(learned["obs"][:, 1].tolist()) & set(held["obs"][:, 1].tolist())
    assert learned["index"].tolist() == list(range(len(learned)))
    assert held["obs"][:, 1].unique().tolist() == [1, 5, 9]
    fewer, count = held_out_data(task, 1)
    assert (count, fewer["obs"][:, 1].unique().tolist()) == (1, [5])


def test_of_one_episode_nothing_is_held_out():
    task: Any = make_task(arrays((6, "neither")))
    assert len(training_data(task)) == 6
    held, count = held_out_data(task, 10)
    assert (len(held), count) == (6, 0)
    task = make_task(arrays(*THREE), heldout=0.0)
    assert len(training_data(task)) == 9
    assert held_out_data(task, 2)[1] == 0
    with pytest.raises(UsageError, match=r"--task\.heldout 1\.0: a share of the episodes, at least 0 and below 1"):
        make_task(arrays(*THREE), heldout=1.0)


def test_a_task_that_cannot_be_played():
    task = make_task(arrays(*THREE))
    assert (task.spec.name, task.num) == ("the dict of arrays", 1)
    said = "the dict of arrays is recorded data without an environment, and this needs one: name it with --task"
    for ask in (task.reset, lambda: task.step({}), lambda: task.twin(1), task.check_played):
        with pytest.raises(UsageError, match=said):
            ask()
    with pytest.raises(UsageError, match="and this needs 2 copies of one: name it with"):
        make_task(arrays(*THREE), num=2)
    for option, said in (
        ({"workers": 2}, "leave out workers"),
        ({"lwo": 1}, "has no option 'lwo'; did you mean 'low'"),
    ):
        with pytest.raises(UsageError, match=said):
            make_task(arrays(*THREE), **option)
    assert isinstance(task.spec, Spec)

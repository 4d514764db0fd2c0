"""Recorded datasets: what is written is read back, by polopt and by Minari, and what is wrong is said in a sentence."""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

import polopt
from polopt.bases.offline import recorded_data
from polopt.core.errors import DiskError, UsageError
from polopt.core.spec import Spec
from polopt.data.datasets import episode_returns, load_dataset, returns_to_go
from polopt.data.demonstrations import record
from polopt.data.storing import write_dataset, write_references
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task, recorded
from tests.tasks.envs import Costly

h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")
BOX = Spec(spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-2.0, 1.0, (1,), np.float32), "boxes")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def episode(length: int, start: float = 0.0, end: str = "terminated") -> dict[str, Any]:
    obs = np.stack([np.arange(length + 1.0) + start, np.full(length + 1, start)], 1)
    ends = np.arange(length) == length - 1
    return {
        "obs": obs,
        "action": np.linspace(-2, 1, length)[:, None],
        "reward": np.arange(1.0, length + 1),
        "terminated": ends & (end == "terminated"),
        "truncated": ends & (end == "truncated"),
    }


THREE = [episode(3), episode(2, 10.0, "truncated"), episode(4, 20.0, "neither")]


def test_transitions_are_what_was_recorded():
    write_dataset("walks/three-v0", THREE, BOX, references=(-5.0, 15.0))
    data = load_dataset("walks/three-v0", returns=0.5)
    batch = data.data
    assert data.lengths.tolist() == [3, 2, 4]
    assert data.returns.tolist() == [6.0, 3.0, 10.0]
    assert batch["obs"][:, 0].tolist() == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    assert batch["next_obs"][:, 0].tolist() == [1, 2, 3, 11, 12, 21, 22, 23, 24]  # the true successors
    assert batch["terminated"].tolist() == [False, False, True] + 6 * [False]
    assert batch["truncated"].nonzero().flatten().tolist() == [4, 8]  # a broken-off episode is no termination
    assert batch["first"].nonzero().flatten().tolist() == [0, 3, 5]
    assert batch["index"].tolist() == list(range(9))
    np.testing.assert_allclose(batch["action"][:3, 0], [-2.0, -0.5, 1.0])
    np.testing.assert_allclose(batch["returns"], [2.75, 3.5, 3, 2, 2, 3.25, 4.5, 5, 4])
    assert data.normalized(5.0) == 50.0
    assert batch["obs"].dtype == torch.get_default_dtype()
    assert load_dataset("walks/three-v0").check(BOX).spec.action == BOX.action


def test_minari_reads_it():
    write_dataset("walks/three-v0", THREE, BOX, references=(0.0, 10.0), metadata={"note": [1, 2]})
    stored = minari.load_dataset("walks/three-v0")
    assert (stored.total_episodes, stored.total_steps) == (3, 9)
    assert stored.observation_space == BOX.obs
    assert stored.storage.metadata["note"] == [1, 2]
    np.testing.assert_allclose(stored[1].observations, THREE[1]["obs"])
    np.testing.assert_allclose(stored[1].truncations, THREE[1]["truncated"])
    np.testing.assert_allclose(minari.get_normalized_score(stored, np.array([5.0])), [0.5])
    assert list(minari.list_local_datasets()) == ["walks/three-v0"] == recorded.local_datasets()


def test_a_disk_without_room_for_a_dataset_is_refused_before_it_is_full(folder, monkeypatch):
    """HDF5 ends the process by a fault of memory where a disk fills up under it."""
    asked = []

    def full(file: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(DiskError, match="walks/three-v0: the disk is full"):
            write_dataset("walks/three-v0", THREE, BOX)
    assert list((folder / "walks").iterdir()) == []
    write_dataset("walks/three-v0", THREE, BOX, references=(0.0, 1.0))
    assert asked[0] >= sum(path.stat().st_size for path in (folder / "walks/three-v0").rglob("*") if path.is_file())

    def refusing(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing)
        with pytest.raises(DiskError, match="the disk is full"):
            write_references("walks/three-v0", (2.0, 3.0))
    assert load_dataset("walks/three-v0").references == (0.0, 1.0)
    write_references("walks/three-v0", (2.0, 3.0))
    assert minari.load_dataset("walks/three-v0").storage.metadata["ref_max_score"] == 3.0


def test_a_dataset_that_minari_wrote_is_read():
    from minari.data_collector.episode_buffer import EpisodeBuffer

    part = THREE[0]
    buffer = EpisodeBuffer(
        observations=part["obs"].astype(np.float32),
        actions=part["action"].astype(np.float32),
        rewards=part["reward"],
        terminations=part["terminated"],
        truncations=part["truncated"],
        infos={"x": np.zeros(4)},
    )
    minari.create_dataset_from_buffers(
        "theirs-v3", [buffer], action_space=BOX.action, observation_space=BOX.obs, env="Pendulum-v1"
    )
    data = load_dataset("theirs-v3")
    assert data.returns.tolist() == [6.0]
    assert data.spec.name == "Pendulum-v1"
    task = make_task("theirs-v3", num=2)
    assert task.spec.name == "Pendulum-v1"
    assert task.spec.info["dataset"] == "theirs-v3"
    with pytest.raises(UsageError, match=r"^the observations of theirs-v3 are Box.*, and those of Pendulum-v1 are Box"):
        data.check(task.spec)


def test_facts_are_stored_as_infos_and_read_back():
    """cost = obs at each decision, pair [reward, -reward]; others read them behind the info of the reset."""
    spec = replace(BOX, facts={"cost": (), "pair": (2,)})
    parts = [
        part | {"facts": {"cost": part["obs"][:-1, 0], "pair": np.stack([part["reward"], -part["reward"]], -1)}}
        for part in THREE
    ]
    write_dataset("walks/facts-v0", parts, spec)
    assert minari.load_dataset("walks/facts-v0")[0].infos["cost"].tolist() == [0, 0, 1, 2]
    data = load_dataset("walks/facts-v0", facts=("cost", "pair", "other"))
    assert data.spec.facts == {"cost": (), "pair": (2,)}
    assert torch.equal(data.data["cost"], data.data["obs"][:, 0])
    assert torch.equal(data.data["pair"], torch.stack([data.data["reward"], -data.data["reward"]], -1))
    assert data.data["cost"].dtype == torch.get_default_dtype()
    assert "cost" not in load_dataset("walks/facts-v0").data.keys()
    write_dataset("walks/again-v0", data.data, data.spec)  # from a batch, as recorders have it
    again = load_dataset("walks/again-v0", facts=("pair",))
    assert torch.equal(again.data["pair"], data.data["pair"])
    short = [THREE[0] | {"facts": {"cost": np.zeros(2)}}]
    with pytest.raises(UsageError, match=r"episode 0, of 3 decisions, does not fit .* a fact has 2 values"):
        write_dataset("walks/short-v0", short, spec)


def test_facts_reach_what_learns_from_data():
    """Recorded on a task with facts, read by the data of a method on that task."""
    task = make_task(Costly, 2, facts=("cost",))
    write_dataset("costly/some-v0", record(Uniform(task.spec), task, 3, greedy=False), task.spec)
    data = recorded_data("costly/some-v0", task, random_episodes=1)
    start, time = data["obs"][:, 1], data["obs"][:, 0] - data["obs"][:, 1]
    assert torch.equal(data["cost"], 10 * start + time + 1)
    assert "cost" not in recorded_data("costly/some-v0", make_task(Costly), random_episodes=1).keys()


@pytest.mark.parametrize("task", ["Pendulum-v1", "CartPole-v1", "recall", "chain", "masked"])
def test_every_kind_of_space_survives(task):
    made = make_task(task, num=2)
    data = record(Uniform(made.spec), made, 3, greedy=False)
    write_dataset("any/random-v1", data, made.spec, task=task)
    again = load_dataset("any/random-v1").check(made.spec)
    for key, value in data.flatten_keys("/").items():
        torch.testing.assert_close(again.data.flatten_keys("/")[key], value, check_dtype=key != "first")
    remade = make_task("any/random-v1", num=2)
    assert (remade.spec.name, remade.spec.action, remade.num) == (task, made.spec.action, 2)


def test_images_and_shifted_actions():
    spec = Spec(spaces.Box(0, 255, (2, 32, 32), np.uint8), spaces.Discrete(3, start=5))
    rng = np.random.default_rng(0)
    part = episode(4) | {"obs": rng.integers(0, 256, (5, 2, 32, 32), dtype=np.uint8), "action": np.array([5, 7, 6, 5])}
    write_dataset("images-v0", [part], spec)
    data = load_dataset("images-v0").data
    assert data["action"].tolist() == [5, 7, 6, 5]  # as the environment takes them
    assert data["obs"].dtype == torch.uint8
    np.testing.assert_array_equal(data["next_obs"], part["obs"][1:])
    write_dataset("again-v0", data, spec)
    assert minari.load_dataset("again-v0")[0].actions.tolist() == [5, 7, 6, 5]


def test_returns_to_go_do_not_cross_episodes():
    data = TensorDict(
        {"reward": torch.tensor([1.0, 2.0, 4.0, 8.0]), "first": torch.tensor([True, False, True, False])}, [4]
    )
    assert returns_to_go(data).tolist() == [3.0, 2.0, 12.0, 8.0]
    assert returns_to_go(data, 0.5).tolist() == [2.0, 2.0, 8.0, 8.0]
    assert episode_returns(data).tolist() == [3.0, 12.0]


def test_options_of_the_task_are_kept():
    made = make_task("CartPole-v1", max_episode_steps=7)
    data = record(Uniform(made.spec), made, 2, greedy=False)
    write_dataset("short-v0", data, made.spec, task="CartPole-v1", task_options={"max_episode_steps": 7})
    task = make_task("short-v0")
    assert record(Uniform(task.spec), task, 3, greedy=False)["first"].sum() == 3
    assert task._make.kwargs["max_episode_steps"] == 7


# What is wrong


def damage(name, folder, what):
    data = folder / name / "data"
    if what == "no metadata":
        (data / "metadata.json").unlink()
    elif what == "other metadata":
        (data / "metadata.json").write_text("{}")
    elif what == "no json":
        (data / "metadata.json").write_text("{")
    elif what == "no data":
        (data / "main_data.hdf5").unlink()
    elif what == "cut":
        file = data / "main_data.hdf5"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        metadata = json.loads((data / "metadata.json").read_text())
        metadata |= {"fewer": {"total_episodes": 2}, "more": {"total_steps": 99}, "none": {"total_episodes": 0}}[what]
        (data / "metadata.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no metadata", "is not a Minari dataset: it has no metadata.json"),
        ("other metadata", "is not the metadata of a Minari dataset"),
        ("no json", "cannot be read: Expecting"),
        ("no data", "the dataset walks/three-v0 is damaged: No data found"),
        ("cut", "the dataset walks/three-v0 is damaged: "),
        ("fewer", "is damaged: it should hold 9 decisions and holds 5"),
        ("more", "is damaged: it should hold 99 decisions and holds 9"),
        ("none", "the dataset walks/three-v0 is empty: it holds no decision"),
    ],
)
def test_damaged_datasets(folder, what, said):
    write_dataset("walks/three-v0", THREE, BOX, task="Pendulum-v1")
    damage("walks/three-v0", folder, what)
    with pytest.raises(UsageError) as error:
        load_dataset("walks/three-v0")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["obs", "reward", "action"])
def test_numbers_that_are_none(key):
    part = episode(3)
    part[key][1] = np.nan
    write_dataset("nan-v0", [episode(2), part], BOX)
    what = {"obs": r"the observation", "reward": "the reward", "action": "the action"}[key]
    said = rf"the dataset nan-v0 is damaged: {what} of decision 3 \(step 1 of episode 1\) is not finite"
    with pytest.raises(UsageError, match=said):
        load_dataset("nan-v0")


def test_the_last_observation_and_several_rows_that_are_none():
    part = episode(3)
    part["obs"][3] = np.inf
    write_dataset("last-v0", [part], BOX)
    with pytest.raises(UsageError, match=r"what was observed after the action of decision 2 \(step 2 of episode 0\)"):
        load_dataset("last-v0")
    part = episode(3)
    part["reward"][:2] = np.nan
    write_dataset("two-v0", [part], BOX)
    with pytest.raises(UsageError, match=r"the reward of decision 0 \(step 0 of .*\) is not finite, and 1 more"):
        load_dataset("two-v0")


def test_an_action_outside_of_its_space_is_named():
    spec = Spec(BOX.obs, spaces.Discrete(3, start=5), "shifted")
    for actions, bad in (([5, 7, 6], None), ([5, 8, 6], 1), ([4, 5, 5], 0)):
        write_dataset(f"shifted{bad}-v0", [episode(3) | {"action": np.array(actions)}], spec)
        if bad is None:
            assert load_dataset("shiftedNone-v0").data["action"].tolist() == actions
            continue
        with pytest.raises(UsageError, match=rf"the action of decision {bad} .* is not in Discrete\(3, start=5\)"):
            load_dataset(f"shifted{bad}-v0")


def test_an_episode_needs_one_observation_more_than_it_has_decisions(folder):
    write_dataset("short-v0", [episode(3)], BOX)
    with h5py.File(folder / "short-v0" / "data" / "main_data.hdf5", "r+") as file:
        stored = file["episode_0/observations"]
        values = stored[:3]
        del file["episode_0/observations"]
        file["episode_0"].create_dataset("observations", data=values)
    said = "damaged: episode 0 has 3 rewards and 3 observations: it needs 4, one before each decision and one after the"
    with pytest.raises(UsageError, match=said):
        load_dataset("short-v0")


def test_an_unknown_id_names_the_nearest(monkeypatch):
    write_dataset("walks/three-v0", THREE, BOX)

    def no_network(*arguments):
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr("polopt.tasks.recorded.getproxies", dict)
    said = r"there is no dataset walks/thre-v0 here, and no network to download it; did you mean 'walks/three-v0'\?"
    for ask in (load_dataset, make_task):
        with pytest.raises(UsageError, match=said):
            ask("walks/thre-v0")
    with pytest.raises(UsageError, match=r"'a b' is no id of a dataset"):
        load_dataset("a b")
    with pytest.raises(UsageError, match=r"there is no task 'Pendulum-v7'"):
        make_task("Pendulum-v7")


def test_a_remote_id_is_downloaded(monkeypatch):
    """With a network: here Minari's download writes the dataset itself."""

    def fetch(name):
        if name != "theirs/walk-v0":
            raise ValueError("Couldn't find any version")
        write_dataset(name, THREE, BOX, env_spec=polopt_spec())

    monkeypatch.setattr("polopt.tasks.recorded.getproxies", lambda: {"https": "x"})
    monkeypatch.setattr(minari, "download_dataset", fetch)
    assert make_task("theirs/walk-v0").spec.name == "Pendulum-v1"
    assert len(load_dataset("theirs/walk-v0").data) == 9
    with pytest.raises(UsageError, match="there is no dataset theirs/run-v0, neither here nor on Minari's server"):
        recorded.download("theirs/run-v0")


def polopt_spec():
    return gymnasium.spec("Pendulum-v1")


def test_no_code_that_only_the_dataset_names_is_imported(folder):
    write_dataset("code-v0", THREE, BOX, task="os:system")
    with pytest.raises(
        UsageError, match=r"code-v0 was recorded on code of yours, os:system: say both, --task and --data"
    ):
        make_task("code-v0")
    write_dataset("spec-v0", THREE, BOX, env_spec=polopt_spec())
    path = folder / "spec-v0" / "data" / "metadata.json"
    text = path.read_text().replace("gymnasium.envs.classic_control.pendulum:PendulumEnv", "evil.module:Env")
    path.write_text(text.replace("Pendulum-v1", "Evil-v1"))
    with pytest.raises(UsageError, match=r"spec-v0 was recorded on Evil-v1 of 'evil\.module:Env', which is not"):
        make_task("spec-v0")
    path.write_text(text.replace("evil.module:Env", "evil.module:call"))  # under a registered id
    assert make_task("spec-v0").spec.name == "Pendulum-v1"
    for entry in ("polopt.tasks.making:named_function", "gymnasium.envs.registration:make", "polopt.nothing:Env"):
        path.write_text(text.replace("evil.module:Env", entry).replace("Pendulum-v1", "Evil-v1"))
        with pytest.raises(UsageError, match=f"of '{entry}', which is not known here"):
            make_task("spec-v0")
    for entry, known in (("evil.module:Wrap", False), ("gymnasium.wrappers:FlattenObservation", True)):
        wrapped = gymnasium.wrappers.FlattenObservation(gymnasium.make("Pendulum-v1")).spec
        write_dataset(f"wrapped-{known:d}-v0", THREE, BOX, env_spec=wrapped)
        path = folder / f"wrapped-{known:d}-v0" / "data" / "metadata.json"
        named = path.read_text().replace("gymnasium.wrappers.transform_observation:FlattenObservation", entry)
        assert entry in named
        path.write_text(named)
        if known:
            assert make_task(f"wrapped-{known:d}-v0").spec.name == "Pendulum-v1"
            continue
        with pytest.raises(UsageError, match=r"with the wrapper 'evil\.module:Wrap', which is not known here"):
            make_task(f"wrapped-{known:d}-v0")
    write_dataset("bare-v0", THREE, BOX)
    with pytest.raises(UsageError, match="bare-v0 does not say which environment it was recorded on"):
        recorded.environment("bare-v0")
    with pytest.raises(UsageError, match="bare-v0 is recorded data without an environment, and this needs one"):
        make_task("bare-v0").reset()
    write_dataset("words-v0", THREE, BOX, task="vowels", task_options={"rewards": "nowhere:f"})
    with pytest.raises(UsageError, match="words-v0 names the text task vowels, which no dataset is recorded on"):
        make_task("words-v0")


def test_nothing_half_written_is_left(folder):
    def broken():
        yield episode(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset("walks/three-v0", broken(), BOX)
    part = episode(3) | {"action": np.zeros((3, 5, 5))}
    part["obs"] = np.zeros((4, 7))
    with pytest.raises(UsageError, match="episode 1, of 3 decisions, does not fit the spaces of boxes: cannot reshape"):
        write_dataset("walks/three-v0", [episode(2), part], BOX)
    assert recorded.local_datasets() == []
    assert not [path for path in folder.rglob("*") if path.is_file()]
    with pytest.raises(UsageError, match="there is nothing to write"):
        write_dataset("walks/three-v0", [], BOX)
    write_dataset("walks/three-v0", THREE, BOX)
    with pytest.raises(UsageError, match="there is a dataset walks/three-v0 already"):
        write_dataset("walks/three-v0", THREE, BOX)


# In a run


def write_pendulum(name: str = "pendulum/random-v0", **options: Any) -> None:
    made = make_task("Pendulum-v1", num=2, max_episode_steps=20)
    data = record(Uniform(made.spec), made, 4, greedy=False)
    write_dataset(name, data, made.spec, task="Pendulum-v1", task_options={"max_episode_steps": 20}, **options)


def test_a_task_that_is_a_dataset(tmp_path):
    write_pendulum(references=(-200.0, -100.0))
    run = polopt.train("bc", "pendulum/random-v0", steps=4, out=tmp_path / "run", loggers=(), batch_size=8)
    final = run.final
    assert final["eval/normalized_return"] == pytest.approx(final["eval/return"] + 200.0)
    assert final["eval/length"] == 20
    polopt.resume(run.folder, extend=6)
    scores = polopt.evaluate(run.folder, episodes=2)
    assert scores["normalized_return"] == pytest.approx(scores["return"] + 200.0)
    assert polopt.load(run.folder).predict(np.zeros(3, dtype=np.float32)).shape == (1,)
    assert polopt.report([run.folder], video=False).exists()


def test_where_recorded_data_come_from():
    write_pendulum()
    task = make_task("pendulum/random-v0")
    assert len(recorded_data("", task, random_episodes=1)) == 80
    plain = make_task("Pendulum-v1", max_episode_steps=20)
    assert recorded_data("", plain, random_episodes=1) is None
    assert len(recorded_data("pendulum/random-v0", plain, random_episodes=1)) == 80
    assert len(recorded_data("random", plain, random_episodes=3)) == 60
    with pytest.raises(UsageError, match="the observations of pendulum/random-v0 are"):
        recorded_data("pendulum/random-v0", make_task("CartPole-v1"), random_episodes=1)


def test_gymnasium_names_win():
    write_dataset("CartPole-v1", THREE, BOX, task="Pendulum-v1")
    assert make_task("CartPole-v1").spec.name == "CartPole-v1"

"""Recorded data as they come: a sentence about what is odd in them, and learning that stays finite and in bounds."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import polopt
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.storing import write_dataset
from polopt.training.dataset_facts import info
from tests.training.test_unplayed import SMALL, recording

ORDER = np.random.default_rng(1).permutation(120)


def changed(**columns: Any) -> dict[str, Any]:
    """A recording with other columns, and without those that are None."""
    return {key: value for key, value in (recording() | columns).items() if value is not None}


ODD: dict[str, tuple[dict[str, Any], str | None]] = {
    "wide": ({key: value.astype(np.float64) for key, value in recording().items()}, None),
    "of one reward": (changed(rewards=np.ones(120)), "every reward is 1: what is learned is to live longer"),
    "of one episode": ({key: value[:10] for key, value in recording().items()}, "one episode: nothing can be held out"),
    "without an end": (changed(terminals=np.zeros(120, bool)), "no episode terminates: right where a task has no end"),
    "in no order": (
        {key: value[ORDER] for key, value in recording().items()},
        "decisions are not followed by their successor, so the rows are in no order",
    ),
    "without what followed": (
        changed(next_observations=None),
        "without next_observations, what followed the last decision of 6 episodes that did not terminate",
    ),
    "that never move": (
        changed(observations=np.ones((120, 2)), next_observations=np.ones((120, 2))),
        "the observations never change",
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["td3-bc", "iql"])
@pytest.mark.parametrize("name", ODD)
def test_odd_data_are_named_and_learned_from(name, method, tmp_path):
    data, said = ODD[name]
    found = info(data)["warnings"]
    if said is None:
        assert found == info(recording())["warnings"]
    else:
        assert any(said in sentence for sentence in found), found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = polopt.train(method, data, steps=4, out=tmp_path / "run", **SMALL)
    assert run.final["updates"] == 4
    numbers = [value for row in run.rows for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    assert abs(polopt.load(run.folder).predict(np.ones(2, np.float32))).max() <= 1.0


def test_actions_beyond_the_bounds_count_as_the_bound(tmp_path):
    data = changed(actions=np.where(np.arange(120)[:, None] % 2, 3.0, -0.5).astype(np.float32))
    plan = polopt.training.api.plan("td3-bc", data, task_options={"low": -1.0, "high": 1.0}, **SMALL)
    assert sorted(set(plan.build().collect()["action"].flatten().tolist())) == [-0.5, 1.0]


def test_a_range_of_returns_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="all episodes of this dataset have the same"):
        polopt.train("iql", ODD["of one reward"][0], steps=4, out=tmp_path / "run", rewards="return-range", **SMALL)


# Sets in Minari's format, which others have made


def stored(name: str, episodes: int = 12, length: int = 6, wide: bool = False) -> list[dict[str, Any]]:
    """Writes a set whose observations say to which episode and step they belong; gives its episodes."""
    kind = np.float64 if wide else np.float32
    bounds = spaces.Box(-np.inf, np.inf, (2,), kind), spaces.Box(-1.0, 1.0, (1,), kind)
    ends = np.arange(length) == length - 1
    parts = []
    for number in range(episodes):
        obs = np.stack([np.full(length + 1, number), np.arange(length + 1)], 1).astype(kind)
        part = {"obs": obs, "action": np.tanh(0.2 * obs[1:, :1] - 1.0), "reward": obs[1:, 1] + 0.1 * number}
        parts.append(part | {"terminated": ends & (number % 2 == 0), "truncated": ends & (number % 2 == 1)})
    write_dataset(name, parts, Spec(*bounds, "made elsewhere"))
    return parts


@pytest.fixture
def sets(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return lambda name: tmp_path / "datasets" / name / "data" / "main_data.hdf5"


def edit(file: Any, change: Any) -> None:
    """Changes episodes where they are stored, as a tool that is not careful leaves them."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(file, "r+") as opened:
        change(opened)


@pytest.mark.parametrize("method", ["td3-bc", "iql"])
@pytest.mark.parametrize(("kind", "said"), [("wide", None), ("of one episode", "one episode: nothing can be held out")])
def test_odd_sets_are_named_and_learned_from(method, kind, said, sets, tmp_path):
    stored("odd-v0", episodes=1 if said else 12, wide=kind == "wide")
    found = info("odd-v0")["warnings"]
    assert any(said in sentence for sentence in found) if said else not found, found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = polopt.train(method, "odd-v0", steps=4, out=tmp_path / "run", **SMALL)
    numbers = [value for row in run.rows for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    assert polopt.load(run.folder).predict(np.ones(2)).dtype == (np.float64 if kind == "wide" else np.float32)


def test_episodes_of_a_set_that_are_stored_in_another_order_stay_whole(sets):
    """Names of groups sort as text, and a set that was put together has them in any order: each keeps its decisions."""
    from polopt.data.datasets import load_dataset

    stored("odd-v0")

    def turned(opened: Any) -> None:
        for low in range(6):
            for source, target in ((low, "kept"), (11 - low, f"episode_{low}"), ("kept", f"episode_{11 - low}")):
                opened.move(f"episode_{source}" if source != "kept" else "kept", target)

    edit(sets("odd-v0"), turned)
    data = load_dataset("odd-v0").data
    assert data["obs"][::6, 0].tolist() == [float(number) for number in reversed(range(12))]
    assert (data["obs"][:, 0] == data["next_obs"][:, 0]).all()
    assert (data["obs"][:, 1] + 1 == data["next_obs"][:, 1]).all()
    assert data["first"].nonzero().flatten().tolist() == list(range(0, 72, 6))
    assert (data["terminated"] | data["truncated"]).nonzero().flatten().tolist() == list(range(5, 72, 6))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("observations", lambda old: old[:-1], "episode 3 has 6 rewards and 6 observations: it needs 7"),
        ("observations", lambda old: np.where(old == 2, np.nan, old), "the observation .*of episode 3.* is not finite"),
        ("rewards", lambda old: np.where(np.arange(6) == 1, np.nan, old), "the reward of decision 19 .* is not finite"),
        ("actions", lambda old: old * np.nan, "the action of decision 18 .* is not finite, and 5 more"),
    ],
)
def test_a_set_with_something_missing_is_refused_before_a_run_begins(name, value, said, sets, tmp_path):
    stored("odd-v0")

    def broken(opened: Any) -> None:
        old = opened[f"episode_3/{name}"][:]
        del opened[f"episode_3/{name}"]
        opened["episode_3"].create_dataset(name, data=value(old))

    edit(sets("odd-v0"), broken)
    with pytest.raises(UsageError, match=f"^the dataset odd-v0 is damaged: {said}") as error:
        polopt.train("td3-bc", "odd-v0", steps=4, out=tmp_path / "run", **SMALL)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()

"""`polopt dataset info`: what is in recorded data, and a sentence for each thing that breaks learning from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from polopt import cli
from polopt.core.spec import Spec
from polopt.data.arrays import load_arrays
from polopt.training.concerns import at_bounds, concerns
from polopt.training.dataset_facts import info


def recording(**changes: Any) -> dict[str, Any]:
    """Six episodes of five decisions of which every other one terminates, with nothing wrong."""
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 6, 2))
    ends = np.tile(np.arange(5) == 4, 6)
    terminates = np.arange(30) % 10 >= 5
    return {
        "observations": obs[:, :-1].reshape(30, 2),
        "next_observations": obs[:, 1:].reshape(30, 2),
        "actions": random.uniform(-0.9, 0.9, (30, 2)),
        "rewards": random.normal(size=30),
        "terminals": ends & terminates,
        "timeouts": ends & ~terminates,
    } | changes


ENDS = np.tile(np.arange(5) == 4, 6)
NEVER = np.zeros(30, bool)
BOUND = np.where(np.arange(60).reshape(30, 2) % 3 == 0, 1.0, 0.3 * np.sin(np.arange(60)).reshape(30, 2))


def test_nothing_is_said_where_nothing_is_wrong():
    assert concerns(load_arrays(recording())) == []
    assert concerns(load_arrays(recording(actions=np.arange(30) % 3))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"terminals": NEVER, "timeouts": ENDS}, "no episode terminates: right where a task has no end, wrong where"),
        (
            {"terminals": ENDS, "timeouts": NEVER},
            "all 6 episodes terminate after exactly 5 decisions: if that is a time",
        ),
        ({"rewards": np.full(30, 2.0)}, "every reward is 2: what is learned is to live longer, or shorter"),
        ({"actions": BOUND}, "33.3 % of the coordinates of actions are at the bounds, where log-probabilities"),
        (
            {"actions": np.linspace(-0.01, 0.01, 60).reshape(30, 2)},
            "the actions use 0.98 % of their bounds: they may be",
        ),
        ({"actions": np.zeros((30, 2))}, "all decisions take the same action: nothing is known of any other"),
        ({"actions": np.arange(30) % 2 * 3}, "2 of 4 actions never occur: 1, 2"),
        ({"rewards": np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 6)}, "all episodes have the same return: rewards cannot be"),
    ],
)
def test_each_concern_by_itself(changes, said):
    found = concerns(load_arrays(recording(**changes)))
    assert len(found) == 1, found
    assert found[0].startswith(said)


def test_observations_of_unequal_scale():
    found = recording()
    for key in ("observations", "next_observations"):
        found[key] = found[key] * np.array([1.0, 1e5])
    (said,) = concerns(load_arrays(found))
    assert said.startswith("coordinates of the observations differ in scale by 9.3e+04:")
    for key in ("observations", "next_observations"):
        found[key] = np.zeros((30, 2))
    assert concerns(load_arrays(found)) == ["the observations never change"]


def test_one_episode_and_rewards_from_which_nothing_follows():
    ends = np.arange(30) == 29
    obs = np.random.default_rng(0).normal(size=(31, 2))
    one = {"observations": obs[:-1], "next_observations": obs[1:]}
    found = recording(**one, terminals=NEVER, timeouts=ends, rewards=np.zeros(30))
    assert [sentence.partition(":")[0] for sentence in concerns(load_arrays(found))] == [
        "one episode",
        "it does not terminate",
        "every reward is 0 and nothing terminates",
    ]
    found = recording(**one, terminals=ends, timeouts=NEVER)
    assert [sentence.partition(":")[0] for sentence in concerns(load_arrays(found))] == ["one episode"]


def test_rows_without_order_and_successors_that_are_missing():
    order = np.random.default_rng(1).permutation(30)
    found = info({key: value[order] for key, value in recording().items()})
    assert "so the rows are in no order" in found["warnings"][0]
    found = recording()
    del found["next_observations"]
    (said,) = info(found)["warnings"]
    assert said.startswith("without next_observations, what followed the last decision of 3 episodes")


def test_actions_at_and_beyond_the_bounds():
    """Bounds of a task: [-2, 2]. Of 60 coordinates 6 are at 2, 3 at -2, and 6 beyond."""
    action = np.linspace(-1.9, 1.9, 60)
    action[:15] = [2.0] * 6 + [-2.0] * 3 + [2.5] * 3 + [-7.0] * 3
    spec = Spec(spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-2.0, 2.0, (2,)))
    data = load_arrays(recording(actions=action.reshape(30, 2)), spec)
    assert at_bounds(data) == pytest.approx((0.25, 0.1))
    beyond, at = concerns(data)
    assert beyond.startswith("10 % of the coordinates of actions are beyond the bounds Box(-2.0, 2.0")
    assert at.startswith("25 % of the coordinates of actions are at the bounds")
    assert at_bounds(load_arrays(recording(actions=np.arange(30) % 3))) == (None, None)


def test_info_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **recording(terminals=ENDS, timeouts=NEVER))
    assert cli.main(["dataset", "info", "mine.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["transitions"], found["length"]) == (6, 30, 5)
    assert (found["terminated"], found["truncated"], found["task"]) == (1.0, 0.0, None)
    assert found["return"] == pytest.approx(recording()["rewards"].sum() / 6, rel=1e-5)
    assert 0.0 < found["coverage"] <= 1.0
    assert found["actions_at_bounds"] == 0.0
    assert len(found["warnings"]) == 1
    assert cli.main(["dataset", "info", "mine.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("warning: all 6 episodes terminate after exactly 5")
    assert cli.main(["dataset", "info", "other.npz"]) == 2
    assert "there is no file other.npz" in capsys.readouterr().err

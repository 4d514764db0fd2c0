"""Recorded data as they come: a sentence about what is odd in them, and learning that stays finite and in bounds."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import polopt
from polopt.core.errors import UsageError
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

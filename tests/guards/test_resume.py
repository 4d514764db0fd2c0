"""A stopped run continues bitwise as the run that was never stopped, for every method."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor

import polopt
from polopt import registry
from polopt.core import signals
from polopt.core.state import gather, restore
from polopt.evaluation.score import Score
from polopt.training import seeding
from polopt.training.folder import Run
from tests.guards.harness import BUILT, SEED, advance, built, content, enough, plan
from tests.guards.options import smoke

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* had not ended after 20 decisions"),  # which are enough here
    pytest.mark.filterwarnings("error:.* became "),  # a number that is not finite
]


def settings(name):
    """Those of a run that saves when it is about to be stopped, which is before it is logged."""
    tiny = registry.load(name).smoke
    return tiny, {
        "steps": tiny.steps,
        "seed": SEED,
        "task_options": tiny.task_options,
        "eval_episodes": 1,
        "eval_length": 20,
        "eval_every": tiny.steps,
        "checkpoint_every": max(1, 5 * tiny.steps // 8),
        "log_every": max(1, tiny.steps // 8),
        "loggers": (),
        **tiny.config,
    }


def final_state(folder):
    checkpoints = Run(folder).checkpoints
    return checkpoints.load(checkpoints.steps()[-1])


def same(one, other):
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("name", BUILT)
def test_what_was_restored_stays_as_it_is(name, float64):
    """Snapshots and archives are restored from again: training on writes into nothing that was given back."""
    state = smoke(name).state
    before = {path: content(leaf) for path, leaf in state.items()}
    with built(name) as other:
        restore(other, state)
        advance(other, registry.load(name).smoke.steps, enough(name))
    for path, leaf in before.items():
        assert same(leaf, content(state[path])), path


@pytest.mark.parametrize("name", BUILT)
def test_evaluations_leave_what_is_saved_as_it_is(name, monkeypatch):
    """Whole ones, which so give the same scores again, and one that is broken off: a run that is stopped there saves
    what it was before, and evaluates again when it goes on."""
    asked = [0]

    def check():
        asked[0] += 1
        if asked[0] == 2:
            raise signals.Stopped

    def now():
        return {path: content(leaf) for path, leaf in gather(method).items()} | {"torch": torch.get_rng_state()}

    with built(name) as method:
        advance(method, 1)
        task = plan(name, eval_length=20).make_task(seeding.EVAL_TASK, 2)
        states = [now()]
        try:
            scores = method.evaluate(task, 2)
            assert scores == method.evaluate(task, 2)
            assert math.isfinite(Score(method.score).of(scores))
            states.append(now())
            monkeypatch.setattr(signals, "check", check)
            with contextlib.suppress(signals.Stopped):
                method.evaluate(task, 2)
        finally:
            task.close()
        states.append(now())
    for state in states[1:]:
        assert [path for path, leaf in states[0].items() if not same(leaf, state[path])] == []


@pytest.mark.parametrize("name", BUILT)
def test_stopped_equals_unstopped(name, tmp_path):
    tiny, options = settings(name)
    polopt.train(name, tiny.task, out=tmp_path / "whole", **options)
    rows = polopt.iterate(name, tiny.task, out=tmp_path / "stopped", **options)
    for row in rows:
        if row[row["method"].unit] >= 0.6 * tiny.steps:
            break
    rows.close()
    polopt.resume(tmp_path / "stopped")
    one, other = final_state(tmp_path / "whole"), final_state(tmp_path / "stopped")
    assert one.keys() == other.keys()
    for path, value in one.items():
        if path == "#seconds":
            continue
        assert same(value, other[path]), path
    scores = polopt.evaluate(tmp_path / "stopped", episodes=1, stochastic=True)
    assert math.isfinite(Score(registry.load(name).score).of(scores))

"""A stopped run continues bitwise as the run that was never stopped, for every method."""

from __future__ import annotations

import contextlib
import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor

import polopt
from polopt import registry
from polopt.core import signals
from polopt.core.state import Blob, gather, restore
from polopt.evaluation.score import Score
from polopt.training import seeding
from polopt.training.folder import Run
from tests.guards.harness import BUILT, SEED, advance, built, enough, plan

pytestmark = pytest.mark.filterwarnings("ignore:.* had not ended after 20 decisions")  # which are enough here


def settings(name):
    smoke = registry.load(name).smoke
    every = max(1, smoke.steps // 8)
    return smoke, {
        "steps": smoke.steps,
        "seed": SEED,
        "task_options": smoke.task_options,
        "eval_episodes": 1,
        "eval_length": 20,
        "eval_every": smoke.steps,
        "checkpoint_every": every,
        "log_every": every,
        "loggers": (),
        **smoke.config,
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


def content(leaf):
    """A copy of a leaf, of a block its tensors."""
    return copy.deepcopy(leaf.tensors() if isinstance(leaf, Blob) else leaf)


@pytest.mark.parametrize("name", BUILT)
def test_what_was_restored_stays_as_it_is(name):
    """Snapshots and archives are restored from again: training on writes into nothing that was given back."""
    steps = registry.load(name).smoke.steps
    with built(name) as method:
        advance(method, steps // 2, enough(name))
        state = {
            path: Blob(leaf.key, partial(dict, content(leaf))) if isinstance(leaf, Blob) else content(leaf)
            for path, leaf in gather(method).items()
        }
    before = {path: content(leaf) for path, leaf in state.items()}
    with built(name) as other:
        restore(other, state)
        advance(other, steps, enough(name))
    for path, leaf in before.items():
        assert same(leaf, content(state[path])), path


@pytest.mark.parametrize("name", BUILT)
def test_an_evaluation_that_is_broken_off_leaves_what_is_saved_as_it_is(name, monkeypatch):
    """A run that is stopped there saves what it was before, and evaluates again when it goes on."""
    asked = [0]

    def check():
        asked[0] += 1
        if asked[0] == 2:
            raise signals.Stopped

    with built(name) as method:
        advance(method, 1)
        task = plan(name).make_task(seeding.EVAL_TASK, 2)
        before = {path: content(leaf) for path, leaf in gather(method).items()} | {"torch": torch.get_rng_state()}
        monkeypatch.setattr(signals, "check", check)
        try:
            with contextlib.suppress(signals.Stopped):
                method.evaluate(task, 2)
        finally:
            task.close()
        after = {path: content(leaf) for path, leaf in gather(method).items()} | {"torch": torch.get_rng_state()}
    assert [path for path, leaf in before.items() if not same(leaf, after[path])] == []


@pytest.mark.parametrize("name", BUILT)
def test_stopped_equals_unstopped(name, tmp_path):
    smoke, options = settings(name)
    polopt.train(name, smoke.task, out=tmp_path / "whole", **options)
    rows = polopt.iterate(name, smoke.task, out=tmp_path / "stopped", **options)
    for row in rows:
        if row[row["method"].unit] >= 0.6 * smoke.steps:
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

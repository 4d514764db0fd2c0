"""Limit cases: at the declared setting a method is its base, bitwise, and elsewhere it is not."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import fields, replace

import pytest
import torch

from polopt import registry
from polopt.bases.method import Method
from polopt.core.state import gather, restore
from polopt.training import api
from tests.guards.harness import BUILT, built, load, reseed


def own_limits(cls):
    """Those of the method itself, wherever they stand: in its class or in its settings beside it, and not in a base."""
    owner = next(base for base in cls.__mro__ if "limits" in vars(base))
    return owner.limits if owner is cls or not issubclass(owner, Method) else ()


CASES = [pytest.param(name, limit, id=f"{name}-is-{limit.base}") for name in BUILT for limit in own_limits(load(name))]
UPDATES = 3


def policies_after(name, limit, settings):
    """Policies of the base and of the method, or of the learner that it holds, after the same batches."""
    smoke = registry.load(limit.base).smoke
    if limit.task is not None:
        smoke = replace(smoke, task=limit.task, task_options={})
    with built(limit.base, limit.task, **limit.base_at) as base:
        names = {item.name for item in fields(registry.load(name).Config)}
        common = {key: value for key, value in smoke.config.items() if key.partition(".")[0] in names}
        planned = api.plan(name, smoke.task, task_options=smoke.task_options, seed=7, **{**common, **settings})
        method = planned.build()
        learner = dict(method.learners())[limit.learner]
        # The two start from the same weights wherever they have modules of the same name and shape.
        state = {path: leaf.clone() for path, leaf in gather(base).items() if torch.is_tensor(leaf)}
        restore(learner, state, strict=False)
        for update in range(UPDATES):
            for each in (base, method):
                each.progress = update / UPDATES
            reseed()
            batches = [] if limit.collects == "method" else [base.collect()]
            reseed()
            collected = batches[0].clone() if limit.collects == "base" else method.collect()
            with same_draws(learner, update, batches if limit.collects == "method" else None):
                method.update(collected)
            with same_draws(base, update):
                for batch in batches:
                    base.update(batch)
            for each in (base, method):
                each.ledger.updates += 1
        assert dict(method.learners())[limit.learner] is learner
        method.task.close()
        return [gather(each.policy) for each in (base, learner)]


@contextlib.contextmanager
def same_draws(learner, number, batches=None):
    """The learner's updates draw the same random numbers as those of another one; its batches are noted."""
    original, count = learner.update, itertools.count(number)

    def update(batch):
        if batches is not None:
            batches.append(batch.clone())
        reseed()
        learner.generator.manual_seed(next(count))
        return original(batch)

    learner.update = update
    yield
    del learner.update


def difference(one, other):
    """The largest of all tensors; infinite where shapes differ."""
    tensors = [(one[path], other[path]) for path in one if torch.is_tensor(one[path])]
    return max(float((a - b).abs().max()) if a.numel() == b.numel() else float("inf") for a, b in tensors)


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_limit(name, limit, float64):
    base, method = policies_after(name, limit, limit.at)
    assert base.keys() == method.keys()
    assert difference(base, method) <= limit.tolerance, limit.because


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_apart(name, limit, float64):
    base, method = policies_after(name, limit, limit.at | limit.apart)
    assert difference(base, method) > 0, (
        f"{name} is {limit.base} also away from the limit: its mechanism is not wired in"
    )


def test_limits_in_settings_are_shown_too():
    shown = {case.values[0] for case in CASES}
    assert {"mdpo", "mdpo-off", "f-dpg"} <= shown
    assert shown == {name for name in BUILT if load(name).limits and own_limits(load(name))}

"""A short golden trajectory for every method: a refactoring that changes a number says so."""

from __future__ import annotations

import json

import pytest

from polopt import registry
from tests.guards.golden import FOLDER, UPDATES
from tests.guards.harness import BUILT, ENTRIES
from tests.guards.options import smoke

HOW = (
    "if the change is meant, write it down in CHANGELOG.md in a line that names {name}, and run "
    "`python -m tests.guards.golden {name}`"
)


@pytest.mark.parametrize("name", BUILT)
def test_golden_trajectory(name):
    path = FOLDER / f"{name}.json"
    assert path.exists(), f"{name} has no golden trajectory yet: run `python -m tests.guards.golden {name}`"
    golden, now = json.loads(path.read_text()), smoke(name).numbers[:-1][:UPDATES]  # the last are of an evaluation
    assert len(now) == len(golden), (
        f"{name} makes {len(now)} updates in place of {len(golden)}; {HOW.format(name=name)}"
    )
    for update, (expected, found) in enumerate(zip(golden, now)):
        assert found.keys() == expected.keys(), f"update {update} of {name} has other metrics; {HOW.format(name=name)}"
        for metric, value in expected.items():
            # Rounding differs between machines and grows from update to update; transformers has norms in float32.
            close = pytest.approx(value, rel=1e-6 * 30**update, abs=1e-9 * 30**update)
            assert found[metric] == close, f"update {update} of {name}: {metric} changed; {HOW.format(name=name)}"


def test_what_a_base_logs_and_a_method_does_not_is_not_explained():
    """But for what an option adds, which may be off by default."""
    classes = {registry.load(name): name for name in ENTRIES}
    for cls, name in classes.items():
        for base in classes.keys() & set(cls.__mro__[1:]):
            absent = logged(classes[base]) - logged(name) - vars(cls).get("metrics", {}).keys() - {"reference_kl"}
            assert not absent & cls.explained().keys(), f"{name}: say it in `metrics_without`"


def logged(name):
    """What the golden trajectory of a method has."""
    return {metric for update in json.loads((FOLDER / f"{name}.json").read_text()) for metric in update}


def test_golden_files_belong_to_methods():
    assert {path.stem for path in FOLDER.glob("*.json")} <= set(BUILT)

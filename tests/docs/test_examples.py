"""Every script under examples/ runs to its end, with a tiny budget; `demo.py` is run by `make demo`."""

from __future__ import annotations

import dataclasses
import runpy
import sys

import pytest

from polopt.training import api
from tests.docs.blocks import ROOT

BUDGETS = {
    "compare_two.py": ["600", "2"],
    "demonstrations.py": ["600"],
    "early_stop.py": ["2000"],
    "load_and_predict.py": ["600"],
    "oversee.py": ["100"],
    "own_environment.py": ["200"],
    "own_network.py": ["600"],
    "resume_a_run.py": ["2048"],
    "tabular_stepmix.py": ["30"],
    "team.py": ["256"],
    "train_ppo.py": ["600"],
    "variant.py": ["512", "2"],
}
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_every_example_has_a_budget():
    assert set(SCRIPTS) == {*BUDGETS, "demo.py"}


@pytest.fixture
def seldom(monkeypatch):
    """Runs evaluate one episode, at their beginning, in their middle and at their end."""
    original = api.Plan.__post_init__

    def evaluated(plan):
        original(plan)
        plan.options = dataclasses.replace(plan.options, eval_every=-(-plan.steps // 2), eval_episodes=1)

    monkeypatch.setattr(api.Plan, "__post_init__", evaluated)


@pytest.mark.parametrize("name", BUDGETS)
def test_example(name, tmp_path, monkeypatch, capsys, seldom):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *BUDGETS[name]])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out

"""Every method: builds, collects, updates, stays finite, moves what it trains, and keeps its config honest."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields

import pytest

import polopt
from polopt import registry
from polopt.bases import offline
from polopt.bases.method import Method
from polopt.cli import main
from polopt.config import apply
from polopt.config.serialize import fields_of, from_dict, to_dict
from polopt.data.demonstrations import record
from polopt.data.rollouts import Rollouts
from polopt.evaluation.score import Score
from polopt.policies.wrappers import Uniform
from polopt.training import seeding
from tests.guards.harness import BUILT, OWN, load, one_of_a_kind, plan, reseed, seen_by_verbs
from tests.guards.options import Smoke, smoke

pytestmark = pytest.mark.filterwarnings("ignore:.* had not ended after 20 decisions")  # which are enough here


LUCK = {"a2pr": {"advantage_threshold": None}}
"""Settings without which a tiny run may leave something out, by the luck of its draws."""


@pytest.mark.parametrize("name", BUILT)
def test_trains_what_it_says(name, float64):
    """In double precision; that it is finite in single precision too, test_resume.py sees."""
    run = Smoke(name, **LUCK[name]) if name in LUCK else smoke(name)
    history = run.numbers[:-1]  # the last are of an evaluation
    assert history
    logged = {metric.rpartition("/")[2] for metrics in history for metric in metrics}  # one/surrogate: a learner's
    assert logged <= {"grad_norm", *registry.load(name).explained()}, "say in `metrics` what each number means"
    assert all(math.isfinite(value) for metrics in history for value in metrics.values()), history[-1]
    assert run.faults == []


@pytest.mark.parametrize("name", one_of_a_kind(BUILT, seen_by_verbs))
def test_every_verb_serves_it(name, tmp_path, capsys, monkeypatch, request):
    """Pages are drawn where the method shows figures of its own, and of one that has none."""
    pictures = load(name).figures is not Method.figures or name == "sac"
    if pictures:
        request.getfixturevalue("drawn")
    run = registry.load(name).smoke
    settings = {"steps": run.steps, "task_options": run.task_options, "loggers": ()}
    settings |= {"eval_episodes": 1, "eval_length": 20, "eval_every": -(-run.steps // 3)}
    polopt.train(name, run.task, out=tmp_path / "run", **settings, **run.config)
    assert main(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert main(["eval", str(tmp_path / "run"), "--checkpoint", "best", "--stochastic", "--episodes", "1"]) == 0
    assert main(["report", str(tmp_path / "run"), "--no-video"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert name in page
    assert len(page) > (10_000 if pictures else 5_000)
    assert page.rstrip().endswith("</html>")
    monkeypatch.undo()  # one page is drawn
    assert main(["resume", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    score = Score(registry.load(name).score).key.replace("_", " ")
    assert printed.replace("_", " ").count(f"{score} ") >= 3


@pytest.mark.parametrize("name", BUILT)
def test_config_round_trip(name):
    config = plan(name).config
    assert from_dict(type(config), to_dict(config)) == config
    cls = registry.load(name)
    for preset in cls.presets:
        chosen = apply(cls.Config, cls.presets[preset])
        assert from_dict(type(chosen), to_dict(chosen)) == chosen


@pytest.mark.parametrize("name", BUILT)
def test_every_field_has_a_source_and_is_used(name):
    cls = registry.load(name)
    for option in fields_of(cls.Config):
        assert option.source, f"{name}: {option.name} has no source"
    bases = {base for base in (*cls.__mro__, *cls.Config.__mro__) if base.__module__.startswith(("polopt", "tests"))}
    text = "".join(inspect.getsource(inspect.getmodule(base)) for base in bases)
    for item in fields(cls.Config):
        used = re.findall(rf"config\.{item.name}\b", text)
        assert used or item.name == "envs", f"{name}: {item.name} is never read"


@pytest.mark.parametrize("name", BUILT)
def test_names_its_parts(name):
    cls = registry.load(name)
    assert cls.limits or cls.no_limit, "declare limit cases, or why there is none"
    assert name in OWN or registry.find(name).family in registry.FAMILIES
    assert inspect.getdoc(inspect.getmodule(cls)), "the module's docstring is the method's page"


def test_a_recording_is_the_same_each_time():
    """Which is why the guards play one once (`recorded_once`): so it is here the second time, and remembered the third.
    What follows in the environment is the same as well."""
    found = []
    for play in (record, offline.record, offline.record):
        task = plan("rlpd").make_task(seeding.TRAIN_TASK, 2)
        with offline.paired():
            data = play(Uniform(task.spec), task, 3, greedy=False)
        reseed()
        found.append((data, Rollouts(task, 5).next(Uniform(task.spec))))
        task.close()
    for again in found[1:]:
        assert all(bool((one == other).all()) for one, other in zip(found[0], again))

"""Methods that are judged by another number than the return: training, best checkpoints, stops, comparisons, claims."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import polopt
from polopt import registry
from polopt.claims import train_arm
from polopt.claims.arms import measure
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.evaluation.score import Score, common
from polopt.methods.control.ppo import PPO
from polopt.report import comparison, read_run, write_report
from polopt.report.compare import compare
from polopt.training.folder import Run
from tests.training.runs import TINY, settings
from tests.training.scored import METHODS, Volume

SETTINGS = TINY["ppo"][1] | {"seed": 3, "loggers": (), "eval_episodes": 1, "eval_every": 16, "lr": 0.02}


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    here = Path(__file__).with_name("scored.py")
    added = {name: registry.Location("tests.training.scored", cls.__name__, here) for name, cls in METHODS.items()}
    known = registry.locations() | added
    monkeypatch.setattr(registry, "locations", lambda: known)


def train(name, out, **changes) -> Run:
    return polopt.train(name, "CartPole-v1", out=out, **SETTINGS | changes)


def test_a_score_reads_its_number():
    assert Score("regret").of({"regret": 2.0}) == 2.0
    assert Score("-regret").of({"regret": 2.0}) == -2.0
    assert (Score("-worst_case").column, Score("-worst_case").text) == ("eval/worst_case", "minus worst case")
    assert (Score("normalized-return").column, Score("normalized-return").sign) == ("eval/normalized-return", 1.0)
    with pytest.raises(UsageError, match=r"c-morl cannot be judged by 'hypervolum', .*; did you mean 'hypervolume'"):
        Score("hypervolum").of({"hypervolume": 1.0}, "c-morl")
    assert common([("a", Score()), ("b", Score("return"))]) == Score()


@pytest.mark.parametrize(
    ("name", "column", "best"), [("volume", "eval/hypervolume", max), ("regretful", "eval/regret", min)]
)
def test_the_best_checkpoint_follows_the_score(name, column, best, tmp_path, capsys):
    run = train(name, tmp_path / "run")
    values = {row["env_steps"]: row[column] for row in run.evaluations}
    assert len(values) == 7
    wanted = best(values, key=values.get)
    assert wanted not in (0, 96), "the test says nothing unless the best evaluation lies between"
    assert run.checkpoints.steps("best") == [wanted]
    assert polopt.evaluate(run.folder, checkpoint="best")[column.removeprefix("eval/")] == values[wanted]
    assert run.final[column] == values[96]
    assert run.config["score"] == METHODS[name].score
    if name == "regretful":
        header = (run.folder / "metrics.csv").read_text().splitlines()[0]
        assert "eval/return" not in header
    assert main(["eval", str(run.folder)]) == 0
    assert f"{values[96]:.6g}" in capsys.readouterr().out


def test_what_is_shown_and_stops_is_the_score(tmp_path, capsys):
    words = ["train", "regretful", "--task", "CartPole-v1", "--out", str(tmp_path / "run"), "--until", "regret<=9"]
    assert main([*words, "--steps", "96", "--envs", "2", "--window", "8", "--loggers", "tensorboard"]) == 0
    said = capsys.readouterr()
    assert re.search(r"eval/regret 0\.\d+", said.err)
    assert re.match(r"regret 0\.\d+ at the end; report ", said.out)
    assert Run(tmp_path / "run").rows[-1]["env_steps"] == 0


def test_a_method_must_give_its_score(tmp_path, monkeypatch):
    monkeypatch.setattr(Volume, "evaluate", lambda *args, **kwargs: {"return": 1.0})
    with pytest.raises(UsageError, match="'hypervolume', which it does not give; choose from return"):
        train("volume", tmp_path / "run")


def test_arms_are_measured_by_the_score(tmp_path):
    run = train("regretful", tmp_path / "run")
    regrets = [row["eval/regret"] for row in run.evaluations]
    found = measure(run)
    assert found.keys() == {"-regret", "area", "best", "curve"}
    assert found["-regret"] == pytest.approx(-sum(regrets[-3:]) / 3)
    assert found["area"] == pytest.approx(-sum(regrets) / 7)
    assert found["best"] == -min(regrets)
    assert found["curve"][1] == [16, -regrets[1]]
    given = {name: value for name, value in SETTINGS.items() if name not in ("steps", "seed", "loggers")}
    assert train_arm("regretful", "CartPole-v1", **given)(3, {"env_steps": 96}) == found


def test_comparisons_follow_the_score(tmp_path):
    rates = (0.02, 0.05)
    runs = [train("regretful", tmp_path / f"{lr}-{seed}", seed=seed, lr=lr) for seed in range(2) for lr in rates]
    facts = comparison([run.folder for run in runs])["tasks"]["CartPole-v1"]
    assert facts["score"] == "minus regret"
    for label, row in facts["methods"].items():
        rate = float(label.split("lr=")[1].rstrip(")"))
        mine = [run for run in runs if run.config["config"]["lr"] == rate]
        last = [[row["eval/regret"] for row in run.evaluations][-3:] for run in mine]
        assert row["scores"] == pytest.approx([-sum(values) / 3 for values in last])
    estimates = [row["iqm"]["estimate"] for row in facts["methods"].values()]
    assert estimates == sorted(estimates, reverse=True)  # the smallest regret first


@pytest.mark.usefixtures("drawn")
def test_the_page_follows_the_score(tmp_path):
    run = train("regretful", tmp_path / "run")
    page = write_report([run.folder], tmp_path / "page.html").read_text()
    assert ">minus regret<" in page
    assert "± 0.25 over episodes" in page
    assert "eval/regret" not in page  # it is the curve, not one of the metrics below it
    assert "<span>train/return</span>" in page  # another quantity, so not in the curve
    best = min(row["eval/regret"] for row in run.evaluations)
    assert f"−{best:.3g}" in page
    assert ">return<" not in page


@pytest.mark.usefixtures("drawn")
def test_what_a_method_shows_is_kept_and_drawn(tmp_path):
    run = train("volume", tmp_path / "run")
    kept = json.loads((run.folder / "figures.json").read_text())
    assert kept["step"] == 96
    assert kept["figures"]["front"]["x"] == [6.0, 7.0, 8.0, 9.0]  # as it was after the last of six updates
    assert read_run(run.folder).figures["front"].y == [-6.0, -7.0, -8.0, -9.0]
    page = write_report([run.folder], tmp_path / "page.html").read_text()
    for text in (
        "<h3>front</h3>",
        ">speed<",
        ">thrift<",
        "<h2>Learners</h2>",
        "<h3>entropy</h3>",
        ">leader<",
        ">student<",
    ):
        assert text in page
    assert "leader/entropy" not in page  # drawn once, with the other learner


def test_a_staged_method_shows_what_its_stage_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(PPO, "figures", Volume.figures)
    run = polopt.train("bc-ppo", "CartPole-v1", out=tmp_path / "run", **settings("bc-ppo"))
    assert read_run(run.folder).figures.keys() == {"front"}


def test_different_scores_are_compared_by_one_that_both_have(tmp_path):
    given = {key: value for key, value in SETTINGS.items() if key != "seed"}
    with pytest.raises(UsageError, match=r"judged by different numbers \(volume by 'hypervolume', ppo by 'return'\)"):
        compare(["volume", "ppo"], "CartPole-v1", seeds=1, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    both = compare(["volume", "ppo"], "CartPole-v1", seeds=1, out=tmp_path / "out", score="return", **given)
    folders = [run.folder for run in both.runs]
    assert "CartPole-v1: return" in both.table
    assert comparison(folders, "return")["tasks"]["CartPole-v1"]["methods"]["volume"]["scores"] == [-5.0]
    assert read_run(folders[0]).judged_by == Score("hypervolume")  # the folder itself is as it was
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "page.html"), "--score", "return"]) == 0
    with pytest.raises(UsageError, match="name one for all with --score"):
        write_report(folders, tmp_path / "other.html")
    with pytest.raises(UsageError, match=r"the evaluations of .*ppo-s0 have no 'hypervolume'; choose"):
        comparison(folders, "hypervolume")


def test_a_dataset_needs_returns(tmp_path):
    from polopt.training.datasets import _Recorder

    planned = polopt.training.plan.plan("regretful", "CartPole-v1", **SETTINGS)
    recorder = _Recorder(planned, 10, 1, 0.5)
    recorder.references = (0.0, 1.0)
    with pytest.raises(UsageError, match="regretful evaluates no return: no policy of it is halfway"):
        recorder.collected(0.0)

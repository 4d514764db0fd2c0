"""`polopt.sweep` and `polopt sweep`: which settings, which seeds rank, what is reported, and what is found first."""

import csv

import pytest

import polopt
from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.report import sweep as sweeps
from polopt.report.grid import Between, names_of, read_over, settings_over
from polopt.training import api, loop
from polopt.training.folder import Run

TINY = {"envs": 2, "window": 8, "network.sizes": (8,), "steps": 32, "eval_episodes": 1, "loggers": ()}


@pytest.fixture(autouse=True)
def _drawn() -> None:
    """Pictures are blank here, but where a test asks for them: what is on them, the tests beside see."""


@pytest.fixture
def trained(monkeypatch):
    """The runs that were begun."""
    begun = []
    original = api.start

    def noted(planned, folder, **rest):
        begun.append(f"{folder.parent.name}/{folder.name}")
        return original(planned, folder, **rest)

    monkeypatch.setattr(api, "start", noted)
    return begun


def values(over, random=None):
    return [values for values, _ in settings_over(over, random)]


def test_all_combinations_or_some_that_are_drawn():
    over = read_over(["lr=1e-4,3e-4", "network.sizes=64, 64 64"])
    assert over == {"lr": ["1e-4", "3e-4"], "network.sizes": ["64", "64 64"]}
    (first, given), *_, (last, _) = settings_over(over, None)
    assert (first, last) == ({"lr": "1e-4", "network.sizes": "64"}, {"lr": "3e-4", "network.sizes": "64 64"})
    assert given == {"argv": ["--lr", "1e-4", "--network.sizes", "64"]}
    assert names_of(values(over)) == [
        f"lr-{rate}_network-sizes-{size}" for rate in ("1e-4", "3e-4") for size in ("64", "64-64")
    ]
    three = values(over, random=3)
    assert len({str(each) for each in three}) == 3
    assert values(over, random=2) == three[:2]  # the same ones, whatever the number
    assert all(each in values(over) for each in three)


def test_ranges_are_drawn_over_logarithms_and_as_whole_numbers():
    over = read_over(["lr=1e-5..1e-1", "epochs=1..8", "bias=-1.0..1.0"])
    drawn = values(over, random=200)
    assert all(
        1e-5 <= each["lr"] <= 1e-1 and each["epochs"] in range(1, 9) and -1 <= each["bias"] <= 1 for each in drawn
    )
    assert sum(each["lr"] < 1e-3 for each in drawn) == pytest.approx(100, abs=25)  # the middle of the logarithms
    assert {each["epochs"] for each in drawn} == set(range(1, 9))
    assert Between(1e-5, 1e-1).at(0.5) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("words", "random", "said"),
    [
        (["lr"], None, "--over lr is not of the form NAME=VALUE,VALUE"),
        (["lr=1,,2"], None, "is not of the form"),
        (["lr=1", "lr=2"], None, "--over lr is given twice"),
        (["lr=1,1"], None, "--over lr: a value is given twice"),
        (["lr=1e-3..1e-5"], 2, "the first number must be less than the second"),
        (["lr=1e-5..1e-3"], None, "--over lr=1e-05..0.001 is to draw from: say how many with --random"),
        (["lr=1,2", "epochs=3,4"], 5, "--random 5: at least 1, and here are 4"),
        (["epochs=1..3"], 4, "--random 4: there are not as many different settings"),
        ([], None, "a sweep needs an option to vary"),
    ],
)
def test_what_is_no_set_of_settings_is_one_sentence(words, random, said):
    with pytest.raises(UsageError, match="^[^\n]*" + said.replace(".", r"\.").replace("--", "--")):
        values(read_over(words), random)


def test_a_sweep_ranks_by_tuning_seeds_and_reports_others(tmp_path, trained, monkeypatch, capsys):
    scores = {"lr-1e-3": 3.0, "lr-1e-2": 7.0, "lr-3e-2": 5.0}
    original = loop.Trainer._evaluated

    def judged(trainer, found):
        name, _, seed = trainer.checkpoints.folder.parent.name.rpartition("-s")
        better = scores[name] if int(seed) >= sweeps.TUNING_SEED else -scores[name]  # the report would rank otherwise
        return original(trainer, found | {"return": better + int(seed) % 10})

    monkeypatch.setattr(loop.Trainer, "_evaluated", judged)
    out = tmp_path / "out"
    words = ["sweep", "ppo", "--task", "CartPole-v1", "--over", "lr=1e-3,1e-2,3e-2", "--seeds", "2", "--top", "2"]
    words += ["--envs", "2", "--window", "8", "--network.sizes", "8", "--steps", "32", "--eval-episodes", "1"]
    words += ["--out", str(out), "--range", "0", "500"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Ranked by the mean over the tuning seeds 1500, 1501." in said
    assert "are of the seeds 0, 1, which ranked nothing" in said
    assert sorted(trained) == sorted(
        [f"tuning/{name}-s{seed}" for name in scores for seed in (1500, 1501)]
        + [f"out/{name}-s{seed}" for name in ("lr-1e-2", "lr-3e-2") for seed in (0, 1)]
    )
    with open(out / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["name"], row["lr"], row["tuning mean"]) for row in rows] == [
        ("1", "lr-1e-2", "1e-2", "7.5"),
        ("2", "lr-3e-2", "3e-2", "5.5"),
        ("3", "lr-1e-3", "1e-3", "3.5"),
    ]
    assert [row["iqm"] for row in rows] == ["-6.5", "-4.5", ""]
    page = (out / "report.html").read_text()
    assert "3 settings, the best first" in page
    assert "which ranked nothing" in page
    assert (out / "figures" / "evaluations.csv").exists()
    trained.clear()
    assert main([*words, "--tuning-seeds", "3"]) == 0  # what is there is not trained again
    assert sorted(trained) == [f"tuning/{name}-s1502" for name in sorted(scores)]


def test_a_setting_that_fails_is_last_and_one_that_is_reported_must_not(tmp_path, monkeypatch):
    original = loop.Trainer.save

    def failing(trainer):
        name = trainer.checkpoints.folder.parent.name
        if name.startswith("epochs-2") and int(name[-1]) in fails:
            raise RunError("loss became nan")
        original(trainer)

    monkeypatch.setattr(loop.Trainer, "save", failing)
    fails = {0, 1}  # seeds 1500, 1501, 0, 1
    how = {"seeds": 1, "top": 2, "tuning_seeds": 1, "out": tmp_path / "a", **TINY}
    found = polopt.sweep("ppo", "CartPole-v1", {"epochs": [2, 1]}, **how)
    assert [each.values for each in found.ranked] == [{"epochs": 1}, {"epochs": 2}]
    assert found.ranked[1].error == "loss became nan"
    assert (found.ranked[1].mean, found.ranked[1].iqm) == (None, None)
    assert [run.folder.name for run in found.comparison.runs] == ["epochs-1-s0"]
    assert "epochs-2 failed: loss became nan" in found.comparison.page.read_text()
    with pytest.raises(RunError, match="epochs-2, seed 1500: loss became nan"):
        polopt.sweep("ppo", "CartPole-v1", {"epochs": [2]}, **how | {"out": tmp_path / "b"})
    fails = {1}
    with pytest.raises(RunError, match="epochs-2, seed 1: loss became nan"):
        polopt.sweep("ppo", "CartPole-v1", {"epochs": [2]}, **how | {"out": tmp_path / "c", "seeds": "1,0"})
    assert Run(tmp_path / "c" / "epochs-2-s0").evaluations  # the other one has ended


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--over", "lrr=1,2"], "lrr-1: unknown option --lrr; did you mean '--lr'?"),
        (["--over", "lr=1e-3,fast"], "lr-fast: --lr must be a number"),
        (["--over", "seed=1,2"], "it takes no --seed"),
        (["--over", "lr=1e-3", "--seeds", "1500,"], "seeds from 1500 on rank the settings"),
        (["--over", "lr=1e-3", "--top", "0"], "--tuning-seeds 2 and --top 0: at least 1"),
        (["--over", "lr=1e-3", "--jobs", "0"], "--jobs 0: at least 1"),
        (["--over", "lr=1e-3", "--score", "retrun"], "did you mean 'return'?"),
        (["--over", "policy=gaussian"], "policy-gaussian: "),
        ([], "--over"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_run(words, said, tmp_path, trained, capsys):
    command = ["sweep", "ppo", "--task", "CartPole-v1", "--steps", "64", "--out", str(tmp_path / "out")]
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert trained == []
    assert not (tmp_path / "out").exists()
    assert main(["sweep", "--task", "CartPole-v1", "--over", "lr=1,2"]) == 2

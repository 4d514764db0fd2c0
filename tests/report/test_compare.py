"""`polopt.compare` and `polopt compare`: settings for each, seeds, what is found first, interruptions, `report`."""

import json

import gymnasium
import pytest

import polopt
from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.training import api, loop
from polopt.training.folder import Run

TINY = {"envs": 2, "window": 8, "network.sizes": (8,), "steps": 32, "eval_episodes": 1, "loggers": ()}
WORDS = ["--envs", "2", "--window", "8", "--network.sizes", "8", "--steps", "32", "--eval-episodes", "1"]


@pytest.fixture(autouse=True)
def _drawn() -> None:
    """Pictures are blank here, but where a test asks for them: what is on them, the tests beside see."""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def trained(monkeypatch):
    """The runs that were begun."""
    begun = []
    original = api.start

    def noted(planned, folder, **rest):
        begun.append(folder.name)
        return original(planned, folder, **rest)

    monkeypatch.setattr(api, "start", noted)
    return begun


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_settings_for_each_on_the_command_line(out, capsys, drawn):
    words = ["compare", "fast=ppo", "slow=ppo", "mdpo", "--task", "CartPole-v1", "--seeds", "7,", "--out", str(out)]
    words += [*WORDS, "--fast.lr", "3e-3", "--ppo.epochs", "1", "--slow.network.sizes", "4", "--mdpo.window", "16"]
    words += ["--task.max-episode-steps", "9", "--range", "CartPole-v1", "0", "9"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "fast > " in said.out
    assert "optimality gap" in said.out
    assert said.out.splitlines()[-1] == str(out / "report.html")
    assert "slow, seed 7: run 2 of 3" in said.err
    assert {path.name for path in out.iterdir()} == {"fast-s7", "slow-s7", "mdpo-s7", "report.html", "figures"}
    fast, slow, mdpo = (config(out / f"{name}-s7") for name in ("fast", "slow", "mdpo"))
    assert (fast["seed"], fast["method"], fast["run"]["name"], mdpo["run"]["name"]) == (7, "ppo", "fast", None)
    assert (fast["config"]["lr"], fast["config"]["epochs"], slow["config"]["epochs"]) == (3e-3, 1, 1)
    assert slow["config"]["lr"] != 3e-3
    assert [run["config"]["network"]["sizes"] for run in (fast, slow)] == [[8], [4]]
    assert [run["config"]["window"] for run in (fast, slow, mdpo)] == [8, 8, 16]
    assert (out / "figures" / "evaluations.csv").exists()
    assert (out / "figures" / "CartPole-v1-profile.pdf").exists()
    page = out.parent / "page.html"
    assert main(["report", str(out), "--out", str(page), "--figures", str(out.parent / "f")]) == 0
    assert "fast vs mdpo vs slow" in page.read_text()
    assert (out.parent / "f" / "CartPole-v1-curves.svg").exists()


def test_settings_for_each_in_python(out):
    each = {"fast": {"lr": 3e-3, "network.sizes": (4,)}, "mdpo": {"preset": "strict"}}
    found = polopt.compare(["fast=ppo", "ppo"], "CartPole-v1", seeds=[5], out=out, each={"fast": each["fast"]}, **TINY)
    assert [run.folder.name for run in found.runs] == ["fast-s5", "ppo-s5"]
    assert found.runs[0].config["config"]["network"]["sizes"] == [4]
    assert found.facts["tasks"]["CartPole-v1"]["methods"].keys() == {"fast", "ppo"}
    assert "fast" in found.table
    assert found.page == out / "report.html"
    assert all(path.exists() for path in found.figures)
    with pytest.raises(UsageError, match=r"^mdpo: there is no preset 'strict'"):
        polopt.compare(["ppo", "mdpo"], "CartPole-v1", out=out / "b", each={"mdpo": each["mdpo"]})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--saac.lr", "1"], "--saac.lr: nobody here is called 'saac'; did you mean 'sac'?"),
        (["--sac.warmpu", "1"], "sac: unknown option --warmpu; did you mean '--warmup'?"),
        (["--warmup", "7"], "ppo: unknown option --warmup; an option that only some have is written --NAME.OPTION"),
        (["--ppo.preset", "mujocco"], "ppo: there is no preset 'mujocco'; did you mean 'mujoco'?"),
        (["--preset", "mujoco"], "sac: there is no preset 'mujoco'"),
        (["--seeds", "0,0"], "seed 0 is given twice"),
        (["--seeds", "many"], "--seeds many: say how many, or which"),
        (["--sac.seed", "4"], "it takes no --seed"),
        (["--name", "x"], "NAME=METHOD"),
        (["--sac.lr", "1", "--sac.lr", "2"], "sac: --lr is given twice"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--score", "retrun"], "cannot be judged by 'retrun', which it does not give; did you mean 'return'?"),
        (["--range", "5", "5"], "the first number must be less than the second"),
        (["--range", "5"], "--range 5 is not of the form [TASK] LOW HIGH"),
        (["--range", "Pendulum-v0", "0", "1"], "--range Pendulum-v0: there is no such task here"),
        (["--ppo.policy", "categorical"], "ppo: "),  # for discrete actions
        (["--sac.init", "nowhere"], "sac: nowhere is not a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_found_before_the_first_run(words, said, out, trained, capsys):
    command = ["compare", "sac", "ppo", "--task", "Pendulum-v1", "--steps", "2000", "--sac.warmup", "9"]
    command += ["--sac.network.sizes", "4", "--sac.replay-size", "99", "--out", str(out)]
    assert main([*command, *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert trained == []
    assert not out.exists()


def test_a_policy_that_does_not_fit_the_task_is_found_before_the_first_run(out, trained):
    with pytest.raises(UsageError, match=r"^sac: "):
        polopt.compare(["ppo", "sac"], "CartPole-v1", seeds=1, out=out, steps=2000, loggers=())
    assert trained == []
    assert not out.exists()


def test_a_name_that_is_a_part_as_well_is_told(out, capsys):
    command = ["compare", "bc-ppo", "bc", "--task", "CartPole-v1", "--out", str(out), "--bc.lr", "1"]
    assert main(command) == 2
    assert "may be for bc of this comparison or for that part of bc-ppo" in capsys.readouterr().err
    command[2] = "my-bc=bc"  # now it is the part, which only one has
    assert main(command) == 2
    assert "my-bc: unknown option --bc.lr" in capsys.readouterr().err


def test_folders_with_other_settings_are_found_before_the_first_run(out, trained):
    alone = polopt.compare(["ppo"], "CartPole-v1", seeds="1,", out=out, **TINY)
    assert [run.folder.name for run in alone.runs] == trained == ["ppo-s1"]
    assert "share of runs above" in alone.table
    trained.clear()
    for changes, what in (({"steps": 64}, "steps"), ({"eval_episodes": 2}, "eval episodes"), ({"lr": 1.0}, "config")):
        with pytest.raises(UsageError, match=f"ppo-s1 holds a run with another {what}"):
            polopt.compare(["mdpo", "ppo"], "CartPole-v1", seeds=2, out=out, **TINY | changes)
    assert trained == []


def test_an_interrupted_comparison_goes_on(out, monkeypatch, capsys):
    words = ["compare", "ppo", "mdpo", "--task", "CartPole-v1", "--seeds", "2", "--out", str(out), *WORDS]
    words += ["--checkpoint-every", "8"]
    original, saves = loop.Trainer.save, []

    def interrupted(trainer):
        original(trainer)
        saves.append(trainer.count)
        if len(saves) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "save", interrupted)
    assert main(words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "polopt: interrupted; saved: the same command goes on from there"
    begun = {path.name: config(path)["created"] for path in out.iterdir()}
    assert 0 < len(begun) < 4
    assert not (out / "report.html").exists()
    assert main(words) == 0
    assert {path.name for path in out.glob("*-s*")} == {"ppo-s0", "ppo-s1", "mdpo-s0", "mdpo-s1"}
    assert {name: config(out / name)["created"] for name in begun} == begun
    assert all(Run(path).rows[-1]["env_steps"] == 32 for path in out.glob("*-s*"))


def test_a_run_that_fails_is_named(out, monkeypatch):
    original = loop.Trainer.save

    def failing(trainer):
        if trainer.method.slug == "mdpo":
            raise RunError("the disk is full")
        original(trainer)

    monkeypatch.setattr(loop.Trainer, "save", failing)
    with pytest.raises(RunError, match=r"^slow, seed 0: the disk is full"):
        polopt.compare(["ppo", "slow=mdpo"], "CartPole-v1", seeds=1, out=out, **TINY)


def test_what_other_processes_cannot_import_is_no_task_of_theirs(tmp_path):
    with pytest.raises(UsageError, match="with jobs=2 other processes must be able to import"):
        polopt.compare(["a=ppo", "b=ppo"], lambda: gymnasium.make("CartPole-v1"), out=tmp_path / "x", jobs=2, **TINY)


@pytest.mark.exhaustive  # processes begin; that they give the numbers of none, tests/training/test_jobs.py sees
def test_runs_beside_each_other_are_the_same_runs(tmp_path):
    given = {"seeds": [3], **TINY}
    beside = polopt.compare(["a=ppo", "b=ppo"], "CartPole-v1", out=tmp_path / "two", jobs=2, **given)
    alone = polopt.compare(["a=ppo"], "CartPole-v1", out=tmp_path / "one", threads=1, **given)
    values = [[row["eval/return"] for row in run.evaluations] for run in (*beside.runs, *alone.runs)]
    assert values[0] == values[1] == values[2]
    assert beside.runs[0].config["run"]["threads"] == 1


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_report_elsewhere_leaves_the_run_as_it_was(tmp_path):
    run = polopt.train("ppo", "CartPole-v1", out=tmp_path / "run", **TINY).folder
    before = listing(run)
    page = polopt.report([run], tmp_path / "elsewhere" / "page.html", figures=tmp_path / "figures")
    assert listing(run) == before
    assert "data:video/mp4;base64," in page.read_text()  # it has its video all the same
    polopt.report([tmp_path / "run"], tmp_path / "page.html")
    assert listing(run) == before
    polopt.report([run])
    assert list((run / "videos").glob("*.mp4"))
    assert (run / "report.html").exists()
    with pytest.raises(UsageError, match="here is only one"):
        polopt.report([run], tmp_path / "page.html", ranges={"": (0.0, 1.0)})

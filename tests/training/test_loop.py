"""The loop: rows, early stops, and what happens when a task, a value or a learner goes wrong."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.training.folder import Run, write_config
from polopt.training.options import Until
from polopt.training.plan import Plan, plan
from tests.tasks.envs import Troubled
from tests.training.runs import TINY, command, settings, train

pytestmark = pytest.mark.usefixtures("unreported")
FAULTS = {
    "step raises": "ValueError: joint 3 broke",
    "reset raises": "ValueError: the arm is stuck",
    "reset shape": "an observation of shape (5,), but its observation space has shape (4,)",
    "nan reward": "its reward is nan",
    "nan observation": "its observation is not finite",
}


def argv(out: Path, **changes: Any) -> list[str]:
    words = command("ppo", out, **changes)
    words[words.index("--task") + 1] = "tests.tasks.envs:troubled"
    return words


@pytest.mark.parametrize("fault", FAULTS)
def test_a_task_that_fails_ends_the_run_in_one_sentence_and_keeps_what_was_saved(fault, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*argv(folder, eval_every=200), "--task.fault", fault]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polopt: ")]
    assert len(said) == 1
    assert FAULTS[fault] in said[0]
    assert "troubled failed" in said[0] or "troubled cannot" in said[0]
    saved = Run(folder).checkpoints
    assert saved.steps() == [48, 64]
    saved.load(64)
    again = ["--task", "tests.tasks.envs:troubled"]
    assert main(["resume", str(folder), *again]) == 0  # the fault has not come back yet
    assert Run(folder).rows[-1]["env_steps"] == 96
    assert main(["eval", str(folder), "--episodes", "1", *again]) == 0


def test_a_task_that_fails_in_a_worker_says_the_same(tmp_path, capsys):
    assert main([*argv(tmp_path / "run", workers=2, eval_every=200), "--task.fault", "step raises"]) == 1
    assert FAULTS["step raises"] in capsys.readouterr().err


def test_episodes_of_one_step(tmp_path):
    run = polopt.train("ppo", lambda: Troubled(length=1), out=tmp_path / "run", **settings("ppo"))
    assert run.final["eval/length"] == 1
    assert run.rows[-1]["episodes"] == run.rows[-1]["env_steps"] == 96
    assert run.rows[-1]["train/length"] == 1


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_double_precision_throughout(name, tmp_path):
    seen = []
    for row in polopt.iterate(name, TINY[name][0], out=tmp_path / "run", **settings(name, dtype="float64")):
        method = row["method"]
        seen = [p.dtype for _, module in method.modules() for p in module.parameters()]
    assert set(seen) == {torch.float64}
    actor = polopt.load(tmp_path / "run")
    assert {p.dtype for p in actor.parameters()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32  # put back


def test_infinite_bounds_and_a_squashed_policy(tmp_path, capsys):
    words = ["train", "sac", "--task", "tests.tasks.envs:troubled", "--out", str(tmp_path / "run")]
    assert main([*words, "--task.box", "true", "--task.high", "Infinity"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("polopt: a squashed Gaussian needs a Box action space with finite bounds; tests.tasks")
    assert "has Box(-inf, inf, (1,), float32): choose another --policy" in said
    assert not (tmp_path / "run").exists()


def test_a_policy_that_cannot_serve(tmp_path, capsys):
    for words, sentence in (
        (["sac", "--task", "CartPole-v1"], "polopt: a squashed Gaussian needs a Box action space with finite bounds"),
        (["ppo", "--task", "Pendulum-v1", "--policy", "categorical"], "polopt: a categorical policy needs a Discrete"),
        (["ppo", "--task", "Pendulum-v1", "--policy", "deterministic"], "polopt: ppo needs a policy that scores"),
    ):
        assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith(sentence)
        assert not (tmp_path / "run").exists(), "nothing is left of a run that never began"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--steps", "-5"], "steps must be at least 1"),
        (["--steps", "1.5"], "steps"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--envs", "0"], "envs must be at least 1"),
        (["--lr", "-1e-3"], "lr must be above 0"),
        (["--lr", "nan"], "lr must be above 0"),
        (["--discount", "1.1"], "discount must be at least 0 and at most 1"),
        (["--epochs", "many"], "epochs"),
        (["--network.sizes", "64", "-1"], "network.sizes must be at least 1"),
        (["--until", "return>>3"], "--until 'return>>3' is not of the form METRIC>=NUMBER"),
        (["--dtype", "float16"], "dtype must be one of float32, float64"),
        (["--loggers", "tensorbord"], "there is no logger 'tensorbord'; did you mean 'tensorboard'?"),
        (["--task.num", "3"], "--task.num cannot be set"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "gpu"], "--device gpu"),
    ],
)
def test_absurd_values(words, sentence, tmp_path, capsys):
    assert main(["train", "ppo", "--task", "CartPole-v1", "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1]
    assert said[-1].startswith("polopt: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--window", "1", "--envs", "1"], ["--minibatches", "999"], ["--lr", "1e30"]])
def test_odd_values_run_or_say_why_not(words, tmp_path, capsys):
    given = [*command("ppo", tmp_path / "run", steps=32), *words]
    for name in words[::2]:
        first = given.index(name)
        if given.index(words[words.index(name)], first + 1) if name in given[first + 1 :] else False:
            del given[first : first + 2]
    code = main(given)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polopt: ")]
    assert code == (1 if said else 0)
    assert len(said) <= 1


def test_a_loss_that_is_not_finite_is_named_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    from polopt.methods.control.ppo import PPO

    original, calls = PPO.value_loss, [0]

    def poisoned(self: Any, batch: Any) -> Any:
        calls[0] += 1
        loss, metrics = original(self, batch)
        return (loss * math.nan, {"value_loss": loss * math.nan}) if calls[0] == 10 else (loss, metrics)

    monkeypatch.setattr(PPO, "value_loss", poisoned)
    with pytest.raises(
        RunError, match=r"value_loss became nan at 80 env_steps; the last good checkpoint is .*000000064"
    ):
        train("ppo", tmp_path / "run")
    state = Run(tmp_path / "run").checkpoints.load(64)
    assert all(
        torch.isfinite(leaf).all() for leaf in state.values() if torch.is_tensor(leaf) and leaf.is_floating_point()
    )


@pytest.mark.filterwarnings("ignore:approx_kl became")
def test_a_metric_that_overflows_ends_no_run_that_is_sound(tmp_path, monkeypatch):
    from polopt.methods.control.ppo import PPO

    original = PPO.update

    def overflowing(self: Any, batch: Any) -> Any:
        return original(self, batch) | {"approx_kl": torch.tensor(math.inf)}

    monkeypatch.setattr(PPO, "update", overflowing)
    with pytest.warns(UserWarning, match="approx_kl became inf at 16 env_steps: left empty"):
        run = train("ppo", tmp_path / "run")
    assert all("approx_kl" not in row and math.isfinite(row["value_loss"]) for row in run.rows[1:])


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    rows = polopt.iterate("bc", TINY["bc"][0], out=tmp_path / "run", **settings("bc", log_every=1))

    def poison() -> None:
        for row in rows:
            if row["updates"] == 3:
                next(iter(row["method"].policy.parameters())).data.fill_(math.inf)
                row["method"].update = lambda batch: {"loss": torch.zeros(())}

    with pytest.raises(RunError, match=r"policy\..* is not finite at \d+ updates; the last good checkpoint is"):
        poison()


def test_a_method_that_does_nothing_is_stopped(tmp_path, monkeypatch):
    from polopt.methods.control.ppo import PPO

    monkeypatch.setattr(PPO, "collect", lambda self: None)
    monkeypatch.setattr(PPO, "update", lambda self, batch: {})
    with pytest.raises(RunError, match="ppo makes no progress: an update spent nothing and learned nothing"):
        train("ppo", tmp_path / "run")


def test_until(tmp_path):
    run = train("ppo", tmp_path / "run", until="return >= 1")
    assert run.rows[-1]["env_steps"] == 0  # the first evaluation was enough
    with pytest.raises(UsageError, match="--until: evaluations have no 'retrun', only length, return, return_std"):
        train("ppo", tmp_path / "other", until="retrun>=1")
    assert not (tmp_path / "other").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="evaluations have no 'retrun'"):
        train("ppo", tmp_path / "notes", until="retrun>=1", loggers=("tensorboard",))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_run_whose_stop_named_no_metric_is_resumed_with_another(tmp_path, capsys):
    """As older versions left it: a folder without a checkpoint to go on from."""
    planned = plan("ppo", TINY["ppo"][0], **settings("ppo", until="retrun>=1"))
    write_config(tmp_path / "run", planned.record())
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "evaluations have no 'retrun'" in capsys.readouterr().err
    for wrong in ("return", ""):
        assert main(["resume", str(tmp_path / "run"), "--until", wrong]) == 2
    run = polopt.resume(tmp_path / "run", until="return>=1")
    assert run.config["run"]["until"] == "return>=1"
    assert run.rows[-1]["env_steps"] == 0
    run = polopt.resume(tmp_path / "run", until="none")
    assert run.rows[-1]["env_steps"] == 96
    assert run.config["run"]["until"] is None


def test_a_logger_that_is_not_installed_is_told_before_anything_is_built(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    done = train("ppo", tmp_path / "done")
    monkeypatch.setattr(Plan, "build", lambda *args, **kwargs: pytest.fail("built"))
    with pytest.raises(UsageError, match="--loggers wandb needs the package"):
        train("ppo", tmp_path / "run", loggers=("wandb",))
    assert not (tmp_path / "run").exists()
    record = done.config | {"run": done.config["run"] | {"loggers": ["wandb"]}}
    write_config(done.folder, record)
    with pytest.raises(UsageError, match="--loggers wandb needs the package"):
        polopt.resume(done.folder)


def test_compare_checks_every_plan_before_the_first_begins(tmp_path):
    settings = {"steps": 96, "seeds": 1, "out": tmp_path / "both", "loggers": (), "eval_episodes": 1}
    with pytest.raises(UsageError, match="needs a Box action space"):
        polopt.compare(["ppo", "sac"], "CartPole-v1", **settings)
    with pytest.raises(UsageError, match="evaluations have no 'retrun'"):
        polopt.compare(["ppo", "reinforce"], "CartPole-v1", until="retrun>=1", **settings)
    assert not (tmp_path / "both").exists()


def test_data_without_what_the_method_needs_leave_no_folder(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(UsageError, match="has no 'chosen' and 'rejected' texts"):
        polopt.train("dpo", str(data), steps=4, model="tiny", out=tmp_path / "run", loggers=())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("return>=475", 475.0, True),
        ("return > -1.5e2", -150.0, False),
        ("return<=0", 1.0, False),
        ("return<2", 1.9, True),
    ],
)
def test_until_compares(text, value, met):
    assert Until.parse(text).met({"return": value}) is met


@pytest.mark.parametrize("text", ["", "return", "return=3", "return>=", ">=3", "return>=3 please"])
def test_until_is_checked(text):
    with pytest.raises(UsageError, match="is not of the form"):
        Until.parse(text)


def test_rows_are_written_evaluated_and_saved_when_asked(tmp_path):
    run = train("ppo", tmp_path / "run", log_every=16, eval_every=48, checkpoint_every=32)
    assert [row["env_steps"] for row in run.rows] == [0, 16, 32, 48, 64, 80, 96]
    assert [row["env_steps"] for row in run.evaluations] == [0, 48, 96]
    assert run.checkpoints.steps() == [64, 96]
    assert run.final["env_steps"] == 96
    assert [row["updates"] for row in run.rows] == [0, 1, 2, 3, 4, 5, 6]
    assert run.rows[1]["entropy"] == pytest.approx(math.log(2), abs=0.02)


def test_evaluating_more_often_trains_the_same_policy(tmp_path):
    often, seldom = (train("ppo", tmp_path / str(every), eval_every=every) for every in (16, 96))
    one, other = (polopt.load(run.folder) for run in (often, seldom))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_an_out_folder_that_cannot_be_used(tmp_path, capsys):
    run = train("bc", tmp_path / "run")
    before = sorted(run.folder.rglob("*"))
    assert main(command("bc", tmp_path / "run")) == 2
    assert "holds a run already: continue it with 'polopt resume" in capsys.readouterr().err
    assert sorted(run.folder.rglob("*")) == before
    (tmp_path / "file").write_text("x")
    assert main(command("bc", tmp_path / "file")) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert main(command("bc", tmp_path / "file" / "below")) == 1
    assert "could not write" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(command("bc", tmp_path / "locked" / "run")) == 1
    assert "no permission to write there" in capsys.readouterr().err

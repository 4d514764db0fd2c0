"""Runs on recorded data without an environment: they train, resume, load and are compared, and no return is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polopt
from polopt import cli
from polopt.core.errors import UsageError
from polopt.evaluation.recorded import evaluate_recorded
from polopt.evaluation.score import NO_RETURN
from polopt.methods.offline.bc import BC
from polopt.tasks import make_task
from polopt.training.api import load_method
from polopt.training.folder import Run
from tests.training.runs import differing, final_state

SMALL: dict[str, Any] = {"batch_size": 16, "network.sizes": (8,), "loggers": (), "eval_every": 4, "checkpoint_every": 2}


def recording(episodes: int = 12, length: int = 10, discrete: bool = False) -> dict[str, Any]:
    """The right action is the sign of what is seen (the half of it, where actions are numbers), and pays."""
    random = np.random.default_rng(0)
    obs = random.normal(size=(episodes, length + 1, 2)).astype(np.float32)
    seen = obs[:, :-1].reshape(-1, 2)
    wanted = (seen[:, 0] > 0).astype(np.int64) if discrete else np.tanh(seen[:, :1])
    ends = np.tile(np.arange(length) == length - 1, episodes)
    return {
        "observations": seen,
        "next_observations": obs[:, 1:].reshape(-1, 2),
        "actions": wanted,
        "rewards": random.normal(size=len(seen)).astype(np.float32),
        "terminals": ends & (np.arange(len(seen)) % (2 * length) >= length),
        "timeouts": ends & (np.arange(len(seen)) % (2 * length) < length),
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **recording())
    return "mine.npz"


@pytest.mark.parametrize("method", ["iql", "bc", "dql"])
def test_a_file_is_learned_from(method, file, capsys):
    words = ["train", method, "--task", file, "--steps", "8", "--out", "run", "--batch-size", "16"]
    assert cli.main([*words, "--network.sizes", "8", "--eval-every", "4"]) == 0
    said = "".join(capsys.readouterr())
    assert "no environment: evaluated on held-out decisions, without a return" in said
    assert re.search(rf"action_error [\d.]+ at the end; {re.escape(NO_RETURN)}; report", said)
    run = Run(Path("run"))
    assert run.config["score"] == "-action_error"
    assert len(run.evaluations) == 3
    assert not [name for row in run.rows for name in row if "return" in name]
    assert run.final["eval/held_out"] == 1
    assert run.final["eval/decisions"] == 10
    assert cli.main(["eval", "run"]) == 0
    said = capsys.readouterr().out
    assert f"10 recorded decisions of 1 held-out episodes; {NO_RETURN})" in said
    assert cli.main(["eval", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["action_error"] == pytest.approx(run.final["eval/action_error"])
    assert polopt.load("run").predict(np.zeros(2, np.float32)).shape == (1,)
    page = polopt.report(["run"]).read_text()
    assert "Evaluations compare the policy with recorded decisions that it has not seen" in page
    assert "has no picture" in page


def test_the_error_is_that_of_decisions_it_has_not_seen(tmp_path):
    """A constant policy: its error on held-out decisions, worked out from the arrays."""
    found = recording()
    run = polopt.train("bc", found, steps=1, out=tmp_path / "run", lr=1e-9, task_options={"heldout": 0.25}, **SMALL)
    task: Any = make_task(found, heldout=0.25)
    policy = polopt.load(run.folder)
    held = sorted({int((k + 0.5) * 12 / 3) for k in range(3)})
    rows = np.concatenate([np.arange(10 * episode, 10 * episode + 10) for episode in held])
    acted = policy.predict(found["observations"][rows])
    expected = np.square(acted - found["actions"][rows]).mean()
    scores = evaluate_recorded(policy, task, 10)
    assert scores["action_error"] == pytest.approx(expected, rel=1e-5)
    assert (scores["decisions"], scores["held_out"]) == (30, 3)
    batch = {"obs": torch.from_numpy(found["observations"][rows]), "action": torch.from_numpy(found["actions"][rows])}
    loss = policy.imitation_loss(batch).mean().item()  # type: ignore[attr-defined]
    assert scores["imitation_loss"] == pytest.approx(loss, rel=1e-5)
    sampled = evaluate_recorded(policy, task, 10, greedy=False)
    assert sampled["action_error"] > scores["action_error"]
    assert sampled == evaluate_recorded(policy, task, 10, greedy=False)  # paired


def test_whole_actions_are_right_or_wrong(tmp_path):
    found = recording(discrete=True)
    run = polopt.train("bc", found, steps=60, out=tmp_path / "run", **SMALL | {"lr": 3e-2, "batch_size": 64})
    assert run.final["eval/action_error"] < 0.2
    assert run.final["eval/action_error"] * 10 == pytest.approx(round(run.final["eval/action_error"] * 10))
    best = min(row["eval/action_error"] for row in run.evaluations)
    assert polopt.evaluate(run.folder, task=found, checkpoint="best")["action_error"] == best  # a clone has a best one


def test_a_resumed_run_ends_as_one_never_stopped(file, tmp_path):
    settings = SMALL | {"policy_lr_schedule": "constant"}
    polopt.train("iql", file, steps=4, out=tmp_path / "parts", **settings)
    whole = polopt.train("iql", file, steps=8, out=tmp_path / "whole", **settings)
    polopt.resume(tmp_path / "parts", extend=8)
    assert differing(final_state(tmp_path / "parts"), final_state(whole.folder)) == []


def test_arrays_are_given_again(tmp_path, capsys):
    found = recording()
    run = polopt.train("iql", found, steps=4, out=tmp_path / "run", **SMALL)
    assert run.config["task"] == "<arrays>"
    assert polopt.load(run.folder).predict(np.zeros(2, np.float32)).shape == (1,)  # the spaces are in the folder
    for ask in (polopt.evaluate, lambda folder: polopt.resume(folder, extend=6)):
        with pytest.raises(UsageError, match="was trained on a dict of arrays: give it again with task="):
            ask(run.folder)
    assert polopt.resume(run.folder, extend=6, task=found).final["updates"] == 6
    assert polopt.evaluate(run.folder, task=found)["held_out"] == 1
    assert "No video" in polopt.report([run.folder]).read_text()


def test_no_checkpoint_is_the_best_without_a_return(file, capsys):
    polopt.train("iql", file, steps=4, out="run", **SMALL)
    assert cli.main(["eval", "run", "--checkpoint", "best"]) == 2
    assert f"run keeps no best checkpoint: {NO_RETURN}" in capsys.readouterr().err


def test_the_return_is_estimated_where_nothing_was_played(file, capsys):
    polopt.train("bc", file, steps=2, out="run", **SMALL)
    capsys.readouterr()
    assert cli.main(["eval", "run", "--ope", "--ope-updates", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"data", "fitted q", "model"} <= found.keys()


def test_until_follows_what_there_is(file):
    run = polopt.train("bc", file, steps=40, out="run", until="action_error<10", **SMALL)
    assert run.final["updates"] == 0
    with pytest.raises(UsageError, match="evaluations have no 'return', only action_error, "):
        polopt.train("bc", file, steps=4, out="other", until="return>=1", **SMALL)
    assert not Path("other").exists()


def test_methods_are_compared_by_data(file):
    found = polopt.compare(["iql", "bc"], file, seeds=1, steps=4, out="both", batch_size=16, loggers=())
    assert "minus action error" in found.table
    assert "Evaluations compare the policy with recorded decisions" in " ".join(found.table.split())


def test_what_they_are_compared_by_is_looked_for_before_the_first_begins(file, monkeypatch):
    given = {"seeds": 1, "steps": 4, "batch_size": 16, "loggers": ()}
    monkeypatch.setattr(BC, "score", "-regret")  # with an environment; of data both are judged alike
    assert "minus action error" in polopt.compare(["iql", "bc"], file, out="both", **given).table
    monkeypatch.setattr(BC, "evaluate", lambda *task, greedy=True: {"regret": 0.0})
    with pytest.raises(UsageError, match=r"^bc: bc on mine.npz cannot be judged by '-action_error', which it does not"):
        polopt.compare(["iql", "bc"], file, out="other", **given)
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["ppo"],
            "mine.npz is recorded data without an environment, and this needs 4 copies of one: name it with --task",
        ),
        (["ppo", "--envs", "1"], "is recorded data without an environment, and this needs one: name it with --task"),
        (["bc-ppo", "--envs", "1"], "is recorded data without an environment, and this needs one"),
        (["sac"], "is recorded data without an environment, and this needs one"),
        (["iql", "--offline-updates", "2"], "is recorded data without an environment, and this needs one"),
        (["iql", "--dataset", "random"], "is recorded data without an environment, and this needs one"),
        (["iql", "--envs", "2"], "and this needs 2 copies of one"),
        (["iql", "--workers", "2"], "makes and steps all its rows itself: leave out workers"),
        (["iql", "--task.height", "2"], "the task mine.npz has no option 'height'"),
        (["iql", "--objective-weights", "1"], "leave out --objective-weights"),
    ],
)
def test_what_needs_an_environment_is_refused_before_it_begins(words, said, file, capsys):
    assert cli.main(["train", *words, "--task", file, "--out", "run"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("run").exists()


def test_other_verbs_that_need_an_environment(file, capsys):
    polopt.train("bc", file, steps=2, out="run", **SMALL)
    for words in (
        ["eval", "run", "--record", "shown.safetensors"],
        ["dataset", "measure", file],
        ["dataset", "make", file, "--kinds", "random"],
    ):
        assert cli.main(words) == 2
        assert "mine.npz is recorded data without an environment, and this needs one" in capsys.readouterr().err


def test_a_file_beside_an_environment(tmp_path):
    random = np.random.default_rng(1)
    obs = random.normal(size=(41, 3)).astype(np.float32)
    arrays = {"observations": obs[:-1], "next_observations": obs[1:], "actions": random.uniform(-2, 2, (40, 1))}
    arrays |= {"rewards": random.normal(size=40), "terminals": np.zeros(40, bool)}
    np.savez(tmp_path / "mine.npz", **arrays)
    where = {"dataset": str(tmp_path / "mine.npz"), "task_options": {"max_episode_steps": 5}}
    run = polopt.train("iql", "Pendulum-v1", steps=2, out=tmp_path / "run", **where, **SMALL)
    assert run.final["eval/length"] == 5
    assert run.config["score"] == "return"


def test_a_dataset_of_minari_without_its_environment(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    from polopt.data.arrays import load_arrays
    from polopt.data.storing import write_dataset

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    found = load_arrays(recording())
    write_dataset("mine/bare-v0", found.data, found.spec)
    write_dataset("mine/own-v0", found.data, found.spec, task="my_code:make")
    run = polopt.train("iql", "mine/bare-v0", steps=2, out=tmp_path / "run", **SMALL)
    assert run.final["eval/held_out"] == 1
    polopt.resume(run.folder, extend=4)
    with pytest.raises(
        UsageError, match=r"say both, --task and --dataset \(--task.environment none learns from the data"
    ):
        polopt.train("iql", "mine/own-v0", steps=2, out=tmp_path / "own", **SMALL)
    options = {"environment": "none", "heldout": 0.5}
    run = polopt.train("iql", "mine/own-v0", steps=2, out=tmp_path / "own", task_options=options, **SMALL)
    assert run.final["eval/held_out"] == 6
    assert load_method(run.folder)[1].task_options == options
    with pytest.raises(UsageError, match="says what its actions are: leave out low, high and actions"):
        make_task("mine/bare-v0", low=-1)

"""Ctrl-C and SIGTERM at any moment of a run: acted on within a step, and what is resumed is what was never stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import polopt
from polopt.cli import main
from polopt.core import signals
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.training import loop
from polopt.training.folder import Run
from polopt.training.warm_start import warm_start
from tests.forked import POLOPT, Forked
from tests.training.runs import TINY, command, differing, final_state, settings, train
from tests.training.test_resume import wait_for

pytestmark = pytest.mark.usefixtures("unreported")

STEP = {"ppo": (CartPoleEnv, "step"), "bc": (CartPoleEnv, "step"), "rec": (CausalLMPolicy, "_draw")}
"""A step of an episode, and one token."""


class Trap:
    """Sends a signal in the middle of a step, and counts the steps that follow."""

    def __init__(self, name: str, number: int, patch: pytest.MonkeyPatch) -> None:
        self.number, self.armed, self.after = number, False, 0
        self.sent = 0
        owner, method = STEP[name]
        original = getattr(owner, method)

        def step(*args: Any, **kwargs: Any) -> Any:
            self.after += self.sent
            if self.armed:
                self.armed, self.sent = False, 1
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        patch.setattr(owner, method, step)


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in Run(folder).rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: train(name, folder / name).folder for name in ("ppo", "rec")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("name", "at"), [("ppo", 0), ("ppo", 32), ("ppo", 96), ("rec", 0), ("rec", 24), ("rec", 48)])
def test_an_evaluation_is_broken_off_and_made_up_for(name, at, number, tmp_path, whole, capsys):
    """At the beginning, on the way, and at the end, where nothing but it is left to do."""
    original, folder = loop.Trainer._row, tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        trap = Trap(name, number, patch)

        def row(self: Any, *, evaluate: bool) -> Any:
            trap.armed = evaluate and self.count >= at and not trap.sent
            return original(self, evaluate=evaluate)

        patch.setattr(loop.Trainer, "_row", row)
        assert main(command(name, folder)) == 130
    said = capsys.readouterr().err
    assert f"polopt: {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}: {signals.SAID}" in said
    assert f"polopt: interrupted; saved: continue with 'polopt resume {folder}'" in said
    assert (trap.sent, trap.after) == (1, 0), "acted on within a step"
    assert Run(folder).checkpoints.steps()[-1] >= at
    assert len(Run(folder).rows) < len(Run(whole[name]).rows)
    assert main(["resume", str(folder)]) == 0
    assert differing(final_state(folder), final_state(whole[name])) == []
    assert timeless(folder) == timeless(whole[name])
    assert Run(folder).checkpoints.steps("best") == Run(whole[name]).checkpoints.steps("best")
    before = final_state(folder)
    assert main(["resume", str(folder)]) == 0  # nothing is owed any more
    assert differing(before, final_state(folder)) == []


def test_a_save_that_would_wait_too_long_leaves_the_checkpoint_before(tmp_path, whole, monkeypatch, capsys):
    """For batches that are sampled ahead; the evaluation was broken off."""
    original, save, folder = loop.Trainer._row, loop.Trainer.save, tmp_path / "run"
    with monkeypatch.context() as patch:
        trap = Trap("ppo", signal.SIGINT, patch)

        def row(self: Any, *, evaluate: bool) -> Any:
            trap.armed = evaluate and self.count >= 32
            return original(self, evaluate=evaluate)

        def slow(self: Any) -> None:
            if trap.sent:
                raise signals.Stopped
            save(self)

        patch.setattr(loop.Trainer, "_row", row)
        patch.setattr(loop.Trainer, "save", slow)
        assert main(command("ppo", folder)) == 130
    assert "interrupted within an update; the last good checkpoint is " in capsys.readouterr().err
    assert main(["resume", str(folder)]) == 0
    assert differing(final_state(folder), final_state(whole["ppo"])) == []


@pytest.mark.parametrize("name", ["ppo", "rec"])
def test_an_update_ends_and_is_saved(name, tmp_path, whole, capsys, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        trap = Trap(name, signal.SIGTERM, patch)
        with pytest.raises(loop.Interrupted, match="interrupted; saved"):
            interrupt_while_collecting(name, folder, trap)
    assert trap.after > 0
    saved = Run(folder).checkpoints.steps()[-1]
    assert saved == trap.at
    polopt.resume(folder)
    assert differing(final_state(folder), final_state(whole[name]), ignore=("#rows",)) == []


@pytest.mark.parametrize("name", ["ppo", "rec"])
def test_an_update_that_takes_too_long_leaves_the_checkpoint_before(name, tmp_path, whole, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(signals, "PATIENCE", 0.0)
        trap = Trap(name, signal.SIGTERM, patch)
        with pytest.raises(
            loop.Interrupted, match=r"interrupted within an update; the last good checkpoint is .*step-"
        ):
            interrupt_while_collecting(name, folder, trap)
    assert trap.after <= 1, "of two environments the other one ends the step"
    assert Run(folder).checkpoints.steps()[-1] < trap.at
    polopt.resume(folder)
    assert differing(final_state(folder), final_state(whole[name])) == []
    assert timeless(folder) == timeless(whole[name])


def interrupt_while_collecting(name: str, folder: Path, trap: Any) -> None:
    """Arms the trap when a third of the run is over; `trap.at` is the count after the update that hears it."""
    from tests.training.runs import TASK_OPTIONS

    options = settings(name, log_every=1)
    for row in polopt.iterate(name, TINY[name][0], out=folder, task_options=TASK_OPTIONS.get(name), **options):
        count = row[row["method"].unit]
        if count >= options["steps"] / 3 and not trap.sent and not trap.armed:
            trap.armed, trap.at = True, count + options["checkpoint_every"]


def test_a_process_whose_evaluation_never_ends_stops_and_leaves_a_checkpoint(tmp_path):
    words = ["train", "ppo", "--task", "tests.tasks.envs:Endless", "--out", str(tmp_path / "run")]
    words += ["--eval-length", "100000000", "--eval-episodes", "1", "--steps", "64", "--network.sizes", "8"]
    process = Forked(POLOPT, words)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    err = process.errors(60)
    assert process.returncode == 130, err
    assert f"polopt: SIGTERM: {signals.SAID}" in err
    assert "interrupted; saved: continue with 'polopt resume" in err
    assert "Traceback" not in err
    assert Run(tmp_path / "run").checkpoints.steps() == [0]


def test_sigterm_to_all_processes_of_a_run_with_workers_is_its_own_to_hear(tmp_path, monkeypatch):
    """As batch systems send it, and `timeout`, which sends it to the process once more."""
    monkeypatch.setitem(TINY, "ppo", ("tests.tasks.envs:Endless", TINY["ppo"][1] | {"workers": 2, "eval_length": 10}))
    folder = tmp_path / "run"
    words = command("ppo", folder, steps=10**6, eval_every=10**6, checkpoint_every=200)
    process = Forked(POLOPT, words, group=True)
    wait_for(process, folder, 400)
    os.killpg(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    err = process.errors(60)
    assert process.returncode == 130, err
    assert f"polopt: SIGTERM: {signals.SAID}" in err
    assert "interrupted; saved: continue with 'polopt resume" in err
    assert "Traceback" not in err
    assert Run(folder).checkpoints.steps()[-1] == Run(folder).rows[-1]["env_steps"]


def test_a_warm_start_stops_within_a_token_and_leaves_nothing(tmp_path, monkeypatch):
    trap = Trap("rec", signal.SIGINT, monkeypatch)
    trap.armed = True
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt):
        warm_start("vowels", accuracy=0.9, size="tiny", folder=tmp_path / "kept" / "model", **{"policy.max_tokens": 4})
    assert (trap.sent, trap.after) == (1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert list((tmp_path / "kept").iterdir()) == []


def test_recording_a_dataset_stops_within_a_step_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    trap = Trap("ppo", signal.SIGTERM, monkeypatch)
    trap.armed = True
    words = ["dataset", "make", "CartPole-v1", "--kinds", "random", "--transitions", "500", "--loggers", "csv"]
    assert main([*words, "--reference-episodes", "1"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "polopt: interrupted"
    assert trap.after == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

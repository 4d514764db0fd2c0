"""A run that is killed, interrupted or extended goes on exactly: what polopt promises of `resume`."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.data import replay
from polopt.training import api, loop
from polopt.training.folder import Run
from polopt.training.plan import plan
from tests.forked import POLOPT, Forked
from tests.training.runs import TINY, command, differing, final_state, same, settings, train

pytestmark = pytest.mark.usefixtures("unreported")


def wait_for(process: Forked, folder: Path, step: int) -> None:
    """Until a checkpoint at or after `step` is there, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(saved >= step for saved in Run(folder).checkpoints.steps()):
            return
        time.sleep(0.002)
    assert process.poll() is not None, "the run hangs"


# A kill is the same to all; that the state of a method is whole, tests/guards/test_resume.py sees of every one.
KILLED = [pytest.param(name, marks=() if name in ("sac", "bc-ppo", "rec") else pytest.mark.exhaustive) for name in TINY]


@pytest.mark.parametrize("name", KILLED)
def test_killed_it_ends_with_bitwise_the_same_state(name, tmp_path):
    """SIGKILL at a moment drawn over the run: after a drawn checkpoint, and a drawn delay more."""
    whole = train(name, tmp_path / "whole")
    draw = random.Random(name)
    steps = TINY[name][1]["steps"]
    folder = tmp_path / "killed"
    process = Forked(POLOPT, command(name, folder))
    wait_for(process, folder, draw.randrange(steps))
    time.sleep(draw.random() * 0.05)
    process.kill()
    process.wait()
    assert main(["resume", str(folder)]) == 0
    assert differing(final_state(folder), final_state(whole.folder)) == []
    assert len(Run(folder).rows) == len(whole.rows)


@pytest.mark.parametrize("name", ["ppo"])
def test_with_worker_processes_it_resumes_bitwise_too(name, tmp_path):
    whole = train(name, tmp_path / "whole", workers=0)
    rows = polopt.iterate(name, TINY[name][0], out=tmp_path / "stopped", **settings(name, workers=2))
    for row in rows:
        if row["env_steps"] >= 48:
            break
    rows.close()
    polopt.resume(tmp_path / "stopped")
    assert differing(final_state(tmp_path / "stopped"), final_state(whole.folder)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_exits_with_130_and_resumes(number, tmp_path, capsys, monkeypatch):
    before = signal.getsignal(number)  # ignored, in the background of a shell
    whole = train("sac", tmp_path / "whole")
    original = loop.Trainer._row
    sent = []

    def row(self: Any, *, evaluate: bool) -> Any:
        if self.count >= 30 and not sent:
            sent.append(self.count)
            os.kill(os.getpid(), number)
        return original(self, evaluate=evaluate)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_row", row)
        assert main(command("sac", folder)) == 130
    assert f"interrupted; saved: continue with 'polopt resume {folder}'" in capsys.readouterr().err
    assert 30 <= Run(folder).checkpoints.steps()[-1] <= sent[0] + 1
    assert signal.getsignal(number) is before  # put back
    assert main(["resume", str(folder)]) == 0
    ignore = ("#rows",)  # the interruption wrote one more
    assert differing(final_state(folder), final_state(whole.folder), ignore=ignore) == []


def test_ctrl_c_of_a_process(tmp_path):
    folder = tmp_path / "run"
    process = Forked(POLOPT, command("ppo", folder, steps=100_000, eval_every=100_000))
    wait_for(process, folder, 16)
    process.send_signal(signal.SIGINT)
    err = process.errors()
    assert process.returncode == 130
    assert f"polopt: interrupted; saved: continue with 'polopt resume {folder}'" in err
    assert "Traceback" not in err
    Run(folder).checkpoints.load(Run(folder).checkpoints.steps()[-1])


def test_a_run_has_one_writer_and_its_lock_dies_with_it(tmp_path, capsys):
    folder = tmp_path / "run"
    process = Forked(POLOPT, command("ppo", folder, steps=100_000, eval_every=100_000))
    try:
        wait_for(process, folder, 16)
        before = (folder / "config.json").read_bytes()
        assert main(["resume", str(folder), "--extend", "200000"]) == 2
        assert f"{folder} is being written by process {process.pid} since 2" in capsys.readouterr().err
        assert (folder / "config.json").read_bytes() == before
    finally:
        process.kill()
        process.wait()
    counts = [row["env_steps"] for row in Run(folder).rows]
    assert counts == sorted(counts)
    rows = polopt.iterate("ppo", TINY["ppo"][0], out=tmp_path / "other", **settings("ppo"))
    next(rows)
    with pytest.raises(UsageError, match="is being written by another run of this process"):
        polopt.resume(tmp_path / "other")
    rows.close()
    polopt.resume(tmp_path / "other")


def test_two_that_begin_in_one_folder_at_once(tmp_path):
    """The second has found the folder free, and is refused when it would write there."""
    out = tmp_path / "run"
    first, second = (polopt.iterate("ppo", TINY["ppo"][0], out=out, **settings("ppo")) for _ in range(2))
    planned = plan("ppo", TINY["ppo"][0], **settings("ppo"))
    late = api.start(planned, out)
    next(first)
    with pytest.raises(UsageError, match="holds a run already"):
        next(second)
    with pytest.raises(UsageError, match="is being written by another run of this process"):
        next(late)
    before = snapshot(out)
    first.close()
    with pytest.raises(UsageError, match="holds a run already"):
        next(api.start(planned, out))
    assert set(snapshot(out)) == before.keys() - {".owner"}


def test_stopped_before_there_is_anything_to_save(tmp_path, capsys, monkeypatch):
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polopt.training.api.write_config", interrupted)
    assert main(command("bc", tmp_path / "run")) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "polopt: interrupted"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.html" and "videos" not in path.parts
    }


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    folder = train("ppo", tmp_path / "run", loggers=("tensorboard",)).folder
    before = snapshot(folder)
    assert main(["resume", str(folder)]) == 0
    assert snapshot(folder) == before


def test_extending_runs_schedules_over_the_new_total(tmp_path, capsys):
    folder = train("ppo", tmp_path / "run", lr_schedule="constant").folder
    longer = train("ppo", tmp_path / "longer", lr_schedule="constant", steps=160)
    for wrong in ("96", "10", "-5"):
        assert main(["resume", str(folder), "--extend", wrong]) == 2
        assert "is not more than the 96 steps of this run" in capsys.readouterr().err
    assert main(["resume", str(folder), "--extend", "160"]) == 0
    state, wanted = final_state(folder), final_state(longer.folder)
    weights = [path for path in wanted if path.startswith("method.policy")]
    assert weights
    assert differing({p: state[p] for p in weights}, {p: wanted[p] for p in weights}) == []
    assert Run(folder).config["steps"] == 160
    assert Run(folder).rows[-1]["env_steps"] == 160


def test_a_run_that_was_stopped_early_goes_on_when_it_is_extended(tmp_path):
    run = train("ppo", tmp_path / "run", until="return>=1")
    assert run.rows[-1]["env_steps"] == 0
    assert polopt.resume(run.folder, extend=112).rows[-1]["env_steps"] < 112  # it stops again, at the next evaluation


def test_resuming_from_an_older_checkpoint_lives_its_future_again(tmp_path, capsys):
    run = train("bc", tmp_path / "run")
    wanted = final_state(run.folder)
    older = run.checkpoints.steps()[0]
    assert main(["resume", str(run.folder), "--checkpoint", "5"]) == 2
    assert f"has no checkpoint 5, only {older}, 12" in capsys.readouterr().err
    polopt.resume(run.folder, checkpoint=older)
    assert differing(final_state(run.folder), wanted) == []


def test_what_cannot_be_resumed(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        assert main(["resume", str(folder)]) == 2
        assert "is not a run folder: it has no config.json" in capsys.readouterr().err


def test_a_run_without_checkpoints_starts_again(tmp_path):
    whole = train("bc", tmp_path / "whole")
    rows = polopt.iterate("bc", TINY["bc"][0], out=tmp_path / "run", **settings("bc"))
    next(rows)
    rows.close()  # the first row is there, no checkpoint yet
    assert Run(tmp_path / "run").checkpoints.steps() == []
    polopt.resume(tmp_path / "run")
    assert differing(final_state(tmp_path / "run"), final_state(whole.folder)) == []


def test_a_replay_of_many_blocks_resumes_and_writes_each_block_once(tmp_path, monkeypatch):
    """Blocks of 16 transitions in a replay of 40 that wraps around."""
    monkeypatch.setattr(replay.Replay.__init__, "__kwdefaults__", replay.Replay.__init__.__kwdefaults__ | {"shard": 16})
    whole = train("sac", tmp_path / "whole", steps=72)
    rows = polopt.iterate("sac", TINY["sac"][0], out=tmp_path / "run", **settings("sac", steps=72))
    for row in rows:
        if row["env_steps"] >= 50:
            break
    rows.close()
    assert len(list((tmp_path / "run" / "checkpoints" / "blobs").glob("*.safetensors"))) >= 2
    polopt.resume(tmp_path / "run")
    assert differing(final_state(tmp_path / "run"), final_state(whole.folder)) == []


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path, monkeypatch):
    returns = iter([1.0, 5.0, 3.0, 2.0, 5.0, 4.0])
    monkeypatch.setattr(
        "polopt.bases.method.evaluate_returns",
        lambda *args, **kwargs: {"return": next(returns), "return_std": 0.0, "length": 1.0},
    )
    run = train("bc", tmp_path / "run", eval_every=3)
    assert [row["eval/return"] for row in run.evaluations] == [1.0, 5.0, 3.0, 2.0, 5.0]
    assert run.checkpoints.steps("best") == [3]
    best, latest = (polopt.load(run.folder, checkpoint=kind) for kind in ("best", "latest"))
    pairs = list(zip(best.parameters(), latest.parameters()))
    assert any(not (one == other).all() for one, other in pairs)
    with pytest.raises(UsageError, match="no checkpoint 'first': choose latest, best or a step, here 3, 10, 12"):
        polopt.load(run.folder, checkpoint="first")


def test_a_checkpoint_is_chosen_by_its_step(tmp_path, capsys):
    run = train("bc", tmp_path / "run")
    assert run.checkpoints.steps() == [10, 12]
    state = run.checkpoints.load(10)
    for name in (10, "10"):
        policy = polopt.load(run.folder, checkpoint=name)
        for path, tensor in policy.state_dict().items():
            assert same(tensor, state[f"method.policy.{path}"])
    latest = polopt.load(run.folder).state_dict()
    assert any(not same(tensor, latest[path]) for path, tensor in policy.state_dict().items())
    assert main(["eval", str(run.folder), "--episodes", "1", "--checkpoint", "10", "--json"]) == 0
    assert '"checkpoint": "10"' in capsys.readouterr().out
    assert main(["eval", str(run.folder), "--episodes", "1", "--checkpoint", "11"]) == 2
    assert "has no checkpoint '11': choose latest, best or a step, here " in capsys.readouterr().err

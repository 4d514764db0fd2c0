"""`--processes N` from outside: how the processes are started, told to stop and ended, and what is refused before."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.training import launch

PYTHON = """#!/bin/sh
cd {folder}
echo "$RANK $LOCAL_RANK $WORLD_SIZE ${{POLOPT_RENDEZVOUS##*/}} $*" > begun-$RANK
case "{how} $RANK" in
    "killed 1") kill -9 $$ ;;
    "failed 1") exit 3 ;;
    "failed 0") exec sleep 1000 ;;
    told*) trap 'touch told-$RANK; exit 130' TERM; touch ready-$RANK; while :; do sleep 0.02; done ;;
esac
"""


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs two processes of a program in place of Python, which behaves in one of these ways; returns the exit code."""

    def run(how: str) -> int:
        program = tmp_path / "python"
        program.write_text(PYTHON.format(folder=tmp_path, how=how))
        program.chmod(0o755)
        monkeypatch.setattr(launch.sys, "executable", str(program))
        return launch.run(["train", "sft"], 2)

    return run


def test_all_are_started_with_their_number(begun, tmp_path):
    assert begun("well") == 0
    said = [(tmp_path / f"begun-{rank}").read_text().strip() for rank in range(2)]
    assert said == [f"{rank} {rank} 2 meet -P -m polopt.cli train sft" for rank in range(2)]


def test_one_that_is_killed_is_named(begun):
    with pytest.raises(RunError, match=r"^process 1 of 2 was ended by SIGKILL: what was saved can be resumed$"):
        begun("killed")


def test_when_one_fails_the_others_end_in_time(begun, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    assert begun("failed") == 1


def test_a_signal_is_passed_on_to_all(begun, tmp_path):
    def tell() -> None:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    usual = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=tell)
    thread.start()
    assert begun("told") == 130
    thread.join()
    assert sorted(path.name for path in tmp_path.glob("told-*")) == ["told-0", "told-1"]
    assert signal.getsignal(signal.SIGTERM) == usual


def test_more_processes_than_a_machine_has_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"^process 2 of this machine has no GPU: there are 2$"):
        launch.meet("cuda")


WRONG = {
    "train sft --task addition --model tiny --shard": "--shard divides a model among processes: say --processes 2",
    "train sft --task addition --model tiny --shard --processes 2 --compile": "--shard and --compile",
    "train ppo --task CartPole-v1 --processes 2": "only methods for language models divide their batches",
    "train sft --task addition --model tiny --processes 0": "processes",
    "train sft --task addition --model tiny --processes 2 --lr -1": "lr",
    "compare sft --task addition --model tiny --seeds 2 --processes 2": "belongs to 'polopt train'",
    "resume nowhere --processes 2": "nowhere",
    "resume nowhere --processes 0": "--processes 0: at least 1",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_commands_are_refused_before_anything_starts(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", lambda *args: pytest.fail("it was started"))
    assert main(command.split()) == 2
    assert WRONG[command] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""Batches that are sampled ahead of the updates: which weights made them, wherever they were made."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt.core.errors import RunError, UsageError
from polopt.core.ledger import Ledger
from polopt.data import ahead
from polopt.data.ahead import Ahead, Beside, changing
from polopt.optim import frozen_copy
from polopt.training import launch
from polopt.training.folder import Run
from polopt.training.options import RunOptions
from tests.data.marks import Marks, Weight, begun, check, goes_on_alike, served
from tests.guards.harness import load, plan
from tests.training import runs


class Kept(Beside):
    """One process for several samplers, of which each leaves no answer behind."""

    left = 0

    def give(self, call: bytes) -> None:
        self.left += 1
        super().give(call)

    def answer(self) -> bytes | None:
        self.left -= 1
        return super().answer()

    def close(self) -> None:
        while self.left and self.ready(60.0):
            self.answer()


def test_a_batch_is_of_the_weights_of_so_many_updates_before() -> None:
    found = check(begun())
    assert len({drawn for _, _, drawn, _ in found}) == 5


def test_a_process_makes_the_same_batches_and_runs_and_is_named_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the task of the run, which is not asked where a process has its own."""
    kept = Kept()
    monkeypatch.setattr(ahead, "Beside", lambda *, script: kept)
    try:
        source = begun("process")
        goes_on_alike(source)
        states = []
        for sampler in ("inline", "process"):
            out = tmp_path / sampler
            runs.train("rec", out, ahead=2, sampler=sampler)
            states.append({p: x for p, x in runs.final_state(out).items() if not p.startswith("method.task")})
            assert [row["staleness"] for row in Run(out).rows if "staleness" in row][-1] == 2
            shutil.copytree(out, tmp_path / f"{sampler} again")
            polopt.resume(tmp_path / f"{sampler} again", checkpoint=Run(out).checkpoints.steps()[0])
            assert runs.differing(runs.final_state(out), runs.final_state(tmp_path / f"{sampler} again")) == []
        assert runs.differing(*states) == []
        assert states[0]["method.source@counted"] == [[], {}]
        os.kill(kept.process.pid or 0, signal.SIGKILL)
        with pytest.raises(RunError, match="samples ahead was killed by SIGKILL"):
            served(source, Weight(), 4)
    finally:
        kept.left = 0
        Beside.close(kept)


def test_what_is_frozen_is_sent_once() -> None:
    """With the sampler itself, and not with every batch; a copy that lags behind is frozen as a whole, and changes."""
    actor = torch.nn.Linear(2, 2)
    actor.weight.requires_grad_(False)
    stale = frozen_copy(actor)
    for each in (actor, stale, frozen_copy(stale), pickle.loads(pickle.dumps(stale))):
        for part in (each, torch.nn.Sequential(each)):
            assert [one is each.bias for one in changing(part)] == [True]


def test_the_luck_is_that_of_the_device_of_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the present one of CUDA: `--device cuda:1`."""
    asked: list[Any] = []

    class Empty(Marks):
        def next(self, actor: Any) -> Any:
            return TensorDict({}, batch_size=[0])

    def luck(seed: int, device: torch.device) -> Any:
        asked.append(device)
        return nullcontext()

    monkeypatch.setattr(ahead, "own_luck", luck)
    ahead.sample(Empty(), Weight().to("meta"), 3)  # type: ignore[arg-type]
    assert asked == [torch.device("meta")]


def test_what_cannot_be_sent_is_refused() -> None:
    class Here(Weight):
        pass

    with pytest.raises(UsageError, match="other processes must be able to import what is given"):
        Ahead(Marks(), 1, Ledger(), "process").next(Here())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("rec", {"sampler": "process"}, "sampler has no effect without --ahead"),
        ("rec", {"ahead": 1, "dynamic_sampling": 2}, "dynamic_sampling has no effect with --ahead"),
        ("lite-ppo", {"ahead": 1}, "ahead has no effect here: its batches depend on more than the weights"),
        (
            "grpo",
            {"ahead": 1, "sampler": "process", "policy.engine": "vllm"},
            "sampler process: vllm begins processes itself, as an actor may",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(name, **settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RunOptions(processes=2), "--sampler process samples for one process only"),
        (RunOptions(compile=True), "--compile and --sampler process: what is compiled cannot be sent to the sampler"),
        (RunOptions(compile="auto"), "--compile and --sampler process"),
    ],
)
def test_what_a_sampler_beside_does_not_go_with_is_refused(options: RunOptions, said: str) -> None:
    planned = plan("grpo", ahead=1, sampler="process")
    with pytest.raises(UsageError, match=said):
        launch.check(load("grpo"), planned.config, options)

"""Batches that are sampled ahead of the updates: which weights made them, wherever they were made."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.core.errors import RunError, UsageError
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.ahead import Ahead
from polopt.training import launch
from polopt.training.folder import Run
from polopt.training.options import RunOptions
from tests.data.marks import Marks, Weight
from tests.guards.harness import load, plan
from tests.training import runs


def served(source: Ahead, actor: Weight, count: int) -> list[tuple[float, ...]]:
    """What the batches of so many updates hold, with the lag that was said; the weight is the number of updates."""
    found = []
    with torch.no_grad():
        for _ in range(count):
            batch = source.next(actor)  # type: ignore[arg-type]
            found.append((*(batch[name].item() for name in ("weight", "number", "drawn")), source.lag))
            actor.value.add_(1.0)
    return found


def begun(process: bool = False) -> Ahead:
    torch.manual_seed(3)
    return Ahead(Marks(), 2, Ledger(), process=process)


def check(source: Ahead) -> list[tuple[float, ...]]:
    """Five batches: by which weights, and what they leave of the ledger, the episodes and the generators."""
    luck = torch.get_rng_state(), random.getstate()
    found = served(source, Weight(), 5)
    assert [(weight, lag) for weight, _, _, lag in found] == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    assert [number for _, number, _, _ in found] == [1, 2, 3, 4, 5]
    assert source.ledger.completions == 15  # and not those of the two batches on the way
    assert source.episodes() == [(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1), (5.0, 1)]
    assert source.episodes() == []
    assert torch.equal(torch.get_rng_state(), luck[0])
    assert random.getstate() == luck[1]
    return found


def test_a_batch_is_of_the_weights_of_so_many_updates_before() -> None:
    found = check(begun())
    assert len({drawn for _, _, drawn, _ in found}) == 5


def test_a_process_makes_the_same_batches_and_is_named_when_it_is_killed() -> None:
    whole, source, other = begun(), begun(process=True), begun()
    try:
        assert check(source) == check(whole)
        torch.manual_seed(5)
        restore(other, gather(source))
        here, there = Weight(), Weight()
        assert served(whole, here, 3) == served(other, there, 3)
        assert source._sampler is not None
        os.kill(source._sampler.process.process.pid or 0, signal.SIGKILL)
        with pytest.raises(RunError, match="samples ahead was killed by SIGKILL"):
            served(source, Weight(), 4)
    finally:
        source.close()


def test_what_cannot_be_sent_is_refused() -> None:
    class Here(Weight):
        pass

    with pytest.raises(UsageError, match="other processes must be able to import what is given"):
        Ahead(Marks(), 1, Ledger(), process=True).next(Here())  # type: ignore[arg-type]


def test_a_run_ends_alike_wherever_it_samples_and_resumed(tmp_path: Path) -> None:
    """But for the task of the run, which is not asked where a process has its own."""
    states = []
    for sampler in ("inline", "process"):
        out = tmp_path / sampler
        runs.train("rec", out, sync_offset=2, sampler=sampler)
        states.append({p: x for p, x in runs.final_state(out).items() if not p.startswith("method.task")})
        assert [row["staleness"] for row in Run(out).rows if "staleness" in row][-1] == 2
        shutil.copytree(out, tmp_path / f"{sampler} again")
        polopt.resume(tmp_path / f"{sampler} again", checkpoint=Run(out).checkpoints.steps()[0])
        assert runs.differing(runs.final_state(out), runs.final_state(tmp_path / f"{sampler} again")) == []
    assert runs.differing(*states) == []
    assert states[0]["method.source@counted"] == [[], {}]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("rec", {"sampler": "process"}, "sampler has no effect without a sync_offset"),
        ("rec", {"sync_offset": 1, "dynamic_sampling": 2}, "dynamic_sampling has no effect with a sync_offset"),
        ("lite-ppo", {"sync_offset": 1}, "sync_offset has no effect here: its batches depend on more than the weights"),
        ("grpo", {"sync_offset": 1, "sampler": "process", "policy.engine": "vllm"}, "is a process of its own already"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(name, **settings)


def test_several_processes_sample_by_themselves() -> None:
    planned = plan("grpo", sync_offset=1, sampler="process")
    with pytest.raises(UsageError, match="--sampler process samples for one process only"):
        launch.check(load("grpo"), planned.config, RunOptions(processes=2))

"""`--compile auto`: what it measures, what it decides, and that a run that goes on knows it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.config.params import hints_of
from polopt.config.words import Words, read_words
from polopt.core.errors import Notice, UsageError
from polopt.core.ledger import Ledger
from polopt.methods.control.sac import SAC
from polopt.training import launch
from polopt.training.compile_trial import BEGINNING, UPDATES, CompileTrial, typical
from polopt.training.options import RunOptions
from tests.training.runs import TINY

SEEN = BEGINNING + UPDATES


class Clocked:
    """A method whose updates take 0.25 s, and compiled ones `after` seconds, the first of these 20 s more."""

    unit = "env_steps"
    compile_seconds = 30.0

    def __init__(self, after: float = 0.05) -> None:
        self.ledger = Ledger()
        self.now, self.pause, self.after, self.compiled, self.updates = 0.0, 0.0, after, 0, 0

    def compile(self) -> None:
        self.compiled, self.pause = self.compiled + 1, 20.0

    def update(self, batch: Any) -> dict[str, torch.Tensor]:
        self.updates += 1
        self.now += self.pause + (self.after if self.compiled else 0.25)
        self.pause = 0.0
        return {"loss": torch.tensor(1.0)}


def tried(method: Any, updates_to_come: int, calls: int = 3 * SEEN) -> CompileTrial:
    """The loop: a warm-up of 1,000 steps, and four steps for an update, so many of them after the first look."""
    trial = CompileTrial(method, 1_000 + 4 * (SEEN + updates_to_come), clock=lambda: method.now)
    method.ledger.env_steps = 1_000
    for _ in range(calls):
        method.ledger.env_steps += 4
        assert trial.update(torch.zeros(())) == {"loss": 1.0}  # type: ignore[arg-type]
    assert method.updates == calls  # none is made for the measurement alone
    return trial


def test_a_budget_that_does_not_win_compiling_back_is_not_compiled():
    """Half of 0.25 s is won in each of 239 updates, which is less than 30 s."""
    method = Clocked()
    said = (
        "not compiled: compiling takes about 30 s, and the updates to come 60 s: it would begin to pay at about 960 env"
    )
    with pytest.warns(Notice, match=f"--compile auto: {said} steps"):
        assert tried(method, 239).decided is False
    assert not method.compiled


def test_a_larger_budget_is_compiled_and_what_that_won_is_said():
    method = Clocked()
    said = "an update takes 50.0 ms after 250.0 ms, and compiling took 20 s, which 400 env steps win back"
    with pytest.warns(Notice, match=f"--compile auto: compiled: {said}"):
        assert tried(method, 241).decided is True
    assert method.compiled == 1


def test_compiling_that_wins_nothing_is_said():
    with pytest.warns(Notice, match=r"takes 260.0 ms after 250.0 ms, and compiling took 20 s, which is lost"):
        assert tried(Clocked(after=0.26), 241).decided is True


def test_nothing_is_decided_before_there_is_enough_to_see():
    method = Clocked()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tried(method, 241, SEEN - 1).decided is None
        trial = tried(Clocked(), 241, SEEN)
    assert trial.decided is None
    assert trial.method.compiled == 1  # type: ignore[attr-defined]


def test_what_was_decided_before_stays():
    for compiled in (True, False):
        method: Any = Clocked()
        trial = CompileTrial(method, 10**9, clock=lambda: 0.0)
        trial.settle(compiled)
        trial.settle(compiled)
        for _ in range(3 * SEEN):
            trial.update(torch.zeros(()))  # type: ignore[arg-type]
        assert trial.decided is compiled
        assert method.compiled == compiled


def test_a_disturbed_update_does_not_count():
    assert typical([3.0, 1.0, 1.0, 3.0, 3.0, 1.0, 3.0, 1.0, 1.0, 900.0]) == pytest.approx(17 / 9)


def test_a_run_that_goes_on_has_what_was_decided(tmp_path: Path):
    """Its updates would be the first again, and be looked at."""
    task, changes = TINY["sac"]
    with pytest.warns(Notice, match="--compile auto: not compiled"):
        run = polopt.train("sac", task, out=tmp_path / "run", compile="auto", loggers=(), **changes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        polopt.resume(run.folder, extend=2 * changes["steps"])
    assert not [each for each in said if "--compile" in str(each.message)]


@pytest.mark.parametrize(("words", "value"), [([], True), (["true"], True), (["false"], False), (["auto"], "auto")])
def test_how_it_is_typed(words: list[str], value: Any):
    assert read_words(Words(words), hints_of(RunOptions)["compile"]) == value


def test_several_processes_would_decide_each_for_itself():
    with pytest.raises(UsageError, match="--processes 2: each would find out by itself whether to compile"):
        launch.check(SAC, SAC.Config(), RunOptions(compile="auto", processes=2))

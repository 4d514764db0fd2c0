"""Stages: when they change, what they are told of the budget, and that they come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polopt.bases.method import Method
from polopt.bases.staged import Stage, Staged
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task


class Learner(Method):
    slug = "learner"

    def build(self, task: Any) -> None:
        self.policy = Uniform(task.spec)
        self.weights = nn.Linear(1, 1)
        nn.init.zeros_(self.weights.weight)
        self.seen: list[float] = []

    def collect(self) -> Any:
        self.ledger.env_steps += 10
        return None

    def update(self, batch: Any) -> dict[str, torch.Tensor]:
        self.seen.append(self.progress)
        with torch.no_grad():
            self.weights.weight.add_(1.0)
        return {"loss": torch.zeros(())}


class Three(Staged):
    slug = "three"
    finished: list[int]

    def build(self, task: Any) -> None:
        self.finished = []
        self.policy = Uniform(task.spec)
        super().build(task)

    def stage(self, index: int) -> Stage | None:
        until = [{"updates": 2}, {"env_steps": 30}, {}]
        if index == 3:
            return None
        return Stage(f"stage{index}", Learner(self.config, self.task, ledger=self.ledger), until[index])

    def finish(self, index: int) -> None:
        self.finished.append(index)


def make() -> Three:
    torch.manual_seed(0)
    return Three(Method.Config(), make_task("CartPole-v1"), ledger=Ledger())


def run(method: Three, updates: int, total: int = 100) -> list[str]:
    names = []
    for _ in range(updates):
        names.append(method.stage_name)
        method.progress = method.ledger.env_steps / total
        method.update(method.collect())
        method.ledger.updates += 1
    return names


def test_stages_last_as_long_as_they_say():
    method = make()
    assert run(method, 8) == ["stage0"] * 2 + ["stage1"] * 3 + ["stage2"] * 3
    assert method.finished == [0, 1]
    assert method.ledger.env_steps == 80


def test_each_stage_sees_its_own_progress():
    method = make()
    learners = [method.learner]
    for _ in range(8):
        run(method, 1)
        if method.learner is not learners[-1]:
            learners.append(method.learner)
    assert learners[0].seen == pytest.approx([0.0, 0.5])
    assert learners[1].seen == pytest.approx([0.0, 1 / 3, 2 / 3])
    start = 0.4  # progress at the update that ended the second stage
    assert learners[2].seen == pytest.approx([(p - start) / (1 - start) for p in (0.5, 0.6, 0.7)])
    assert all(0 <= value < 1 for learner in learners for value in learner.seen)


@pytest.mark.parametrize("after", range(7))
def test_a_stage_comes_back_from_its_state(after):
    whole, stopped = make(), make()
    run(whole, 8)
    run(stopped, after)
    state = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(stopped).items()}
    again = make()
    restore(again, state)
    assert again.stage_name == stopped.stage_name
    run(again, 8 - after)
    assert again.ledger.counts() == whole.ledger.counts()
    assert torch.equal(again.learner.weights.weight, whole.learner.weights.weight)
    assert again.stage_start == whole.stage_start


def test_compiling_reaches_the_stages_to_come(monkeypatch):
    compiled: list[str] = []
    monkeypatch.setattr(Learner, "compile", lambda self, **options: compiled.append(options["backend"]))
    method = make()
    method.compile(backend="eager")
    run(method, 6)
    assert compiled == ["eager"] * 3
    assert list(method.losses()) == []

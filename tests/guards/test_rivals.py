"""What the guards do not see of a method that holds others: its archive in every verb, its twin, its learners' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import polopt
from polopt.core.errors import UsageError
from polopt.evaluation.returns import evaluate_returns
from polopt.training import seeding
from polopt.training.api import load_method
from polopt.training.folder import Run
from tests.guards.harness import SEED, built, own_methods, plan
from tests.guards.rivals import Rivals

SETTINGS: dict[str, Any] = {"steps": 384, "seed": SEED, "eval_episodes": 2, "eval_every": 128, "loggers": ()}
SETTINGS |= Rivals.smoke.config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with own_methods():
        return polopt.train("rivals", "CartPole-v1", out=tmp_path_factory.mktemp("rivals") / "run", **SETTINGS)


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_the_archive_comes_back_for_an_evaluation(run: Run, checkpoint: str) -> None:
    method, _ = load_method(run.folder, checkpoint)
    assert len(method.archive) == 3
    scores = [entry.note["score"] for entry in method.archive]
    assert scores == sorted(scores, reverse=True)
    best = method.archive[0].snapshot.blobs[""].tensors()
    for path, value in method.policy.named_parameters():
        assert torch.equal(value, best[f"policy.{path}"])
    assert polopt.evaluate(run.folder, checkpoint=checkpoint, episodes=2)["archive"] == 3


def test_an_evaluation_takes_the_best_of_the_archive(run: Run) -> None:
    method, planned = load_method(run.folder)
    fresh = planned.make_task(seeding.TEST_TASK, 2)
    returns = []
    for index in range(3):
        method.show(index)
        returns.append(evaluate_returns(method.policy, fresh, 2)["return"])
    fresh.close()
    assert polopt.evaluate(run.folder, episodes=2)["return"] == max(returns)


def test_another_run_starts_with_the_weights_and_an_empty_archive(run: Run, tmp_path: Path) -> None:
    rows = polopt.iterate("rivals", "CartPole-v1", out=tmp_path / "run", init=run.folder, **SETTINGS)
    method, before = next(rows)["method"], load_method(run.folder)[0]
    assert len(method.archive) == 0
    for (path, value), other in zip(
        method.rivals["other"].policy.named_parameters(), before.rivals["other"].policy.parameters()
    ):
        assert torch.equal(value, other), path
    rows.close()


def test_each_learner_has_rows_of_its_own_and_its_own_returns(run: Run) -> None:
    with built("rivals") as method:
        one, other = (rival.source.task for rival in method.rivals.values())
        assert one is method.task
        assert other is not one
        batch = method.collect()
        assert not torch.equal(batch["one", "obs"][:, 0], batch["other", "obs"][:, 0])
        assert method.ledger.env_steps == 2 * 2 * 32
    names = {name for row in run.rows for name in row if name.startswith("train/")}
    assert names == {f"train/rivals.{name}/{what}" for name in ("one", "other") for what in ("return", "length")}


@pytest.mark.parametrize("option", ["envs", "micro_batch"])
def test_what_the_holder_decides_is_no_option_of_a_learner(option: str) -> None:
    with pytest.raises(UsageError, match=f"rival.{option}"):
        plan("rivals", **{f"rival.{option}": 4})
    with built("rivals", **{option: 3}) as method:
        assert {getattr(rival.config, option) for rival in method.rivals.values()} == {3}

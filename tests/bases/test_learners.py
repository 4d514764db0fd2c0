"""Methods that hold methods: what reaches the learners inside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polopt
from polopt.bases.method import Method
from polopt.bases.staged import Stage, Staged
from polopt.config import Linear
from polopt.core.batch import Batch, weighted_mean
from polopt.core.errors import RunError, UsageError
from polopt.data.base import Source
from polopt.policies.base import Density
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from tests.training.runs import TINY, settings


class Ended(Source):
    """A source whose episodes have ended with the given returns."""

    def __init__(self, *returns: float) -> None:
        self.returns = list(returns)

    def episodes(self) -> list[tuple[float, int]]:
        ended, self.returns = self.returns, []
        return [(value, 7) for value in ended]


class Leaf(Method):
    """A learner with one weight; `policy` serves only to be there."""

    def build(self, task: Any) -> None:
        self.policy = Uniform(task.spec)
        self.net = nn.Linear(1, 1)
        self.optimizer = self.make_optimizer(self.net, lr=0.1, schedule=Linear())
        self.log: list[str] = []

    def net_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = weighted_mean(self.net(batch["x"]).squeeze(-1), batch["weight"])
        return loss, {"loss": loss}

    def prepare(self) -> None:
        self.log.append("prepared")

    def initialized(self) -> None:
        self.log.append("initialized")


class Holder(Leaf):
    """A learner that holds others in every way there is, one of them twice."""

    def build(self, task: Any) -> None:
        super().build(task)
        self.listed = [Leaf(self.config, task), Leaf(self.config, task)]
        self.named = {"a": {"deep": (Leaf(self.config, task),)}}
        self.again = self.listed[1]
        self.nets = [nn.Linear(1, 1), self.listed[0].net]
        self._unsaved = Leaf(self.config, task)


class Two(Staged):
    def build(self, task: Any) -> None:
        self.policy = Uniform(task.spec)
        super().build(task)

    def stage(self, index: int) -> Stage | None:
        until = {"updates": 4} if index == 0 else {}
        return Stage(str(index), Holder(self.config, self.task, ledger=self.ledger), until) if index < 2 else None


class House(Method):
    def build(self, task: Any) -> None:
        self.policy = Uniform(task.spec)
        self.first = Two(self.config, task, ledger=self.ledger)
        self.second = Leaf(self.config, task)


@pytest.fixture
def task() -> Any:
    task = make_task("CartPole-v1")
    yield task
    task.close()


HOLDER = ["", "listed.0", "listed.1", "named.a.deep.0"]


def test_the_walk_is_outermost_first_and_finds_each_once(task):
    holder = Holder(Method.Config(), task)
    assert [path for path, _ in holder.learners()] == HOLDER
    assert next(holder.learners()) == ("", holder)
    assert dict(holder.learners())["listed.1"] is holder.again
    inside = [f"first.learner{'.' * bool(path)}{path}" for path in HOLDER]
    assert [path for path, _ in House(Method.Config(), task).learners()] == ["", "first", *inside, "second"]


def test_modules_and_optimizers_of_all_of_them(task):
    holder = Holder(Method.Config(), task)
    names = [name for name, _ in holder.modules()]
    held = [f"{path}.{name}" for path in HOLDER[1:] for name in ("policy", "net")]
    held.remove("listed.0.net")  # found before, as one of the holder's own
    assert names == ["policy", "net", "nets.0", "nets.1", *held]
    assert list(holder.optimizers()) == [learner.optimizer for _, learner in holder.learners()]


def test_progress_reaches_learning_rates(task):
    holder = Holder(Method.Config(), task)
    holder.progress = 0.25
    assert {learner.progress for _, learner in holder.learners()} == {0.25}
    assert [optimizer.rate for optimizer in holder.optimizers()] == pytest.approx([0.075] * 4)


def test_a_staged_learner_inside_anneals_its_stage(task):
    house = House(Method.Config(), task)
    house.ledger.updates = 1
    house.progress = 0.5
    assert (house.first.progress, house.second.progress) == (0.5, 0.5)
    assert house.first.learner.progress == house.first.learner.listed[0].progress == 0.25  # 1 of 4 updates


def test_to_and_prepare_and_initialized(task):
    house = House(Method.Config(), task)
    house.to("meta")
    assert {p.device.type for _, module in house.modules() for p in module.parameters()} == {"meta"}
    house.prepare_all()
    assert house.first.learner.again.log == house.second.log == ["prepared"]
    house.first.stage_until = {"updates": 0}
    house.first.learner.update = lambda batch: {}
    house.first.update(None)
    following = house.first.learner  # moved and prepared as the one before was
    assert house.first.stage_index == 1
    assert following.again.log == ["prepared"]
    assert {p.device.type for _, module in following.modules() for p in module.parameters()} == {"meta"}


def test_compiling_reaches_all_of_them_once(task, monkeypatch):
    compiled = []
    monkeypatch.setattr(Leaf, "compile_own", lambda self, **options: compiled.append((self, options)))
    house = House(Method.Config(), task)
    house.compile(backend="eager")
    wanted = [(learner, {"backend": "eager"}) for _, learner in house.learners() if isinstance(learner, Leaf)]
    assert compiled == wanted
    assert len(wanted) == 5
    house.adopt(fresh := Leaf(Method.Config(), task))
    assert compiled[-1] == (fresh, {"backend": "eager"})


def test_finished_episodes_by_learner(task):
    house = House(Method.Config(), task)
    house.second.source, house.second.other = Ended(1.0), Ended(2.0)
    house.first.learner.source = Ended(3.0)  # what stands for the stage is also the staged method's
    house.source = house.first.learner.listed[0].source = Ended(4.0, 5.0)
    assert house.episodes() == {"": [(4.0, 7), (5.0, 7)], "first": [(3.0, 7)], "second": [(1.0, 7), (2.0, 7)]}
    assert house.episodes() == {}


def test_a_weight_of_a_held_learner_that_is_not_finite_is_never_saved(tmp_path):
    """The critic of the second stage of bc-ppo, which the loop did not see."""
    rows = polopt.iterate("bc-ppo", TINY["bc-ppo"][0], out=tmp_path / "run", **settings("bc-ppo", log_every=1))

    def poison() -> None:
        for row in rows:
            if row["stage"] == "ppo" and row["env_steps"] >= 32:
                method = row["method"]
                next(method.learner.critic.parameters()).data.fill_(math.nan)
                method.learner.update = lambda batch: {"loss": torch.zeros(())}

    with pytest.raises(RunError, match=r"learner\.critic\..* is not finite at \d+ env_steps; the last good checkpoint"):
        poison()


def test_a_learner_without_a_slug_has_the_name_of_its_class(task):
    class WorstCase(Leaf):
        requires = (Density,)

    assert (Leaf.slug, House.slug) == ("leaf", "house")
    with pytest.raises(UsageError, match=r"worst-case needs a policy that has a density"):
        WorstCase(Method.Config(), task)


def test_rows_have_the_returns_of_held_learners(tmp_path):
    for row in polopt.iterate("ppo", TINY["ppo"][0], out=tmp_path / "run", **settings("ppo", steps=48)):
        method = row["method"]
        if row["env_steps"] == 16:
            method.held = Leaf(Method.Config(), method.task)
            method.held.source = Ended(2.0, 4.0)
        if row["env_steps"] == 32:
            assert (row["train/held/return"], row["train/held/length"]) == (3.0, 7.0)

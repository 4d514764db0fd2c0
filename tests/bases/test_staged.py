"""Stages: when they change, what they are told of the budget, and that they come back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from polopt.bases.method import Method
from polopt.bases.staged import Stage, Staged
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.policies import Autoregressive
from polopt.policies.wrappers import Uniform
from polopt.regularizers import KLPenalty
from polopt.tasks import make_task
from polopt.values.critics import StateValue


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
    monkeypatch.setattr(Learner, "compile_own", lambda self, **options: compiled.append(options["backend"]))
    method = make()
    method.compile(backend="eager")
    run(method, 6)
    assert compiled == ["eager"] * 3
    assert list(method.losses()) == []


class Pair(Staged):
    """Two PPOs, one after the other, that train one policy and one critic; the second with other settings."""

    slug = "pair"
    later: ClassVar[dict[str, Any]] = {}

    def build(self, task: Any) -> None:
        self.policy = self.config.policy.build(task.spec, network=self.config.network)
        self.critic = StateValue(task.spec, self.config.network)
        super().build(task)

    def stage(self, index: int) -> Stage | None:
        if index == 2:
            return None
        config = replace(self.config, **(self.later if index else {}))
        parts = {"policy": self.policy, "critic": self.critic}
        learner = PPO(config, self.task, ledger=self.ledger, parts=parts)
        return Stage(f"stage{index}", learner, {} if index else {"updates": 1})


SMALL = PPO.Config(envs=2, window=4, minibatches=1, epochs=1, network=Network((8,), "tanh"))


def pair(task: str = "CartPole-v1", *, policy: Any = None, **later: Any) -> Pair:
    torch.manual_seed(0)
    cls = type("PairOf", (Pair,), {"later": later})
    return cls(replace(SMALL, policy=policy or SMALL.policy), make_task(task, num=2))


def test_stages_share_a_policy_and_a_critic():
    method = pair()
    moved: list[list[torch.Tensor]] = []
    for _ in range(2):
        learner: Any = method.learner
        assert learner.policy is method.policy
        assert learner.critic is method.critic
        own = [*method.policy.parameters(), *method.critic.parameters()]
        assert [id(each) for each in learner.optimizer.parameters] == [id(each) for each in own]
        moved.append([parameter.detach().clone() for parameter in own])
        run(method, 1)
    assert method.stage_name == "stage1"
    moved.append([parameter.detach().clone() for parameter in own])
    assert not any(torch.equal(a, b) for before, after in pairwise(moved) for a, b in zip(before, after))


def test_a_part_that_nobody_asks_for_is_refused():
    with pytest.raises(TypeError, match="ppo has no part 'critics'"):
        PPO(SMALL, make_task("CartPole-v1", num=2), parts={"critics": None})


def test_a_wrong_later_stage_is_refused_before_the_first_one_trains():
    pair("Pendulum-v1", policy=Autoregressive())
    with pytest.raises(UsageError, match="ppo with an exact KL divergence needs a policy that"):
        pair("Pendulum-v1", policy=Autoregressive(), kl_penalty=KLPenalty())


def test_checking_the_stages_leaves_no_trace(monkeypatch):
    checked, drawn = pair(), torch.rand(3)
    monkeypatch.setattr(Staged, "_check_stages", lambda self: None)
    plain = pair()
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(checked.learner.generator.get_state(), plain.learner.generator.get_state())
    for method in (checked, plain):
        torch.manual_seed(1)
        run(method, 3)
    for a, b in zip(checked.policy.parameters(), plain.policy.parameters()):
        assert torch.equal(a, b)


def test_stages_without_an_end_are_checked_once_each(monkeypatch):
    built: list[int] = []

    class Endless(Three):
        def stage(self, index: int) -> Stage:
            built.append(index)
            return Stage("ab"[index % 2], Learner(self.config, self.task, ledger=self.ledger), {"updates": 1})

    method = Endless(Method.Config(), make_task("CartPole-v1"), ledger=Ledger())
    assert built == [0, 1, 2]
    assert run(method, 5) == ["a", "b", "a", "b", "a"]

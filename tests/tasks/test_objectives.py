"""Tasks of several objectives: their rewards as facts, the methods that refuse them, and one reward out of several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces

from polopt.bases.method import Method
from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.data import Rollouts
from polopt.evaluation.returns import evaluate_returns
from polopt.networks import Network
from polopt.policies import Gaussian
from polopt.tasks import make_task
from polopt.training import api
from tests.data.actors import Random
from tests.guards.spaces import Errand, several

NAMES = ("calm", "soon")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_vector_reward_is_a_fact_and_its_sum_the_reward(workers: int) -> None:
    task = make_task(several, 2, workers=workers, facts=("effort",))
    assert task.spec.objectives == NAMES
    assert task.spec.facts == {"rewards": (2,), "effort": ()}
    assert not task.spec.scalar
    batch = Rollouts(task, steps=12).next(Random(task.spec))
    assert torch.equal(batch["rewards"][..., 0], -batch["effort"])
    assert torch.allclose(batch["effort"], batch["action"].abs().sum(-1))
    assert (batch["rewards"][..., 1] == -1).all()
    assert torch.allclose(batch["reward"], batch["rewards"].sum(-1))
    task.close()


class Short(Errand):
    """Forgets its second objective at the second step."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2), spaces.Discrete(2))

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward[: 2 if self.time < 2 else 1], *rest


class Nameless(Errand):
    objectives = None


def test_faults_of_a_vector_reward() -> None:
    task = make_task(Short)
    with pytest.raises(RunError, match=r"returned 'rewards' of shape \(1,\), not \(2,\) as at first \(row 0, step 2"):
        Rollouts(task, 4).next(Random(task.spec))
    with pytest.raises(UsageError, match="x names 2 objectives: its fact 'rewards' has one of each"):
        Spec(spaces.Discrete(2), spaces.Discrete(2), "x", objectives=("a", "b"), facts={"rewards": (3,)})
    with pytest.raises(UsageError, match="x has neither one reward nor objectives"):
        Spec(spaces.Discrete(2), spaces.Discrete(2), "x", scalar=False)


def test_weights_make_one_reward_of_several() -> None:
    task = make_task(several, 2, seed=3, objective_weights=(2.0, 0.5))
    assert task.spec.scalar
    assert task.spec.objectives == NAMES  # and the parts are still there
    assert task.spec.info["weights"] == [2.0, 0.5]
    actor = Random(task.spec)
    batch = Rollouts(task, steps=12).next(actor)
    expected = 2 * batch["rewards"][..., 0] + 0.5 * batch["rewards"][..., 1]
    assert torch.allclose(batch["reward"], expected)
    for weights, sentence in (
        ((1.0,), r"several has 2 objectives \(calm, soon\), so it takes as many weights, not 1"),
        ((1.0, 2.0, 3.0), "as many weights, not 3"),
    ):
        with pytest.raises(UsageError, match=sentence):
            make_task(several, objective_weights=weights)
    with pytest.raises(UsageError, match="CartPole-v1 has one reward, so there is nothing to weigh"):
        make_task("CartPole-v1", objective_weights=(1.0,))


def test_a_weighted_task_goes_on_bitwise() -> None:
    def build() -> Rollouts:
        return Rollouts(make_task(several, 2, seed=5, objective_weights=(1.0, 3.0)), 7)

    source = build()
    actor = Random(source.task.spec)
    source.next(actor)
    saved, random = gather(source), torch.get_rng_state()
    expected = source.next(actor)
    other = build()
    restore(other, saved)
    torch.set_rng_state(random)
    batch = other.next(actor)
    assert all(torch.equal(batch[key], expected[key]) for key in ("obs", "reward", "rewards", "first"))


def test_evaluation_says_the_return_of_each_objective() -> None:
    task = make_task(several, 2, objective_weights=(1.0, 0.5))
    scores = evaluate_returns(Random(task.spec), task, 4, greedy=True)  # type: ignore[arg-type]
    # greedy: the action 0 costs no effort, and does not stop the walk of ten steps
    assert scores == {"return": -5.0, "return_std": 0.0, "length": 10.0, "return_calm": 0.0, "return_soon": -10.0}


def test_a_run_with_weights_from_the_command_line(tmp_path: Path) -> None:
    planned = api.plan("ppo", several, argv=["--objective-weights", "1,0.5"])
    assert planned.options.objective_weights == (1.0, 0.5)
    with pytest.raises(UsageError, match="ppo learns from one reward, and several has 2 objectives"):
        api.plan("ppo", several).build()
    settings: dict[str, Any] = {"window": 8, "network.sizes": (4,), "loggers": (), "eval_episodes": 1}
    run = api.train("ppo", several, steps=16, out=tmp_path / "run", objective_weights=(1, 0.5), **settings)
    assert {f"eval/return_{name}" for name in NAMES} <= run.final.keys()
    assert run.config["run"]["objective_weights"] == [1.0, 0.5]


class Both(Method):
    """Learns nothing, from one reward or from several."""

    slug = "both"
    objectives = "any"

    def build(self, task: Any) -> None:
        self.policy = Gaussian().build(self.spec, Network(sizes=(4,)))


class Costs(Both):
    slug = "needs-costs"
    facts = ("effort",)


class Several(Both):
    slug = "needs-several"
    objectives = "several"


def test_methods_say_what_they_learn_from() -> None:
    for cls in (Both, Several):
        assert cls(cls.Config(), make_task(several)).spec.objectives == NAMES
    Both(Both.Config(), make_task("Pendulum-v1"))
    Costs(Costs.Config(), make_task(several, facts=("effort", "parts")))
    with pytest.raises(UsageError, match="needs-costs learns from the fact 'effort', which several does not give"):
        Costs(Costs.Config(), make_task(several))
    with pytest.raises(UsageError, match="needs-several learns from several objectives, and Pendulum-v1 has one"):
        Several(Several.Config(), make_task("Pendulum-v1"))


# MO-Gymnasium


def test_deep_sea_treasure_by_hand() -> None:
    """The first treasure, 0.7, lies one step down; the second, 8.2, one to the right and two down."""
    pytest.importorskip("mo_gymnasium")
    task = make_task("deep-sea-treasure-v0", 1)
    assert task.spec.objectives == ("0", "1")
    assert isinstance(task.spec.obs, spaces.Box)
    down, right = 1, 3
    for moves, treasure in (((down,), 0.7), ((right, down, down), 8.2)):
        task.reset()
        for time, move in enumerate(moves):
            _, reward, terminated, _ = task.step({"action": torch.tensor([move])})
            value = treasure if time == len(moves) - 1 else 0.0
            assert task.facts["rewards"][0].tolist() == pytest.approx([value, -1.0])
            assert reward.item() == pytest.approx(value - 1.0)
            assert terminated.item() == (value > 0)


def test_mo_gymnasium_trains_and_restores(tmp_path: Path) -> None:
    pytest.importorskip("mo_gymnasium")
    task = make_task("mo-mountaincar-v0", 1)
    assert len(task.spec.objectives) == 3
    assert task.exact_restore
    with pytest.raises(UsageError, match=r"mo-mountaincar-v0 has 3 objectives \(0, 1, 2\)"):
        api.plan("ppo", "mo-mountaincar-v0").build()
    settings: dict[str, Any] = {"window": 8, "network.sizes": (4,), "loggers": (), "eval_episodes": 1}
    run = api.train(
        "ppo", "deep-sea-treasure-v0", steps=16, out=tmp_path / "run", objective_weights=(1, 0.1), **settings
    )
    assert {"eval/return_0", "eval/return_1"} <= run.final.keys()


@pytest.mark.parametrize("name", ["mo-hopper-v5", "deep-sea-treasure-concave-v0", "minecart-v0"])
def test_without_mo_gymnasium_the_sentence_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mo_gymnasium", None)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", {})
    monkeypatch.setattr(gymnasium, "registry", {})
    sentence = f"the task '{name}' needs a package that is not installed: pip install \"polopt[mo]\""
    with pytest.raises(UsageError) as error:
        make_task(name)
    assert str(error.value) == sentence

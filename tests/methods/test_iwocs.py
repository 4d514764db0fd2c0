"""IWOCS on tables against robust value iteration, and in a world step by step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import polopt
from polopt.config import apply
from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.methods.theory import iwocs
from polopt.methods.theory.iwocs import IWOCS, exact
from polopt.tasks.parameters import Parameters
from polopt.tasks.tabular_sets import discounted_optimal, discounted_value, one_hot, robust_optimal, worst_model
from polopt.tasks.torch_control import moved
from polopt.tasks.windy import gust_grid, windy_walk
from tests.guards.harness import advance, built

MUST = 4
DISCOUNT = 0.95
SAFE = -(1 - DISCOUNT**9) / (1 - DISCOUNT)  # nine steps without wind


def test_the_walk_by_hand(float64: None) -> None:
    """Two corridors of two steps, in the second of which a gust throws back with probability p:
    V = -1 + d (-1 + d p V)."""
    transition, reward = windy_walk(torch.tensor([[0.0, 0.3], [0.0, 0.9]]), (2, 2))
    assert transition.shape == (2, 4, 2, 4)
    torch.testing.assert_close(transition.sum(-1), torch.ones(2, 4, 2))
    for corridor, chances in enumerate([(0.0, 0.0), (0.3, 0.9)]):
        policy = one_hot(torch.eye(2)[corridor].expand(4, 2))
        value = discounted_value(transition, reward, policy, 0.9)[:, 0]
        hand = [(-1 - 0.9) / (1 - 0.81 * p) for p in chances]
        torch.testing.assert_close(value, torch.tensor(hand))
    assert gust_grid(3).tolist() == [[a, b, 0] for a in (0, 0.25, 0.5) for b in (0, 0.25, 0.5)]


def test_two_solves_of_25_models_are_enough() -> None:
    transition, reward = windy_walk(gust_grid())
    _, robust = robust_optimal(reward, worst_model(transition), DISCOUNT)
    _, optimal = discounted_optimal(transition, reward, DISCOUNT)
    assert float(robust[0]) == pytest.approx(SAFE)
    assert float(optimal[:, 0].min()) == pytest.approx(SAFE)  # no duality gap from the start
    found = exact(transition, reward, DISCOUNT)
    assert gust_grid()[found.models].tolist() == [[0, 0, 0], [0.5, 0.5, 0]]
    assert float(found.values[-1][:, 0].min()) == pytest.approx(SAFE)
    first = float(found.values[0][:, 0].min())
    assert first < SAFE - 3  # the short corridor, in its wind
    torch.testing.assert_close(found.values[0], discounted_value(transition, reward, found.policies[0], DISCOUNT))
    # judged by the start alone the search overlooks what is not on the way, and stops too early
    start = exact(transition, reward, DISCOUNT, start=0)
    assert gust_grid()[start.models].tolist() == [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]]
    assert float(start.values[-1][:, 0].min()) < SAFE - 9
    assert len(exact(transition, reward, DISCOUNT, start=0, most=2).models) == 2
    one = exact(transition[7:8], reward, DISCOUNT)
    torch.testing.assert_close(one.values[0], discounted_optimal(transition[7:8], reward, DISCOUNT)[1])
    begun = exact(transition, reward, DISCOUNT, first=24)
    assert begun.models == [24]


def test_the_candidate_takes_the_best_least_value() -> None:
    """Actions lead to a state that pays 1 for ever (else nothing): the first with chance 1 or 0, the second 0 or 1, the
    third 0.4 in both. Each is best in one model; the least of both is best for the third."""
    transition = torch.zeros(2, 3, 3, 3, dtype=torch.float64)
    chances = torch.tensor([[1.0, 0.0, 0.4], [0.0, 1.0, 0.4]], dtype=torch.float64)
    transition[:, 0, :, 1], transition[:, 0, :, 2] = chances, 1 - chances
    transition[:, 1, :, 1] = transition[:, 2, :, 2] = 1.0
    reward = torch.tensor([[0.0] * 3, [1.0] * 3, [0.0] * 3], dtype=torch.float64)
    found = exact(transition, reward, 0.5)
    assert found.models == [0, 1]
    assert [int(policy[0].argmax()) for policy in found.policies] == [0, 2]
    torch.testing.assert_close(found.values[-1][:, 0], torch.tensor([0.4, 0.4], dtype=torch.float64))


SMALL: dict[str, Any] = {
    "sac.warmup": 20,
    "model_steps": 30,
    "sac.batch_size": 8,
    "coverage_updates": 3,
    "coverage": 0.9,
}


def test_must_2_each_learner_is_fresh_learns_in_its_model_and_is_kept(float64: None) -> None:
    with built("iwocs", **SMALL) as method:
        assert isinstance(method, IWOCS)
        box = Parameters.of(method.spec)
        advance(method, 29)
        first: Any = method.learner
        assert method.policy.count == 0
        obs = torch.randn(5, 3)
        acts = method.policy.act(obs, greedy=True)[0]["action"]
        assert torch.equal(acts, first.policy.act(obs, greedy=True)[0]["action"])
        steps = advance(method, 30)
        second: Any = method.learner
        assert second is not first
        searched = (1 + 4 * 1) * 2 * 20  # the known model and a generation of 4, two episodes of 20 steps each
        assert method.ledger.env_steps == 30 + searched
        assert method.ledger.episodes == 1 + (1 + 4) * 2
        assert steps[-1]["worst_found"] == method.worst[0]
        (expert,) = method.policy.experts
        for mine, its in ((expert.actor, first.policy), (expert.critic, first.critic)):
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), its.parameters()))
        assert not any(
            torch.equal(a, b) for a, b in zip(first.critic.parameters(), second.critic.parameters()) if a.dim() == 3
        )
        assert method.policy.actor is second.policy
        seen = first.source.replay.whole()["obs"]
        assert 0.5 < expert.coverage(seen).double().mean() <= 1
        advance(method, 30 + searched + 25)
        for learner, psi in zip((first, second), method.psi, strict=True):
            batch = learner.source.replay.whole()
            values = box.values(torch.tensor(psi))
            angle = torch.atan2(batch["obs"][:, 1], batch["obs"][:, 0])
            torque = 2.0 * batch["action"].squeeze(-1)
            _, speed = moved(angle, batch["obs"][:, 2], torque, values["mass"], values["length"])
            torch.testing.assert_close(batch["next_obs"][:, 2], speed)
        assert method.psi[0] == [0.0, 0.0] != method.psi[1]


def test_a_model_that_ends_with_an_episode_leaves_none_to_the_next(float64: None) -> None:
    """Two episodes of 20 steps: the row has begun the third in the old model when the new one comes."""
    with built("iwocs", **SMALL | {"model_steps": 40}) as method:
        assert isinstance(method, IWOCS)
        advance(method, 40)
        box, start = Parameters.of(method.spec), method.ledger.env_steps
        advance(method, start + 25)
        learner: Any = method.learner
        batch = learner.source.replay.whole()
        assert len(batch) == 25
        values = box.values(torch.tensor(method.psi[1]))
        angle, torque = torch.atan2(batch["obs"][:, 1], batch["obs"][:, 0]), 2.0 * batch["action"].squeeze(-1)
        _, speed = moved(angle, batch["obs"][:, 2], torque, values["mass"], values["length"])
        torch.testing.assert_close(batch["next_obs"][:, 2], speed)


@pytest.mark.parametrize("stop", [25, 29, 253])
def test_a_run_that_was_stopped_goes_on_bitwise(stop: int, float64: None) -> None:
    """In the middle of the first model, right before its search, and in the second model, up to the end of all."""
    settings = SMALL | {"model_steps": 30, "rule": "q-min", "samples": 2}

    with built("iwocs", **settings) as method, built("iwocs", **settings) as other:
        advance(method, stop)
        state = copy.deepcopy(gather(method))
        luck = torch.get_rng_state()
        advance(method, 10_000, 30)
        assert method.done
        whole = gather(method)
        torch.manual_seed(99)
        restore(other, state)
        torch.set_rng_state(luck)
        advance(other, 10_000, 30)
        again = gather(other)
        assert whole.keys() == again.keys()
        for path, value in whole.items():
            assert torch.equal(value, again[path]) if isinstance(value, torch.Tensor) else value == again[path], path


def test_must_1_the_search_is_for_the_worst_model_of_all_experts_together(monkeypatch: Any) -> None:
    """Models are worth their distance from (0.4, -0.7), resets 1 more than visited states."""
    asked = []

    def returns_in(world: Any, box: Any, actor: Any, psi: Any, state: Any, **how: Any) -> Any:
        asked.append((actor, {name: value.clone() for name, value in state.items()}))
        far = (psi - torch.tensor([0.4, -0.7])).norm(dim=-1).double()
        return far.unsqueeze(1) + torch.tensor([1.0, 1.0, 0.0, 0.0]), 7

    monkeypatch.setattr(iwocs, "returns_in", returns_in)
    options: dict[str, Any] = {"search_episodes": 4, "population": 8, "generations": 6, "nominal": (1.0, 0.0)}
    with built("iwocs", **SMALL, **options) as method:
        assert isinstance(method, IWOCS)
        advance(method, 29)
        steps = method.ledger.env_steps
        psi, worst, gain = method.search()
        assert method.ledger.env_steps == steps + 7 * 7
        torch.testing.assert_close(torch.tensor(psi), torch.tensor([0.4, -0.7]), atol=0.1, rtol=0)
        least = (torch.tensor(psi) - torch.tensor([0.4, -0.7])).norm().item()
        assert worst == pytest.approx(least + 1.0, abs=1e-6)  # from resets
        assert gain == pytest.approx((0.6**2 + 0.7**2) ** 0.5 - least, abs=1e-6)  # against the present model
        assert all(actor is method.policy for actor, _ in asked)
        states = asked[0][1]
        assert all(torch.equal(states["angle"], other["angle"]) for _, other in asked)
        reset = method.task.start_of(0, 1)
        assert torch.equal(states["angle"][:2], reset["angle"])
        visited = method.visited.whole()["state"]["angle"].tolist()
        assert all(angle in visited for angle in states["angle"][2:].tolist())
        again, _ = method.starts()
        assert torch.equal(again["angle"][:2], reset["angle"])  # the same resets in every search


def test_a_search_leaves_the_luck_of_the_run_alone() -> None:
    """Also where experts draw."""
    with built("iwocs", **SMALL | {"rule": "q-min", "samples": 2}) as method:
        assert isinstance(method, IWOCS)
        advance(method, 29)
        learner: Any = method.learner
        method.policy.keep(learner.policy, learner.critic, method.make_coverage())
        before = torch.get_rng_state()
        method.search()
        assert torch.equal(torch.get_rng_state(), before)


def test_must_3_only_who_has_been_near_a_state_has_a_say(float64: None) -> None:
    """The replay of a model that always begins upright covers the top, and not what hangs down or spins."""
    with built(
        "iwocs", **SMALL | {"coverage_updates": 400, "coverage": 0.95, "coverage_network.sizes": (32,)}
    ) as method:
        assert isinstance(method, IWOCS)
        method.task.levels |= {"angle": torch.tensor([0.0]), "speed": torch.tensor([0.0])}
        method.task.horizon = 3
        advance(method, 30)
        (expert,) = method.policy.experts
        seen, away = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 8.0]])
        assert expert.coverage(seen).all()
        assert not expert.coverage(away).any()


def test_must_4_all_experts_value_with_the_same_scale_and_discount() -> None:
    """One config makes all learners, and one rule compares them: values of modes, without the entropy of a decision."""
    with built("iwocs", **SMALL) as method:
        assert isinstance(method, IWOCS)
        first = method.learner.config
        advance(method, 31)
        assert method.learner.config == first
        (expert,) = method.policy.experts
        obs = torch.randn(4, 3)
        with torch.no_grad():
            for parameter in expert.critic.parameters():
                parameter.zero_()
            other = method.expert()
            other.load_state_dict(expert.state_dict())
            other.coverage.threshold.fill_(1e9)
            expert.coverage.threshold.fill_(1e9)
            list(other.critic.parameters())[-1].fill_(-0.01)
        method.policy.experts.append(other)
        method.policy.used = 2
        assert method.policy.act(obs, greedy=True)[0]["chosen"].tolist() == [1] * 4  # -0.01 is less than 0
        assert method.policy.act(obs)[0]["chosen"].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("results", "used", "models"),
    [
        ([(-3.0, 5.0), (-1.0, 5.0), (-2.0, 5.0)], 2, 3),  # the second candidate was best in its worst model
        ([(-3.0, 5.0), (-3.5, 0.5), (-2.0, 5.0)], 1, 2),  # no model was worse by more than 1
    ],
)
def test_the_best_candidate_is_kept_and_the_run_ends(results: Any, used: int, models: int, monkeypatch: Any) -> None:
    found = iter(results)

    def search(self: IWOCS) -> Any:
        assert self.policy.used == self.policy.count == len(self.worst) + 1  # of all experts, the new one too
        return [0.5, 0.5], *next(found)

    monkeypatch.setattr(IWOCS, "search", search)
    with built("iwocs", **SMALL, models=3, tolerance=1.0) as method:
        assert isinstance(method, IWOCS)
        while not method.done:
            advance(method, method.ledger.env_steps + 1)
        assert (method.policy.used, method.policy.count, len(method.worst)) == (used, models, models)
        learner, steps = method.learner, method.ledger.env_steps
        assert steps == 30 * models
        advance(method, steps + 3)  # whoever goes on changes nothing of it
        assert (method.policy.used, method.policy.count, method.learner) == (used, models, learner)


def test_a_run_ends_by_itself_and_is_loaded_without_its_world(tmp_path: Any) -> None:
    smoke = IWOCS.smoke
    settings = {**smoke.config, **SMALL, "loggers": (), "eval_episodes": 2}
    run = polopt.train("iwocs", smoke.task, steps=100_000, task_options=smoke.task_options, out=tmp_path, **settings)
    last = run.rows[-1]
    assert last["env_steps"] < 2_000
    assert last["eval/worst"] <= last["eval/grid_mean"]
    assert polopt.load(tmp_path).predict(torch.zeros(3).numpy()).shape == (1,)
    scores = polopt.evaluate(tmp_path, episodes=2)
    assert scores["worst"] == pytest.approx(last["eval/worst"], rel=0.5)
    assert "worst return by mass" in (tmp_path / "figures.json").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": 1, "population": 5}, "population .* with one model, which is SAC"),
        ({"models": 1, "rule": "q-min"}, "rule .* with one model, which is SAC"),
        ({"samples": 3}, "samples .* with the rule 'value'"),
        (
            {"model_steps": 10_000},
            "SAC learns nothing in a model in which 10,000 of 10,000 steps are random: model_steps",
        ),
        ({"nominal": (0.0, 3.0)}, "nominal"),
        ({"search_visited": 1.0}, "search_visited must leave episodes that begin at resets"),
    ],
)
def test_options_that_do_nothing_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        apply(IWOCS.Config, settings)


def test_other_tasks_and_models_are_refused() -> None:
    with (
        pytest.raises(UsageError, match="Pendulum-v1 has no parameters that differ between models"),
        built("iwocs", "Pendulum-v1"),
    ):
        pass
    with (
        pytest.raises(UsageError, match="nominal has 3 numbers for the 2 parameters of pendulum"),
        built("iwocs", nominal=(0.0, 0.0, 0.0)),
    ):
        pass

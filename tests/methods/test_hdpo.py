"""HDPO: gradients through the simulator beside closed forms and finite differences, and what is reported."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.data.episodes import Episodes
from polopt.evaluation.score import Score
from polopt.methods.theory.hdpo import simulate
from polopt.tasks import make_task
from polopt.training import api
from tests.guards.harness import built, reseed
from tests.tasks.worlds import Toll

MUST = 5


def store(seed: int = 0, lead: int = 1, **settings: Any) -> Any:
    common: dict[str, Any] = {"steps": 10_000, "seed": seed, "loggers": (), "network.sizes": (5,)}
    common |= {"scenarios": 64, "batch_size": 32, "periods": 6, "burn_in": 2, "eval_periods": 8, "eval_burn_in": 4}
    options = {"lead": lead, **settings.pop("task_options", {})}
    return api.plan("hdpo", "inventory/store", task_options=options, **{**common, **settings}).build()


class Level(nn.Module):
    """Orders the same quantity whatever it sees."""

    def __init__(self, order: float) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.tensor(order, dtype=torch.float64))

    def forward(self, obs: Tensor) -> Tensor:
        return self.order.expand(len(obs), 1)


def test_must_1_the_gradient_is_that_of_the_newsvendor(float64: None) -> None:
    """Two periods from nothing: the order of the first, y, is what the second has, and d cost / d y is
    holding P(demand < y) - underage P(demand > y)."""
    world: Any = make_task("inventory/store", 1, 0, lead=1)
    state = world.start_of(*range(20_000))
    state["stock"] = torch.zeros_like(state["stock"])
    for order in (3.5, 7.5):
        level = Level(order)
        cost = -simulate(world, level, state, 2)[:, 1].mean()
        (slope,) = torch.autograd.grad(cost, level.order)
        below = sum(math.exp(-5) * 5**count / math.factorial(count) for count in range(int(order) + 1))
        assert slope.item() == pytest.approx(below - 9 * (1 - below), abs=0.15)


def test_must_1_it_flows_through_all_periods(float64: None) -> None:
    """Finite differences of the whole cost, in every weight, where no kink is near; cut between periods there
    is none."""
    method = store(lead=2)
    batch = method.collect()
    batch["weight"] = torch.full((32,), 1 / 32)
    loss = method.cost_loss(batch)[0]
    parameters = list(method.policy.parameters())
    slopes = torch.autograd.grad(loss, parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        flat = parameter.data.view(-1)
        for place in range(0, len(flat), 3):
            found = []
            for step in (1e-6, -1e-6):
                flat[place] += step
                found.append(method.cost_loss(batch)[0].item())
                flat[place] -= step
            assert slope.view(-1)[place].item() == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-4, abs=1e-7)

    class Cut(type(method.world)):  # type: ignore[misc]
        def advance(self, state: Any, *rest: Any) -> Any:
            return super().advance({name: value.detach() for name, value in state.items()}, *rest)

    method.world.__class__ = Cut
    assert not method.cost_loss(batch)[0].requires_grad  # an order costs nothing in its own period


def test_must_1_all_periods_count_and_the_report_leaves_the_first_ones_out(float64: None) -> None:
    method = store()
    batch = method.collect()
    batch["weight"] = torch.full((32,), 1 / 32)
    state = dict(batch["state"].items())
    costs = -simulate(method.world, lambda obs: method.policy.orders(obs), state, 6)
    loss, metrics = method.cost_loss(batch)
    torch.testing.assert_close(loss, costs.mean())
    torch.testing.assert_close(metrics["late_cost"], costs[:, 2:].mean())
    batch["weight"] = torch.zeros(32).index_fill(0, torch.tensor(3), 1.0)
    torch.testing.assert_close(method.cost_loss(batch)[0], costs[3].mean())


def test_must_1_scenarios_begin_with_different_stocks_and_come_back_each_epoch() -> None:
    method = store(batch_size=16)
    epochs = []
    for _ in range(2):
        stocks = [method.collect()["state"]["stock"][:, 0, 0] for _ in range(4)]
        epochs.append(torch.cat(stocks))
    assert len(epochs[0].unique()) == 64
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert method.ledger.env_steps == 2 * 64 * 6
    assert method.ledger.episodes == 2 * 64
    endless = store(scenarios=None, batch_size=16)
    seen = torch.cat([endless.collect()["state"]["stock"][:, 0, 0] for _ in range(8)])
    assert len(seen.unique()) == 128


def test_must_2_policies_are_feasible_and_gradients_flow_through_what_there_is(float64: None) -> None:
    """Of a warehouse: what is sent depends on what it has, also in the gradient."""
    reseed()
    with built("hdpo") as method:
        obs = method.world.observe(method.world.start_of(0, 1), torch.zeros(2, dtype=torch.int64))
        obs = obs.clone()
        obs[:, 0] = 4.0
        obs.requires_grad_()
        order = method.policy.orders(obs)
        assert (order[:, 1:].sum(-1) < 4.0).all()
        (slope,) = torch.autograd.grad(order[:, 1:].sum(), obs)
        assert (slope[:, 0] > 0.1).all()


def test_must_3_luck_to_come_is_not_seen(float64: None) -> None:
    """Scenarios that differ in what comes later get the same first orders; with `past` the last demands are seen."""
    method = store(lead=2)
    state = method.world.start_of(*range(8))
    other = {**state, "key": state["key"] + 1}
    seen = [method.world.observe(each, torch.zeros(8, dtype=torch.int64)) for each in (state, other)]
    assert torch.equal(*seen)
    rewards = [simulate(method.world, lambda obs: method.policy.orders(obs), each, 6) for each in (state, other)]
    assert not torch.equal(*rewards)


def test_must_4_evaluations_are_of_other_scenarios_after_a_burn_in_and_choose_what_is_kept() -> None:
    method = store()
    task: Any = make_task("inventory/store", 4, 0, evaluation=True, lead=1, horizon=8)
    scores = method.evaluate(task, 12)
    batch = Episodes(task, starts=range(12)).next(method.policy)
    assert scores["cost"] == pytest.approx(-batch["reward"][:, 4:].mean().item(), rel=1e-5)
    assert scores["return"] == pytest.approx(batch["reward"].sum(-1).mean().item(), rel=1e-5)
    assert scores["length"] == 8.0
    assert method.evaluate(task, 12) == scores
    train = method.world.start_of(*range(12))["stock"]
    assert not torch.equal(train, task.start_of(*range(12))["stock"])
    assert method.judged_by == Score("-cost")


def test_must_4_rounded_orders_are_whole() -> None:
    method = store()
    task: Any = make_task("inventory/store", 4, 0, evaluation=True, lead=1, horizon=8)
    bias = method.policy.net.trunk.layers[-1]
    with torch.no_grad():
        bias.weight.zero_()
        bias.bias.fill_(math.log(math.exp(5.4) - 1) - 1)  # orders of 5.4
    scores = method.evaluate(task, 12)
    costs = [-simulate(task, Level(order).float(), task.start_of(*range(12)), 8)[:, 4:].mean() for order in (5.4, 5.0)]
    assert [scores["cost"], scores["cost_rounded"]] == pytest.approx([cost.item() for cost in costs], rel=1e-4)


def test_must_5_a_policy_learns_at_all_from_where_it_begins() -> None:
    """With a lead time of 1 the optimum is 5.44."""
    method = store(periods=12, burn_in=6, eval_periods=40, eval_burn_in=20, lr=0.02, **{"network.sizes": (16, 16)})
    task = make_task("inventory/store", 4, 0, evaluation=True, lead=1, horizon=40)
    first = method.evaluate(task, 200)["cost"]
    for _ in range(120):
        method.update(method.collect())
    cost = method.evaluate(task, 200)["cost"]
    assert first > 10
    assert cost < 5.8


def test_what_comes_after_the_end_of_a_scenario_counts_nothing() -> None:
    """One row starts beside the goal and is over in the first period; the other one never arrives."""
    world = Toll(1, 0, False, "toll", wind=0.0)
    state = world.start_of(0, 1)
    state["goal"], state["place"] = torch.zeros(2, 2), torch.tensor([[0.1, 0.0], [1.0, 0.0]])
    rewards = simulate(world, lambda obs: torch.tensor([[0.0, 1.0]]).expand(2, 2), state, 4)
    expected = [[-math.hypot(start, 0.1 * time) for time in (1, 2, 3, 4)] for start in (0.1, 1.0)]
    expected[0][1:] = [0.0, 0.0, 0.0]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_any_differentiable_world_and_policy() -> None:
    class Smooth(Toll):
        differentiable = True

    world = Smooth(1, 0, False, "toll")
    from polopt.methods.theory.hdpo import HDPO
    from polopt.policies import Deterministic

    small: dict[str, Any] = {"scenarios": 8, "batch_size": 8, "periods": 5, "burn_in": 0}
    config = HDPO.Config(**small, eval_periods=5, eval_burn_in=0, policy=Deterministic())
    method = HDPO(config, world)
    before = [value.clone() for value in method.policy.parameters()]
    method.update(method.collect())
    assert not torch.equal(before[0], next(method.policy.parameters()))


def test_a_saved_policy_is_loaded_without_its_world(tmp_path: Any) -> None:
    small: dict[str, Any] = {"scenarios": 8, "batch_size": 8, "periods": 4, "burn_in": 0, "eval_periods": 4}
    small |= {"eval_burn_in": 0, "eval_episodes": 2, "loggers": (), "network.sizes": (4,)}
    api.train("hdpo", "inventory/store", steps=64, out=tmp_path / "run", **small)
    policy = api.load(tmp_path / "run")
    seen = np.array([3.0, 0.0, 1.0, 0.0], np.float32)
    expected = policy.orders(torch.as_tensor(seen).unsqueeze(0))[0].tolist()
    assert policy.predict(seen).tolist() == pytest.approx(expected)
    with pytest.raises(UsageError, match="needs a world with known gradients"):
        store().evaluate(make_task("point/regulation", 1, 0, evaluation=True), 2)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="needs a world with known gradients"):
        api.plan("hdpo", "Pendulum-v1", policy="deterministic", loggers=()).build()
    with pytest.raises(UsageError, match=r"periods 6 is more than the horizon of inventory/store: --task\.horizon 6"):
        store(task_options={"horizon": 5})
    for what, settings in (
        ("more than there are scenarios", {"batch_size": 65}),
        ("burn_in must leave some of the 6 periods", {"burn_in": 6}),
        ("eval_burn_in must leave some of the 8 eval_periods", {"eval_burn_in": 8}),
        ("has no effect where scenarios are simulated", {"envs": 2}),
        ("without memory", {"policy": "deterministic", "network.recurrent": "gru"}),
    ):
        with pytest.raises(UsageError, match=what):
            store(**settings)

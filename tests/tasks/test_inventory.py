"""Inventory networks: their periods in plain Python, their demands, least costs known from the literature, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.inventory.exact import optimal_cost
from polopt.tasks.inventory.supply import OUTSIDE, Supply, one_store, serial, supply_of, warehouse
from polopt.tasks.inventory.world import deliver

from .worlds import check_world

NAMES = ["inventory/store", "inventory/serial", "inventory/warehouse"]


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_promises_of_worlds(name: str) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=6)


def period(supply: Supply, stock: list[list[float]], order: list[float], demand: list[float]) -> tuple[Any, float]:
    """One period of one row: what there is afterwards, and its cost."""
    sent = list(order)
    for place in supply.suppliers:
        links = [link for link, start in enumerate(supply.source) if start == place]
        asked, here = sum(order[link] for link in links), max(stock[place][0], 0.0)
        if asked > here:
            for link in links:
                sent[link] = order[link] * here / asked
    after, cost = [[*row[1:], 0.0] for row in stock], 0.0
    for place, row in enumerate(stock):
        gone = sum(sent[link] for link, start in enumerate(supply.source) if start == place)
        left = row[0] - demand[place] - gone
        cost += supply.holding[place] * max(left, 0.0) + supply.underage[place] * max(-left, 0.0)
        after[place][0] += left if supply.backlog else max(left, 0.0)
    for link, place in enumerate(supply.target):
        after[place][supply.lead[link] - 1] += sent[link]
    return after, cost / len(supply.stores)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9))
def test_its_periods_are_those_of_plain_python(name: str, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            own = {"stores": 3, "instance": seed} if name == "inventory/warehouse" else {}
            world: Any = make_task(name, 4, seed, horizon=6, **own)
            world.reset()
            luck = torch.Generator().manual_seed(seed)
            most = torch.as_tensor(world.spec.action.high).double()
            for _ in range(6):
                stock = world.state["stock"].tolist()
                demand = world.demand(world.state, world.time).tolist()
                order = torch.rand(4, len(most), generator=luck, dtype=torch.float64) * most
                _, reward, terminated, _ = world.step({"action": order})
                assert not terminated.any()
                for row in range(4):
                    after, cost = period(world.supply, stock[row], order[row].tolist(), demand[row])
                    assert reward[row].item() == pytest.approx(-cost)
                    torch.testing.assert_close(world.state["stock"][row], torch.tensor(after))
        finally:
            torch.set_default_dtype(torch.float32)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.floats(-5, 10), st.floats(0, 5))
def test_no_place_sends_what_it_lacks(order: list[float], here: float, kept: float) -> None:
    supply = warehouse(2, 0)
    stock = torch.tensor([here, 1.0, 2.0], dtype=torch.float64)
    keep = torch.tensor([kept, 0.0, 0.0], dtype=torch.float64)
    sent = deliver(torch.tensor(order, dtype=torch.float64), stock, supply, keep)
    assert sent[0] == order[0]
    assert sent[1:].sum() <= max(here, 0.0) + 1e-9
    part = min(1.0, max(here, 0.0) / max(sum(order[1:]) + kept, 1e-8))
    torch.testing.assert_close(sent[1:], part * torch.tensor(order[1:], dtype=torch.float64))


def test_demands_have_the_distributions_they_say() -> None:
    store: Any = make_task("inventory/store", 40_000, 3)
    store.reset()
    asked = store.demand(store.state, store.time).flatten()
    assert torch.equal(asked, asked.round())
    for count in range(10):
        chance = math.exp(-5.0) * 5.0**count / math.factorial(count)
        assert (asked == count).float().mean().item() == pytest.approx(chance, abs=4 * math.sqrt(chance / 40_000))
    house: Any = make_task("inventory/warehouse", 40_000, 3, stores=3)
    house.reset()
    asked = house.demand(house.state, house.time)
    assert (asked[:, 0] == 0).all()
    mean, deviation = torch.tensor(house.supply.mean[1:]), torch.tensor(house.supply.deviation[1:])
    torch.testing.assert_close(asked[:, 1:].mean(0), mean, rtol=0.02, atol=0)
    torch.testing.assert_close(asked[:, 1:].std(0), deviation, rtol=0.03, atol=0)
    assert torch.corrcoef(asked[:, 1:].T)[0, 1].item() == pytest.approx(0.5, abs=0.03)
    later = house.demand(house.state, house.time + 1)
    assert abs(torch.corrcoef(torch.stack([asked[:, 1], later[:, 1]]))[0, 1].item()) < 0.03


def test_normal_demand_is_never_below_0_and_cut_there() -> None:
    """Of mean 1 and deviation 2, a part of Phi(-1/2) = 0.3085 is 0."""
    world: Any = make_task("inventory/serial", 20_000, 3)
    world.supply = replace(world.supply, mean=(0.0, 0.0, 0.0, 1.0))
    world.reset()
    asked = world.demand(world.state, world.time)[:, 3]
    assert (asked >= 0).all()
    assert (asked == 0).float().mean().item() == pytest.approx(0.3085, abs=0.014)


@pytest.mark.parametrize(("name", "stores"), [("inventory/store", [0]), ("inventory/serial", [3])])
def test_it_begins_with_up_to_a_period_of_demand_in_each_slot(name: str, stores: list[int]) -> None:
    """Uniform on [0, mean 5]: of deviation 5 / sqrt(12). Where nobody buys there is nothing."""
    world: Any = make_task(name, 1, 0)
    stock = world.start_of(*range(4000))["stock"]
    slots = stock[:, stores].flatten(0, 1)
    assert 0 <= slots.min() < 0.05
    assert 4.95 < slots.max() <= 5
    torch.testing.assert_close(slots.mean(0), torch.full((world.length,), 2.5), rtol=0, atol=0.1)
    torch.testing.assert_close(slots.std(0), torch.full((world.length,), 5 / 12**0.5), rtol=0, atol=0.06)
    assert stock.sum() == pytest.approx(slots.sum().item(), rel=1e-6)


def test_settings_are_those_of_the_released_code() -> None:
    chain = serial()
    assert (chain.lead, chain.holding, chain.underage[3]) == ((2, 4, 3, 4), (0.1, 0.2, 0.5, 1.0), 9.0)
    assert (chain.mean[3], chain.deviation[3], chain.backlog) == (5.0, 2.0, True)
    assert make_task("inventory/serial", 1, 0).spec.action.high.tolist() == [20.0] * 4  # 4 times the mean
    house = warehouse(4000, 0)
    assert (house.lead[0], house.holding[0], house.underage[0], house.backlog) == (3, 0.3, 0.0, False)
    assert set(house.lead[1:]) == {2, 3}
    mean, deviation = np.array(house.mean[1:]), np.array(house.deviation[1:])
    drawn = (mean, deviation / mean, np.array(house.holding[1:]), np.array(house.underage[1:]))
    for found, (low, high) in zip(drawn, ((2.5, 7.5), (0.25, 0.5), (0.7, 1.3), (6.3, 11.7)), strict=True):
        assert [found.min(), found.max()] == pytest.approx([low, high], abs=0.01 * (high - low))
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    few: Any = make_task("inventory/warehouse", 1, 0, stores=3)
    most = [4 * sum(few.supply.mean), *(4 * each for each in few.supply.mean[1:])]
    assert few.spec.action.high.tolist() == pytest.approx(most)


@pytest.mark.parametrize(
    ("lead", "costs"), [(1, (4.04, 5.44, 6.68, 7.84)), (2, (4.40, 6.09, 7.66, 9.11))], ids=["lead 1", "lead 2"]
)
def test_least_costs_are_those_of_the_literature(lead: int, costs: tuple[float, ...]) -> None:
    """Zipkin 2008, table of lost sales with Poisson demand of mean 5."""
    for underage, cost in zip((4.0, 9.0, 19.0, 39.0), costs, strict=True):
        assert optimal_cost(one_store(5.0, lead, 1.0, underage)) == pytest.approx(cost, abs=0.006)
    with pytest.raises(UsageError, match="exact costs are those of one store"):
        optimal_cost(one_store(5.0, 3, 1.0, 9.0))


def test_up_to_a_level_it_costs_little_more() -> None:
    world = make_task("inventory/store", 64, 0, lead=1)
    batch = scripted_episodes(world, "order-up-to", 6400)
    cost = -batch["reward"].view(-1, 100)[:, 30:].mean().item()
    assert 5.44 < cost < 6.2


def test_supply_networks_are_read_as_they_were_written() -> None:
    for supply in (one_store(5.0, 4, 1.0, 9.0), serial(), warehouse(3, 1)):
        assert supply_of(supply.described()) == supply
    assert (serial().depth, warehouse(3, 1).depth, one_store(5.0, 4, 1.0, 9.0).depth) == (3, 1, 0)
    assert serial().downstream(serial().mean) == [5.0] * 4
    assert warehouse(3, 1) != warehouse(3, 2)
    assert serial().source[0] == OUTSIDE


def test_recorded_demands(tmp_path: Any) -> None:
    table = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    path = tmp_path / "demands.npy"
    np.save(path, table)
    world: Any = make_task("inventory/warehouse", 3, 0, stores=3, demands=str(path), horizon=4, past=2)
    obs = world.reset(index=torch.tensor([0, 1, 2]))
    seen: list[Tensor] = []
    for time in range(4):
        expected = torch.tensor(table[[0, 1, 0], time])
        seen.append(expected)
        obs, *_ = world.step({"action": torch.zeros(3, 4)})
        last = obs.unflatten(-1, (4, -1))[:, 1:, -1]
        assert torch.equal(last, expected)
    assert torch.equal(obs.unflatten(-1, (4, -1))[:, 1:, -2], seen[-2])
    for what, change in (
        ("no file", {"demands": "nowhere.npy"}),
        ("has 4 periods", {"horizon": 5}),
        (r"must hold an array \[scenarios, periods, 2\]", {"stores": 2}),
    ):
        with pytest.raises(UsageError, match=what):
            make_task("inventory/warehouse", 1, 0, **({"stores": 3, "demands": str(path), "horizon": 4} | change))
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="is no NumPy array"):
        make_task("inventory/warehouse", 1, 0, stores=3, demands=str(path))
    np.save(path, -table)
    with pytest.raises(UsageError, match="at least 0"):
        make_task("inventory/warehouse", 1, 0, stores=3, demands=str(path), horizon=4)


def test_options_are_those_of_the_name() -> None:
    with pytest.raises(UsageError, match="has no option 'lead'"):
        make_task("inventory/serial", 1, 0, lead=3)
    with pytest.raises(UsageError, match="are above 0"):
        make_task("inventory/store", 1, 0, mean=0.0)

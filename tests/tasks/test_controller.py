"""The memory controller: its model against loops over designs, rewards by hand, and that it is a world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.controller import COUPLED, LATENCY, PARAMETERS, POWER, SIZES, MemoryController, model, reward_of

from .worlds import check_world


@pytest.mark.parametrize("name", ["memory-controller", "memory-controller/box"])
def test_it_is_a_world(name: str) -> None:
    def make(num: int, seed: int, evaluation: bool) -> MemoryController:
        return make_task(name, num, seed, evaluation=evaluation, parameters=4, horizon=5)  # type: ignore[return-value]

    check_world(make, steps=12)


def test_the_space_is_that_of_the_paper() -> None:
    assert SIZES == (4, 3, 3, 8, 2, 2, 4, 4, 3, 8)
    assert all(name in PARAMETERS for pair in COUPLED for name in pair)
    power, latency = model(3, 0.3)
    assert power.shape == latency.shape == SIZES
    assert power.numel() == 442_368
    for table, (low, high) in ((power, POWER), (latency, LATENCY)):
        assert (table.min().item(), table.max().item()) == pytest.approx((low, high))
        assert (table == table.min()).sum() == 1
    assert not torch.equal(model(4, 0.3)[0], power)
    assert abs(np.corrcoef(power.flatten(), latency.flatten())[0, 1]) < 0.9


def effects(table: torch.Tensor) -> torch.Tensor:
    """What is left of a table [4, 3, 3, 8] when the effects of single parameters are taken away."""
    left = table - table.mean()
    for dim in range(4):
        left = left - left.mean(tuple(each for each in range(4) if each != dim), keepdim=True)
    return left


def test_parameters_add_up_but_for_the_pairs() -> None:
    """Four parameters, of which (1, 3) is a pair: nothing is left without interaction, with it what the pair says."""
    for alone in model(0, 0.0, 4):
        torch.testing.assert_close(effects(alone), torch.zeros(4, 3, 3, 8, dtype=torch.float64))
        best = [alone.mean(tuple(each for each in range(4) if each != dim)).argmin() for dim in range(4)]
        assert alone[tuple(best)] == alone.min()
    for strength in (0.5, 2.0):
        for table in model(0, strength, 4):
            left = effects(table)
            pair = left.mean((0, 2), keepdim=True)
            torch.testing.assert_close(left, pair.expand_as(left))
            own = table.mean((1, 2, 3)) - table.mean()  # of one parameter, whose standard deviation is 1 before scaling
            assert (pair.square().mean() / own.square().mean()).sqrt().item() == pytest.approx(strength)
            assert pair.sum(1).abs().max() < 1e-12


def test_rewards_by_hand() -> None:
    power, latency = torch.tensor([1.5, 1.0, 2.0, 1.0001]), torch.tensor([0.3, 0.15, 0.1, 0.3])
    assert reward_of(power, latency, "power").tolist() == pytest.approx([2.0, 1000.0, 1.0, 1000.0])
    assert reward_of(power, latency, "latency").tolist() == pytest.approx([0.5, 2.0, 1000.0, 0.5])
    assert reward_of(power, latency, "both").tolist() == pytest.approx([1.0, 1000.0, 1000.0, 1000.0])  # 1e4 / 2, capped


@pytest.mark.parametrize("objective", ["latency", "power", "both"])
def test_what_a_design_leads_to(float64: None, objective: str) -> None:
    """Every design of three parameters, one by one: outcome, reward, and rank by counting."""
    designs = list(itertools.product(range(4), range(3), range(3)))
    world = make_task("memory-controller", len(designs), objective=objective, parameters=3, trace=5, horizon=2)
    assert torch.equal(world.reset(), torch.zeros(len(designs), 3))
    obs, reward, terminated, truncated = world.step({"action": torch.tensor(designs)})
    power, latency = (torch.stack([table[design] for design in designs]) for table in model(5, 0.3, 3))
    torch.testing.assert_close(obs, torch.stack([power * latency, power, latency], 1))
    torch.testing.assert_close(reward, reward_of(power, latency, objective))
    counted = torch.tensor([(reward <= each).double().mean() for each in reward])
    torch.testing.assert_close(world.facts["rank"], counted)
    assert reward[counted == 1].eq(1000).all()
    assert not terminated.any()
    assert not truncated.any()
    assert world.step({"action": torch.tensor(designs)})[3].all()


def test_boxes_are_cut_into_equal_bins() -> None:
    world = make_task("memory-controller/box", 1, parameters=4)
    assert isinstance(world, MemoryController)
    edges = torch.tensor([[-1.0, -1.0, -0.34, -1.0], [-0.51, -0.34, -0.33, -0.76], [1.0, 1.0, 1.0, 1.0]])
    assert world.design(edges).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [3, 2, 2, 7]]
    assert world.design(torch.tensor([[-0.49, 0.34, 5.0, 0.74]])).tolist() == [[1, 2, 2, 6]]
    fine = torch.linspace(-1, 1, 8001)[:-1].unsqueeze(1).expand(-1, 4)
    for column, size in zip(world.design(fine).T, (4, 3, 3, 8)):
        assert column.bincount().tolist() == pytest.approx([8000 / size] * size, abs=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objective": "energy"}, "objective is one of latency, power, both, not 'energy'"),
        ({"parameters": 11}, "parameters must be a whole number between 1 and 10, not 11"),
        ({"trace": -1}, "trace must be a whole number of at least 0, not -1"),
    ],
)
def test_wrong_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        make_task("memory-controller", 1, **options)

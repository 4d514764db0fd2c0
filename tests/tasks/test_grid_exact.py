"""Exact values of small grids against brute force: all sequences of actions, and recursion in plain Python."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.grid import Grid, Thing
from polopt.tasks.grid.exact import Exact

from .scalar_grid import ScalarGrid

KEYS = {"map": "S.K/G#D/..L", "step_reward": -0.125}
COINS = {"map": "CSC", "agents": 2, "things": {"C": Thing(reward=((1, 0.25), (0, 2)), taken=True)}, "moves": "stay"}
TURNS = {"map": ".C/S.", "moves": "turn", "step_reward": -0.0625}
MOVING = {"map": "S..T/....", "things": {"T": Thing(reward=1.0, taken=True, way="left")}, "step_reward": -0.0625}
TRIALS = {"map": "S.G", "things": {"G": Thing(reward=1.0, ends=1.0)}, "inner": 3}


@pytest.mark.parametrize(("options", "horizon"), [(KEYS, 6), (COINS, 3), (TURNS, 6), (MOVING, 5), (TRIALS, 6)], ids=str)
def test_the_optimum_is_the_best_of_all_sequences(options: dict[str, Any], horizon: int) -> None:
    agents = options.get("agents", 1)
    world: Any = make_task(Grid, horizon=horizon, finite=True, **options)
    each = [*itertools.product(range(world.actions), repeat=agents)]
    plans = torch.tensor([*itertools.product(each, repeat=horizon)])  # [all, H, V]
    rows: Any = make_task(Grid, len(plans), horizon=horizon, finite=True, **options)
    rows.reset()
    total, alive = torch.zeros(len(plans)), torch.ones(len(plans), dtype=torch.bool)
    state, time = rows.state, rows.time
    for step in range(horizon):
        state, reward, over, _ = rows.advance(state, time, plans[:, step])
        total += alive * reward
        alive &= ~over
        time = time + 1
    exact = Exact(world)
    policy, value = exact.optimal()
    assert value[0, 0].item() == pytest.approx(total.max().item(), abs=1e-5)
    best = torch.nn.functional.one_hot(policy, exact.next.shape[1]).double()
    assert torch.allclose(exact.value(best), value)
    uniform = torch.full_like(best, 1 / best.shape[-1])
    assert exact.value(uniform)[0, 0].item() == pytest.approx(total.mean().item(), abs=1e-5)


def recursion(grid: ScalarGrid, left: int, pick: Any) -> float:
    """The value of the best (`pick` is max) or of uniform actions in plain Python, all luck enumerated."""
    if not left:
        return 0.0
    world, values = grid.grid, []
    slips = [(-1, 1 - world.slip), *((action, world.slip / world.actions) for action in range(world.actions))]
    chances = [world.things[letter].ends for letter in world.letters]
    for action in range(world.actions):
        value = 0.0
        for slip, p in slips:
            for ends in itertools.product((True, False), repeat=len(chances)):
                weight = p
                for end, chance in zip(ends, chances, strict=True):
                    weight *= chance if end else 1 - chance
                if weight:
                    after = copy.deepcopy(grid, {id(world): world})
                    found = after.step([action], {"slip": [slip], "ends": ends})
                    value += weight * (
                        sum(found["rewards"]) + (0 if found["over"] else recursion(after, left - 1, pick))
                    )
        values.append(value)
    return pick(values)


def test_slips_and_chances_are_weighed() -> None:
    things = {"L": Thing(reward=-1.0, ends=0.25), "G": Thing(reward=1.0, ends=0.5)}
    world: Any = make_task(Grid, map="SLG/...", things=things, slip=0.3, horizon=2)
    world.reset()
    exact = Exact(world)
    start = ScalarGrid(world)
    assert exact.optimal()[1][0, 0].item() == pytest.approx(recursion(start, 2, max), abs=1e-6)
    uniform = torch.full(exact.next.shape[:2], 0.25)
    mean = recursion(start, 2, lambda values: sum(values) / 4)
    assert exact.value(uniform)[0, 0].item() == pytest.approx(mean, abs=1e-6)
    mdp = exact.mdp()  # the same by backward induction over a dense model
    assert mdp.optimal()[1][0, 0].item() == pytest.approx(exact.optimal()[1][0, 0].item(), abs=1e-9)
    half = exact.optimal(discount=0.5)[1]
    assert torch.equal(half[1], exact.optimal()[1][1])  # one decision is left
    assert (half[0] != exact.optimal()[1][0]).any()


def test_values_of_the_walk_to_a_goal_are_its_discounted_distance() -> None:
    world: Any = make_task("grid/doors", slip=0.0)
    exact = Exact(world)
    distance = {"A": 7, "B": 7, "C": 7, "D": 7}
    _, value = exact.optimal(discount=0.9)
    assert value[0, 0].item() == pytest.approx(0.9 ** (distance["A"] - 1))
    assert exact.states == len(exact.observations()) == (~world.walls).sum()


def test_levels_and_starts_have_values_of_their_own() -> None:
    world: Any = make_task(Grid, map="1x5", start=0, scatter="G", horizon=9)
    world.levels = {
        "places": torch.tensor([[1], [4]]),
        "pay": torch.tensor([[1.0], [3.0]]),
        "limit": torch.tensor([9, 4]),
    }
    values = [Exact(world, index).optimal(0.5)[1][0, 0].item() for index in range(3)]
    assert values == [1.0, 3 * 0.5**3, 1.0]
    world.levels["limit"] = torch.tensor([9, 3])
    assert Exact(world, 1).optimal()[1][0, 0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cover": 1}, "Grid has too many states: one for each set of cells that may be covered"),
        (
            {"things": {"C": Thing(taken=True, returns=1.0)}, "scatter": "C"},
            "Grid has no exact values: its things return to random cells",
        ),
        ({"slip": 0.1, "agents": 6}, "Grid has 15625 branches of luck in each step, which is too many"),
        ({"map": "9x9", "start": 0, "agents": 2}, "Grid has more than 50 states"),
    ],
)
def test_what_is_not_enumerated_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Exact(make_task(Grid, **options), limit=50)  # type: ignore[arg-type]


def test_a_policy_of_another_shape_is_refused() -> None:
    exact = Exact(make_task(Grid, map="SG", horizon=2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a policy here is \[2, 2, 4\], not \[2, 1, 3\]"):
        exact.value(torch.ones(1, 3))

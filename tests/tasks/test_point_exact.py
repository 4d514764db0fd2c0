"""Dynamic programming for points, beside closed forms and beside what its policy gets in the world."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.point import Point, Zone
from polopt.tasks.point.exact import Lattice


def test_a_straight_line_by_hand() -> None:
    """One axis: three steps of 0.25 lead from -0.75 into the goal; minus the distance is paid after each."""
    world: Any = make_task(Point, 1, dims=1, speed=0.25, goals=(0.0,), reach=0.01, horizon=5)
    lattice = Lattice(world, cells=9, actions=5)
    policy, value = lattice.optimal()
    assert lattice.at(value[0], torch.tensor([[-0.75], [0.5], [-0.625]])).tolist() == pytest.approx(
        [-0.75, -0.25, -0.5]
    )
    assert lattice.actions[policy[0, 0]].item() == 1.0
    _, value = lattice.optimal(discount=0.5)
    assert lattice.at(value[0], torch.tensor([[-0.75]])).item() == pytest.approx(-0.5 - 0.5 * 0.25)
    assert value[-1].abs().max() == 0


def test_one_step_has_four_equal_optima() -> None:
    lattice = Lattice(make_task("point/goals-once"), cells=5, actions=9)
    policy, value = lattice.optimal()
    assert lattice.at(value[0], torch.zeros(1, 2)).item() == pytest.approx(0.0)
    q = lattice.q(value[1])[policy.shape[1] // 2]
    assert int((q > -1e-6).sum()) == 4


def test_its_policy_gets_what_it_says_in_the_risky_world() -> None:
    world: Any = make_task("point/risky", 200, seed=1)
    lattice = Lattice(world, cells=21, actions=7)
    _, value = lattice.optimal()
    start = world.reset()
    promised = lattice.at(value[0], start).mean().item()
    total, alive, inside, visited = torch.zeros(200), torch.ones(200, dtype=torch.bool), 0, 0
    for step in range(30):
        action = lattice.best(value[step + 1], world.obs)
        _, reward, terminated, _ = world.step({"action": action})
        total, inside, visited = (
            total + alive * reward,
            inside + int((world.facts["inside"][:, 0] & alive).sum()),
            visited + int(alive.sum()),
        )
        alive = alive & ~terminated
        world.reset(terminated)
        if not alive.any():
            break
    assert not alive.any()
    assert total.mean().item() == pytest.approx(promised, abs=0.5)
    assert total.std().item() / 200**0.5 < 0.2  # the standard error of that mean
    assert 0.15 < inside / visited < 0.35


def test_noise_has_its_variance() -> None:
    """A squared distance after a step of noise costs its variance more."""
    for kind, noise, variance in (("normal", 0.1, 0.01), ("uniform", 0.1, 0.01 / 3)):
        options = {"noise": noise, "noise_kind": kind, "shaping": "square", "reach": 0.0, "horizon": 1}
        world: Any = make_task(Point, 1, **options)
        lattice = Lattice(world, cells=5, actions=3)
        assert lattice.optimal()[1][0, 12].item() == pytest.approx(-2 * variance, rel=1e-4)


def test_walls_divide_what_is_between() -> None:
    """Beside a wall only points on the same side count."""
    wall = (((0.1, -1.0), (0.15, 1.0)),)
    lattice = Lattice(make_task(Point, walls=wall, start=-0.5), cells=5, actions=3)
    number, weight = lattice.between(torch.tensor([[0.05, 0.25]], dtype=torch.float64))
    assert (lattice.places[number[0]] @ torch.tensor([1.0, 0.0]).double())[weight[0] > 0].tolist() == [0.0, 0.0]
    assert weight.sum().item() == pytest.approx(1.0)
    open_lattice = Lattice(make_task(Point), cells=5, actions=3)
    number, weight = open_lattice.between(torch.tensor([[0.05, 0.25]], dtype=torch.float64))
    assert (weight[0] @ lattice.places[number[0]]).tolist() == pytest.approx([0.05, 0.25])


def test_what_it_cannot_do() -> None:
    for options, sentence in (
        ({"moves": "forces"}, "has no lattice: that is of one reward"),
        ({"low": None, "high": None}, "has no lattice: that is of one reward"),
        (
            {"zones": Zone(center=0.0, radius=0.5, chance=0.5, ends=True)},
            "whether a zone ends an episode must not be luck",
        ),
        ({"dims": 4}, "along each axis is too large"),
    ):
        with pytest.raises(UsageError, match=sentence):
            Lattice(make_task(Point, 1, **options))
    assert math.isfinite(Lattice(make_task("point/lava"), cells=9, actions=3).optimal()[1][0, 0])

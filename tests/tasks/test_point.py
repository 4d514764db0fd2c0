"""The engine of points: its rules beside plain numpy, walls beside tiny steps, scripts, and what it refuses."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.point import Point, Script, Zone, walls
from polopt.tasks.point.named import NAMED
from polopt.tasks.point.scripts import on_route

from .worlds import check_world


@pytest.mark.parametrize("name", NAMED)
def test_every_named_world_keeps_the_promises(name: str) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=8)


BUSY: dict[str, Any] = {
    "dims": 3,
    "low": (-1.0, -2.0, -1.0),
    "high": 1.0,
    "moves": "forces",
    "damping": 0.8,
    "noise": 0.02,
    "walls": (((0.2, -2.0, -1.0), (0.3, 0.5, 1.0)),),
    "goals": ((0.9, 0.0, 0.0), (-0.9, 0.0, 0.0)),
    "one": True,
    "bonus": 2.0,
    "zones": (
        Zone(center=(-0.5, -0.5, 0.0), radius=0.4, chance=0.5, fade=1.0, reward=-3.0, cost=2.0),
        Zone(low=(-1.0, -2.0, -1.0), high=(1.0, -1.5, 1.0), ends=True),
    ),
    "effort": 0.1,
    "reward_noise": 0.5,
    "scale": 0.5,
    "obs": "time,place,velocity,goal",
    "horizon": 9,
}


@pytest.mark.parametrize("options", [BUSY, {**BUSY, "slide": True, "goals": "normal", "one": False}])
def test_so_do_busy_ones_in_float64(options: dict[str, Any], float64: None) -> None:
    check_world(lambda num, seed, evaluation: make_task(Point, num, seed, evaluation=evaluation, **options), steps=8)


def risky(place: np.ndarray, action: np.ndarray, noise: np.ndarray, chance: float) -> tuple[np.ndarray, float, bool]:
    """The rules of the official code of RiskyPointMass, in plain numbers."""
    away = math.hypot(*place)
    reward, square = -away - 0.1, float(((place - 0.5) ** 2).sum())
    if square <= 0.3**2 and chance < 0.1 * math.exp(-4 * square / 0.3**2):
        reward -= 10
    return np.clip(place + 0.1 * (np.clip(action, -1, 1) + noise), 0, 1), reward, away < 0.05


def test_risky_is_that_of_the_official_code(float64: None) -> None:
    world: Any = make_task("point/risky", 300, seed=4)
    world.reset()
    start = world.obs.numpy()
    assert ((start - 0.5) ** 2).sum(1).min() > 0.3**2
    assert start.min() >= 0.3
    place, struck, ended = start.copy(), 0, 0
    for step in range(40):
        wanted = torch.from_numpy(np.random.default_rng(step).normal(size=(300, 2)) - 0.4)
        luck = world.luck(world.state, world.time)
        assert float(luck["noise"].abs().max()) <= 0.002
        expected = [
            risky(place[row], wanted[row].numpy(), luck["noise"][row].numpy() / 0.1, luck["chance"][row, 0].item())
            for row in range(300)
        ]
        inside = torch.from_numpy(((place - 0.5) ** 2).sum(1) <= 0.3**2)
        obs, reward, terminated, truncated = world.step({"action": wanted})
        place = np.stack([one for one, _, _ in expected])
        assert np.allclose(obs.numpy(), place)
        assert np.allclose(reward.numpy(), [one for _, one, _ in expected])
        assert terminated.tolist() == [one for _, _, one in expected]
        assert torch.equal(world.facts["inside"][:, 0], inside)
        assert not truncated.any()
        struck, ended = struck + int((reward < -5).sum()), ended + int(terminated.sum())
        if terminated.any():
            place = world.reset(terminated).numpy().copy()
    assert struck > 10
    assert ended > 50


def test_zones_strike_as_often_as_they_say() -> None:
    world: Any = make_task("point/risky", 40_000, start=(0.62, 0.5))
    world.reset()
    _, reward, _, _ = world.step({"action": torch.zeros(40_000, 2)})
    assert (reward < -5).double().mean().item() == pytest.approx(0.1 * math.exp(-4 * 0.16), abs=0.004)
    world = make_task(
        Point, 10_000, zones={"low": 0.0, "high": 1.0, "chance": 0.25, "cost": 4.0, "ends": True}, ends=False
    )
    world.levels = {"start": torch.tensor([[0.5, 0.5], [-0.5, 0.5]])}
    world.reset()
    _, _, terminated, _ = world.step({"action": torch.zeros(10_000, 2)})
    cost, odd = world.facts["cost"], torch.arange(10_000) % 2 == 1
    assert not cost[odd].any()
    assert cost[~odd].mean().item() == pytest.approx(1.0, abs=0.12)
    assert torch.equal(terminated, cost > 0)


def test_rewards_by_hand() -> None:
    world: Any = make_task("point/goals", 3)
    world.levels = {"start": torch.tensor([[4.0, 1.0], [0.0, 0.0], [-4.5, 0.0]])}
    world.reset(index=torch.arange(3))
    moves = torch.tensor([[0.5, -2.0], [-1.0, 1.0], [1.0, 0.0]])
    _, reward, terminated, _ = world.step({"action": moves})
    expected = [-0.5 - 0.1 * 1.25 + 10, -math.hypot(4, 1) - 0.2, -1.5 - 0.1]
    assert reward.tolist() == pytest.approx(expected)
    assert terminated.tolist() == [True, False, False]
    assert world.facts["reached"][0].tolist() == [True, False, False, False]
    world = make_task("point/modes", 5)
    world.reset()
    moves = torch.tensor([[0.8, 0.7], [0.7, -0.8], [-0.8, 0.8], [-0.85, -0.75], [0.0, 0.0]])
    _, reward, terminated, _ = world.step({"action": moves})
    assert reward.tolist() == pytest.approx([2.0, 0.0, 0.0, 1.3, 0.0])
    assert terminated.all()
    world = make_task("point/front", 1)
    world.reset()
    world.step({"action": torch.tensor([[1.0, 0.5]])})
    squares = [0.293**2 + 0.207**2, 1.707**2 + 1.207**2]
    assert world.facts["rewards"][0].tolist() == pytest.approx([math.exp(-square) for square in squares])
    assert world.spec.objectives == ("goal 0", "goal 1")
    world = make_task("point/robot", 1)
    world.reset()
    obs, reward, _, _ = world.step({"action": torch.tensor([[1.0, -0.5]])})
    assert obs[0].tolist() == pytest.approx([0.52, 0.49, 0.02])
    assert reward.item() == pytest.approx(1 - 0.5 * 1.25)


def test_regulation_costs_what_a_saturated_controller_must() -> None:
    """A coordinate begins sqrt(2) N(0, 1) away and comes 0.3 nearer with each step: E[(|d| - c)+^2] in closed form."""
    normal, total = NormalDist(), 0.0
    for step in range(1, 17):
        edge = 0.3 * step / math.sqrt(2)
        total += 4 * 2 * 2 * ((1 + edge**2) * normal.cdf(-edge) - edge * normal.pdf(edge))
    world: Any = make_task("point/regulation", 20_000, seed=3, noise=0.0, reward_noise=0.0, scale=1.0)
    world.reset()
    cost = -sum(
        world.step({"action": world.behave("expert", world.state, world.time)})[1].double().mean().item()
        for _ in range(16)
    )
    assert cost == pytest.approx(total, rel=0.03)
    noisy: Any = make_task("point/regulation", 20_000, seed=3)
    noisy.reset()
    plain: Any = make_task("point/regulation", 20_000, seed=3, reward_noise=0.0)
    plain.reset()
    action = torch.zeros(20_000, 4)
    noise = noisy.step({"action": action})[1] - plain.step({"action": action})[1]
    assert noise.std().item() == pytest.approx(0.2, abs=0.005)
    assert abs(noise.mean().item()) < 0.005


def test_forces_and_bounds_by_hand() -> None:
    world: Any = make_task(Point, 1, moves="forces", damping=0.5, speed=0.4, start=(0.0, 0.9), obs="place,velocity")
    world.reset()
    obs = world.step({"action": torch.tensor([[1.0, 1.0]])})[0]
    assert obs[0].tolist() == pytest.approx([0.4, 1.0, 0.4, 0.0])  # the bound stopped the second axis
    obs = world.step({"action": torch.tensor([[0.5, -1.0]])})[0]
    assert obs[0].tolist() == pytest.approx([0.8, 0.6, 0.4, -0.4])


boxes = st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(boxes, st.tuples(*[st.floats(-1, 1)] * 4))
def test_walls_stop_where_tiny_steps_would(drawn: list[tuple[float, ...]], way: tuple[float, ...]) -> None:
    boxes = [([min(a, b), min(c, d)], [max(a, b), max(c, d)]) for a, b, c, d in drawn]
    low, high = (torch.tensor([box[side] for box in boxes], dtype=torch.float64) for side in (0, 1))
    place, move = torch.tensor([way[:2]], dtype=torch.float64), torch.tensor([way[2:]], dtype=torch.float64)
    if walls.inside(place, low, high):
        return
    fine = place + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * move
    met = ((fine.unsqueeze(1) >= low) & (fine.unsqueeze(1) <= high)).all(-1).any(-1)
    share = walls.reach(place, move, low, high).item()
    length = float(move.norm())
    if met.any():
        assert share * length <= met.nonzero()[0].item() / 2000 * length + 1e-9
    assert not walls.inside(place + share * move, low + walls.GAP, high - walls.GAP)
    thin = bool((high - low).amin() < length / 1000)  # which tiny steps pass over
    if not met.any() and not thin and share < 1:  # a corner between two tiny steps, or a wall just behind the end
        near = place + (share + 2 * walls.GAP / max(length, walls.GAP)) * move
        assert walls.inside(near, low - 1e-3, high + 1e-3)


def test_walls_slide_or_stop() -> None:
    low, high = torch.tensor([[0.0, -1.0]]), torch.tensor([[0.1, 1.0]])
    place, move = (
        torch.tensor([[-0.2, 0.0], [0.3, 0.0], [-0.2, 0.0]]),
        torch.tensor([[0.4, 0.2], [0.4, 0.2], [0.0, 0.2]]),
    )
    stop = walls.moved(place, move, low, high, slide=False)
    assert stop.flatten().tolist() == pytest.approx([0.0, 0.1, 0.7, 0.2, -0.2, 0.2], abs=2e-4)
    assert stop[0, 0] < 0
    slide = walls.moved(place, move, low, high, slide=True)
    assert slide.flatten().tolist() == pytest.approx([0.0, 0.2, 0.7, 0.2, -0.2, 0.2], abs=2e-4)
    away = walls.moved(stop[:1], torch.tensor([[-0.1, 0.0]]), low, high, slide=False)
    assert away[0, 0].item() == pytest.approx(-0.1, abs=2e-4)
    world: Any = make_task(Point, 500, walls="#.#/.#./...", low=0.0, high=3.0, goals=(1.5, 0.5))
    start = world.reset()
    corners = [(0.0, 2.0), (2.0, 2.0), (1.0, 1.0)]
    for corner in corners:
        at = start - torch.tensor(corner)
        assert not ((at > 0) & (at < 1)).all(1).any()
    assert len(world.walls[0]) == 3


def finished(world: Any, behavior: str, decisions: int = 4000) -> tuple[float, float, float]:
    """Share of the episodes of a script that end at a goal, their mean return and their mean length."""
    data = scripted_episodes(world, behavior, decisions)
    over = data["terminated"] | data["truncated"]
    reached = data["reached"].any(-1)[over].double().mean().item()
    return reached, (data["reward"].sum() / over.sum()).item(), len(data) / int(over.sum())


def test_scripts_go_where_they_should() -> None:
    corridor = make_task("point/corridor", 100)
    assert finished(corridor, "expert")[0] == 1.0
    assert finished(corridor, "noisy")[0] > 0.95
    assert finished(corridor, "up")[0] == finished(corridor, "down")[0] == 0.0
    lava = make_task("point/lava", 100)
    safe, risky = finished(lava, "expert"), finished(lava, "risky")
    assert safe[1] > risky[1] + 1
    data = scripted_episodes(lava, "risky", 2000)
    assert torch.equal(data["cost"] > 0, data["inside"][:, 0])
    assert data["cost"].sum() > 100
    assert scripted_episodes(lava, "expert", 2000)["cost"].sum() == 0
    goals = make_task("point/goals", 400)
    assert finished(goals, "any") == pytest.approx((1.0, 10 - 4 - 3 - 2 - 1 - 0.4, 4.0), abs=0.1)
    data = scripted_episodes(goals, "any", 8000)
    shares = data["reached"][data["terminated"]].double().mean(0)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.04)
    navigation = make_task("point/navigation", 100)
    best, flawed, random = (finished(navigation, name)[1] for name in ("expert", "flawed", "random"))
    assert best > flawed + 5 > random + 30
    grid: Any = make_task("point/grid", 1)
    grid.levels = {"start": torch.tensor([[0.0, 0.0]])}
    assert len(scripted_episodes(grid, "expert", 5)) == 5  # one trajectory of five steps


def test_flaws_of_scripts() -> None:
    scripts = {
        "slow": Script(pace=0.5),
        "aside": {"miss": (0.0, 0.3)},
        "drifted": Script(drift=0.5),
        "jittery": Script(jitter=0.25),
        "astray": Script(stray=0.25),
        "turning": Script(to="random", hold=3),
        "straight": Script(to="random", hold=0),
    }
    options = {"start": (-0.8, 0.0), "goals": (0.8, 0.0), "scripts": scripts, "speed": 0.02}
    world: Any = make_task(Point, 4000, **options)
    world.reset()
    acts = {name: [world.behave(name, world.state, world.time + step) for step in range(4)] for name in scripts}
    assert acts["slow"][0][0].tolist() == pytest.approx([0.5, 0.0])
    assert acts["aside"][0][0].tolist() == [1.0, 1.0]
    assert torch.equal(acts["drifted"][0], acts["drifted"][3])
    assert 0.3 < (acts["drifted"][0][:, 1] > 0).double().mean() < 0.7
    noise = acts["jittery"][1][:, 1]
    assert noise.std().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(noise, acts["jittery"][2][:, 1])
    strays = (acts["astray"][0] != torch.tensor([1.0, 0.0])).any(-1)
    assert strays.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(acts["turning"][0], acts["turning"][2])
    assert not torch.equal(acts["turning"][2], acts["turning"][3])
    assert torch.equal(acts["straight"][0], acts["straight"][3])
    forced: Any = make_task(Point, 50, moves="forces", speed=0.02, goals=(0.5, 0.5), ends=False, horizon=200)
    forced.reset()
    for _ in range(200):
        obs = forced.step({"action": forced.behave("expert", forced.state, forced.time)})[0]
    assert (obs[:, :2] - 0.5).norm(dim=-1).max() < 0.02


def test_routes_by_hand() -> None:
    route = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    place = torch.tensor([[-1.0, 0.5], [0.5, 0.1], [0.95, 0.0], [1.0, 0.0], [2.0, 0.9]])
    found = on_route(route, place, speed=0.1)
    assert found.flatten().tolist() == pytest.approx([0, 0, 0.6, 0, 1.0, 0, 1.0, 0.2, 1.0, 0.9])


def test_levels_and_goals_that_are_drawn() -> None:
    world: Any = make_task(Point, 4, goals="uniform")
    assert world.spec.obs.shape == (4,)
    world.levels = {"start": torch.tensor([[0.5, 0.5], [0.0, 0.0]]), "goal": torch.tensor([[0.1, 0.2]])}
    assert world.reset(index=torch.arange(4))[:2].flatten().tolist() == pytest.approx(
        [0.5, 0.5, 0.1, 0.2, 0, 0, 0.1, 0.2]
    )
    one: Any = make_task(Point, 3000, goals=((0.5, 0.0), (0.0, 0.5)), one=True, bonus=3.0, start=0.0)
    first = one.reset()[:, 2]
    assert first.unique().tolist() == [0.0, 0.5]
    assert (first > 0).double().mean().item() == pytest.approx(0.5, abs=0.04)
    one.levels = {"start": torch.tensor([[0.45, 0.0]])}
    one.reset()
    _, reward, terminated, _ = one.step({"action": torch.zeros(3000, 2)})
    assert torch.equal(terminated, one.obs[:, 2] > 0)
    assert reward[terminated].unique().tolist() == pytest.approx([3.0 - 0.05])
    typed: Any = make_task("point", 1, goals="0.5,0/0,-0.5", start="0.1")
    assert typed.goals.places.tolist() == [[0.5, 0.0], [0.0, -0.5]]


REFUSED = [
    ({"dims": 0}, "dims must be a whole number of at least 1, not 0"),
    ({"low": 1.0}, r"the box of low and high is upside down: from \[1.0, 1.0\] to \[1.0, 1.0\]"),
    ({"low": None}, "give both, or None for both"),
    ({"moves": "jumps"}, "moves is one of steps, forces, not 'jumps'"),
    ({"damping": 0.5}, "damping is of a velocity, which only a point that moves by forces has"),
    ({"speed": 0.0}, "speed must be above 0"),
    ({"noise": -1.0}, "noise must be at least 0, not -1.0"),
    ({"noise_kind": "cauchy"}, "noise_kind is one of uniform, normal, not 'cauchy'"),
    ({"walls": ((0.0,),)}, r"a wall is a pair of corners \(low, high\)"),
    ({"walls": "#?#"}, "a map of walls has # and . only, not '?'"),
    ({"walls": "#.#", "dims": 1}, "a map is of 2 dimensions, not of 1"),
    ({"start": (0.0, 0.0, 0.0)}, r"start is a place of 2 numbers"),
    ({"start": "here"}, "start is made of numbers, not of 'here'"),
    ({"start": 2.0}, "are not all within low and high"),
    ({"start": 0.0, "walls": (((-1, -1), (1, 1)),)}, r"the start \[0.0, 0.0\] is in a wall"),
    ({"goals": "uniform", "low": None, "high": None}, "goals cannot be uniform without bounds"),
    ({"goals": "normal", "one": True}, "goals that are normal are one each: leave out one"),
    ({"goals": (), "one": True}, "one goal is to be drawn, and there are none"),
    ({"goals": (), "bonus": 1.0}, "there are no goals, which could pay a bonus"),
    ({"bonus": (1.0, 2.0)}, "bonus is a number, or one for each of 1 goals"),
    ({"shaping": "none", "objectives": True}, "objectives are goals, fixed ones, that pay for their distance"),
    ({"zones": ({"center": 0.0},)}, "zone 0 is a ball, with center and radius, or a box, with low and high"),
    ({"zones": ({"center": 0.0, "radius": 0.0},)}, "zone 0 has no width"),
    ({"zones": ({"radios": 0.1},)}, "zone 0 has no 'radios'; did you mean 'radius'"),
    ({"zones": (Zone(center=0.0, radius=0.1, chance=2.0),)}, "'chance' of zone 0 is a probability"),
    ({"scripts": {"a": {"to": "home"}}}, "'to' of the script a is one of nearest, any, random, not 'home'"),
    ({"scripts": {"a": Script(to="random", drift=0.1)}}, "the script a goes nowhere, which it could miss"),
    ({"scripts": {"a": Script(route=((0, 0), (0, 0)))}}, "has the same place twice in a row"),
    ({"obs": "plaice"}, "a point sees place, velocity, goal, time, not 'plaice'; did you mean 'place'"),
    ({"obs": "place,velocity"}, "has no velocity: it moves by steps, which it could see"),
    ({"obs": "goal"}, "has no goal that is drawn at the start, which it could see"),
    ({"obs": "place,place"}, "a point sees each part once"),
    ({"judged": "later"}, "judged is one of after, before, not 'later'"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_what_it_refuses_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        make_task(Point, 1, **options)
    assert "\n" not in str(caught.value)


def test_names_behaviors_and_levels_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="there is no task 'point/riski'; did you mean 'point/risky'"):
        make_task("point/riski")
    robot: Any = make_task("point/robot")
    assert robot.behaviors == ("walk", "random")  # the others go to a goal
    with pytest.raises(UsageError, match="has no behavior 'expert'"):
        robot.scripted("expert")
    for levels, sentence in (
        ({"goal": torch.zeros(1, 2)}, "has no level 'goal': it is the start, or a goal that is drawn"),
        ({"start": torch.zeros(2)}, r"the level 'start' of point/robot is \[L, 2\], not \[2\]"),
    ):
        robot.levels = levels
        with pytest.raises(UsageError, match=sentence):
            robot.reset()

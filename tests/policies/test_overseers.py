"""Who watches a learner: people and programs row by row, scripts by value and by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical, SquashedGaussian
from polopt.policies.overseeing import Asked as AskedConfig
from polopt.policies.overseeing import ByChance as ByChanceConfig
from polopt.policies.overseeing import ByValue as ByValueConfig
from polopt.policies.overseers import Asked, ByChance, ByValue
from polopt.tasks import make_task
from tests.policies.lines import Line

NETWORK = Network((8,))


def world_and_actor(num: int = 6):
    world = Line(num, seed=3)
    world.reset()
    return world, SquashedGaussian().build(world.spec, NETWORK)


def test_who_is_asked_sees_one_row_in_the_environments_units():
    _, actor = world_and_actor(3)
    given = []

    def ask(obs, action):
        given.append((obs, action))
        return None if obs[0] < 1.0 else np.array([-2.0])

    obs = torch.tensor([[0.5], [2.0], [1.5]])
    wants, instead, mind = Asked(actor, ask).watch(obs, torch.tensor([[0.25], [0.5], [-1.0]]), None)
    assert wants.tolist() == [False, True, True]
    assert instead.flatten().tolist() == pytest.approx(
        [0.25, -1.0, -1.0]
    )  # bounds of 2 are 1 as the learner stores them
    assert mind == {}
    assert [seen.item() for seen, _ in given] == [0.5, 2.0, 1.5]
    assert [action.item() for _, action in given] == pytest.approx([0.5, 1.0, -2.0])
    assert all(action.shape == (1,) and action.dtype == np.float32 for _, action in given)
    with pytest.raises(UsageError, match=r"None or an action of Box\(-2.0, 2.0, \(1,\), float32\), not 3"):
        Asked(actor, lambda obs, action: 3).watch(obs, obs, None)
    with pytest.raises(UsageError, match="not 'left'"):
        Asked(actor, lambda obs, action: "left").watch(obs, obs, None)


def test_who_is_asked_about_discrete_actions_counts_as_the_space_does():
    spec = Spec(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3, start=5), "a toy")
    actor = Categorical().build(spec, NETWORK)
    seen = []

    def ask(obs, action):
        seen.append(int(action))
        return 7 if action == 5 else None

    wants, instead, _ = Asked(actor, ask).watch(torch.zeros(2, 2), torch.tensor([0, 1]), None)
    assert seen == [5, 6]
    assert (wants.tolist(), instead.tolist()) == ([True, False], [2, 1])


def test_chance_takes_over_at_its_rate_and_does_what_the_expert_does():
    world, actor = world_and_actor(2_000)
    overseer = ByChance(actor, world, "away", 0.3)
    torch.manual_seed(0)
    wants, instead, _ = overseer.watch(world.obs, torch.zeros(2_000, 1), None)
    assert float(wants.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert instead.equal(world.state["place"].sign().unsqueeze(-1) / 2)  # of bounds of 2


def test_values_look_ahead_as_the_reference_goes():
    """The discounted rewards of two decisions by hand, for the reference's action and for another one."""
    world, actor = world_and_actor(4)
    overseer = ByValue(actor, world, "away", "home", margin=0.0, ahead=3, discount=0.5, mistakes=0.0)
    place = torch.tensor([3.0, 0.5, -2.0, 0.0])
    world.state = {"place": place}
    actions = torch.tensor([[1.0], [0.0], [1.0], [-1.0]])

    def by_hand(x: float, action: float) -> float:
        total = 0.0
        for step in range(3):
            x = x + action
            total -= 0.5**step * abs(x)
            action = -max(-1.0, min(1.0, x))
        return total

    home = world.behave("home", world.state, world.time)
    found = overseer.values(torch.cat([home, actions]))
    expected = [by_hand(x, a) for both in (home, actions) for x, a in zip(place.tolist(), both.flatten().tolist())]
    assert found.tolist() == pytest.approx(expected)
    before = world.state["place"].clone()
    wants, instead, _ = overseer.watch(world.obs, actions / 2, None)
    assert wants.tolist() == [a > b for a, b in zip(expected[:4], expected[4:])]
    assert instead.equal(place.sign().unsqueeze(-1) / 2)
    assert world.state["place"].equal(before)
    assert world.time.tolist() == [0] * 4


def test_the_margin_and_mistakes():
    world, actor = world_and_actor(4_000)
    world.state = {"place": torch.full((4_000,), 2.0)}
    action = torch.cat(
        [torch.full((2_000, 1), -0.5), torch.full((2_000, 1), 0.25)]
    )  # the reference's, and 1.5 worse at once
    for margin, right in ((0.0, True), (1.49, True), (1.51, False)):
        overseer = ByValue(actor, world, "home", "home", margin=margin, ahead=1, discount=1.0, mistakes=0.0)
        wants, _, _ = overseer.watch(world.obs, action, None)
        assert not wants[:2_000].any()
        assert wants[2_000:].all() == right == wants[2_000:].any()
    torch.manual_seed(0)
    wrong = ByValue(actor, world, "home", "home", margin=0.0, ahead=1, discount=1.0, mistakes=0.1)
    wants, _, _ = wrong.watch(world.obs, action, None)
    assert float(wants[:2_000].float().mean()) == pytest.approx(0.1, abs=0.03)
    assert float(wants[2_000:].float().mean()) == pytest.approx(0.9, abs=0.03)


def test_an_end_pays_nothing_more():
    world, actor = world_and_actor(1)
    world.state = {"place": torch.tensor([9.5])}
    overseer = ByValue(actor, world, "home", "home", margin=0.0, ahead=5, discount=1.0, mistakes=0.0)
    assert overseer.values(torch.ones(1, 1)).tolist() == [-10.5]


def test_what_cannot_be_watched_is_said_in_one_sentence():
    world, actor = world_and_actor(1)
    with pytest.raises(UsageError, match="line has no behavior 'hom'; did you mean 'home'"):
        ByChanceConfig(expert="hom").build(actor, world, 0.9)
    pendulum = make_task("Pendulum-v1")
    with pytest.raises(
        UsageError, match="Pendulum-v1 has no scripted behavior to take over: ask an overseer of your own"
    ):
        ByValueConfig().build(actor, pendulum, 0.9)
    with pytest.raises(UsageError, match="--overseer module:function"):
        AskedConfig().build(actor, pendulum, 0.9)
    assert AskedConfig.from_value(print) == AskedConfig(ask=print)
    assert AskedConfig.from_value(3) is None


def test_who_comes_late_judges_what_was_done_before():
    """The decision before this one, by what it was worth where it was taken; nothing at the beginning of an episode."""
    world, actor = world_and_actor(3)
    late = ByValue(actor, world, "home", "home", margin=0.5, ahead=1, discount=1.0, mistakes=0.0, late=True)
    world.state = {"place": torch.tensor([2.0, 2.0, 2.0])}
    good, bad = torch.full((1,), -0.5), torch.full((1,), 0.25)  # of bounds of 2; the latter is 1.5 worse at once
    wants, _, mind = late.watch(world.obs, torch.stack([bad, good, bad]), None)
    assert not wants.any()
    world.state = {"place": torch.tensor([2.5, 1.0, 2.5])}
    mind = {name: value * torch.tensor([1, 1, 0]) for name, value in mind.items()}  # row 2 begins anew
    wants, instead, mind = late.watch(world.obs, torch.stack([good, bad, good]), mind)
    assert wants.tolist() == [True, False, False]
    assert instead.flatten().tolist() == [-0.5] * 3
    assert late.watch(world.obs, torch.stack([good] * 3), mind)[0].tolist() == [False, True, False]

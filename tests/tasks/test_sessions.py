"""Sessions: their rules in plain Python, exact values, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.sessions import Sessions

from .worlds import check_world


@pytest.mark.parametrize("name", ["sessions", "sessions/groups"])
def test_sessions_keep_the_promises_of_worlds(name: str) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation))


def test_the_rules(float64: None) -> None:
    """What is sure of each decision, and how often what is not."""
    options: Any = {"fatigues": 2, "sides": 1, "favored": 3, "side_rate": 0.9, "leave": 0.25, "tail": 0.0}
    world: Any = Sessions(40_000, 3, kinds=4, groups=2, spread=10.0, **options)
    obs = world.reset()
    assert obs.unique().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]  # 2 groups x 4 interests, not fatigued
    group, interest = obs // 8, obs // 2 % 4
    action = torch.arange(40_000) % 4
    after, reward, terminated, truncated = world.step({"action": action})
    assert torch.equal(after // 8, group)
    torch.testing.assert_close(reward, torch.tensor([1.0, 10.0])[group] * world.watch[interest, action])
    rewards = world.facts["rewards"]
    torch.testing.assert_close(rewards[:, 0], reward)
    for kind in range(4):
        assert float(rewards[action == kind, 1].mean()) == pytest.approx(float(world.side[0, kind]), abs=0.02)
    assert sorted(value > 0.1 for value in world.side[0].tolist()) == [False, True, True, True]
    own, moved = action == interest, after // 2 % 4 != interest
    assert float(moved[~own].double().mean()) == pytest.approx(0.3, abs=0.01)
    assert not moved[own].any()
    tired = after % 2 == 1
    assert float(tired[own].double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(tired[~own].double().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(terminated[~tired].double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(terminated[tired].double().mean()) == pytest.approx(0.5, abs=0.03)
    assert not truncated.any()


@pytest.mark.parametrize("options", [{}, {"groups": 2, "spread": 4.0, "kinds": 5, "sides": 1}])
def test_exact_values_are_those_that_are_played(options: Any, float64: None) -> None:
    world: Any = Sessions(4_000, 1, leave=0.1, side_rate=0.5, **options)
    states, kinds = int(world.spec.obs.n), world.kinds
    policy = torch.softmax(torch.randn(states, kinds, generator=torch.Generator().manual_seed(1)), -1)
    transition, _, start = world.model()
    ends = 1 - transition.sum(-1)
    assert float(ends[0, 0]) == pytest.approx(0.15)  # of the interest's own kind: half of the users tire, then leave
    assert float(ends.min()) >= 0.1 - 1e-12
    assert float(start.sum()) == pytest.approx(1.0)
    draw, obs, alive, found = torch.Generator().manual_seed(2), world.reset(), torch.ones(4_000), []
    for time in range(40):
        action = torch.multinomial(policy[obs], 1, generator=draw).squeeze(1)
        obs, _, terminated, _ = world.step({"action": action})
        found.append(0.9**time * alive.unsqueeze(1) * world.facts["rewards"])
        alive = alive * ~terminated
        obs = world.reset(terminated)
    total = torch.stack(found).sum(0)
    exact, error = world.value(policy, 0.9), total.std(0) / 4_000**0.5
    assert ((total.mean(0) - exact).abs() < 4 * error + 0.01 * exact).all()
    torch.testing.assert_close(world.value(torch.stack([policy, policy]), 0.9)[1], exact)  # to rounding of LAPACK


def test_more_of_an_interest_tires_and_other_items_refresh(float64: None) -> None:
    world: Any = Sessions(4_000, 0, leave=0.0)
    obs = world.reset()
    for _ in range(30):
        obs = world.step({"action": obs // 3})[0]  # always the interest
    assert (obs % 3 == 2).all()
    obs = world.step({"action": (obs // 3 + 1) % 10})[0]
    assert float((obs % 3 == 1).double().mean()) == pytest.approx(0.1, abs=0.02)
    assert not (obs % 3 == 0).any()


def test_a_response_belongs_to_kinds_that_are_watched_less() -> None:
    dull, alike = (Sessions(dull=dull) for dull in (0.5, 1.0))
    favored = dull.side.argmax(0)[(dull.side > 0.005).any(0)]
    assert sorted(favored.tolist()) == [0, 0, 1, 1]
    ratio = (dull.watch - 0.4 * torch.eye(10)) / (alike.watch - 0.4 * torch.eye(10))
    assert sorted(ratio.mean(0).tolist()) == pytest.approx([0.5] * 4 + [1.0] * 6)


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="4 responses that favor 3 kinds each need 12 kinds"):
        Sessions(sides=4, favored=3)
    with pytest.raises(UsageError, match="leave doubles with each degree of fatigue"):
        Sessions(leave=0.5)
    with pytest.raises(UsageError, match="tail is at least 0, and spread at least 1"):
        Sessions(spread=0.5)
    with pytest.raises(UsageError, match="dull is a probability"):
        Sessions(dull=2.0)

"""The feed: its rules in plain Python, what leaves users, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.tasks.feed import Feed

from .worlds import check_world


def test_the_feed_keeps_the_promises_of_worlds() -> None:
    check_world(lambda num, seed, evaluation: make_task("feed", num, seed, evaluation=evaluation))


def played(world: Feed, steps: int) -> tuple[Any, ...]:
    """Observations before, actions, rewards, parts and ends [steps, N] of random actions; nobody begins anew."""
    generator, found = torch.Generator().manual_seed(1), []
    obs = world.reset()
    for _ in range(steps):
        action = torch.randint(2, (world.num,), generator=generator)
        after, reward, terminated, _ = world.step({"action": action})
        found.append((obs["group"], obs["request"], action, reward, world.facts["rewards"], terminated))
        obs = after
    return tuple(map(torch.stack, zip(*found)))


def test_the_rules(float64: None) -> None:
    """Without luck of times and leaving, all that can be seen follows from the actions and the appeal."""
    world = Feed(500, 3, groups=3, interest=4.0, tail=0.0, leave=0.0, skip=6.0, skip_cost=2.0, displaced=0.25)
    group, request, action, reward, parts, terminated = played(world, 6)
    assert group[0].unique().tolist() == [0, 1, 2]
    assert (group == group[0]).all()
    assert not terminated.any()
    interest = torch.tensor([4.0, 40.0, 400.0])[group]
    live = action * interest * (request[..., 0] - 0.5).exp()
    torch.testing.assert_close(parts[..., 1], live)
    video, watched, slots, fatigue = parts[..., 0] - live, torch.full((500,), 60.0), torch.ones(500), torch.zeros(500)
    for time in range(6):  # what is seen is of what was
        torch.testing.assert_close(request[time, :, 1], fatigue)
        torch.testing.assert_close(60 * request[time, :, 2].exp(), watched / slots)
        torch.testing.assert_close(parts[time, :, 2], action[time] * 0.25 * watched / slots)
        fatigue = 0.8 * fatigue + 0.2 * action[time]
        watched = watched + torch.where(action[time] == 0, video[time], 0.0)
        slots = slots + (action[time] == 0)
    skipped = (action == 1) & (live < 6.0)
    assert 0 < int(skipped.sum()) < int(action.sum())
    assert torch.equal(parts[..., 3], skipped.double())
    torch.testing.assert_close(reward, live - parts[..., 2] - 2.0 * skipped)
    torch.testing.assert_close(reward, parts @ torch.tensor(world.spec.info["weights"]))


def test_an_insertion_that_displaces_more_than_it_brings_has_a_negative_reward(float64: None) -> None:
    world = Feed(2_000, 1)
    _, _, action, reward, parts, _ = played(world, 1)
    loses = (action == 1) & (parts[..., 1] < parts[..., 2])
    assert loses.any()
    assert (reward[loses] < 0).all()
    assert (reward[action == 0] == 0).all()


def test_with_the_weight_of_videos_nothing_is_charged_twice(float64: None) -> None:
    world = Feed(2_000, 1, video_weight=0.5, skip_cost=0.0, leave=0.0)
    *_, reward, parts, _ = played(world, 2)
    torch.testing.assert_close(reward, parts[..., 1] + 0.5 * (parts[..., 0] - parts[..., 1]))


def test_times_have_their_means_and_a_heavy_tail(float64: None) -> None:
    world = Feed(60_000, 2, groups=2, leave=0.0)
    group, _, action, _, parts, _ = played(world, 1)
    for number, interest in enumerate((4.0, 400.0)):
        live = parts[..., 1][(group == number) & (action == 1)]
        assert float(live.mean()) == pytest.approx(interest, rel=0.1)
        assert float(live.log().std()) == pytest.approx(2**0.5, abs=0.05)  # appeal and luck
    slot = parts[..., 0] - parts[..., 1]
    assert float(slot[action == 0].mean()) == pytest.approx(60.0, rel=0.03)
    assert float(slot[action == 1].mean()) == pytest.approx(30.0, rel=0.03)


@pytest.mark.parametrize("tiring", [0.0, 4.0])
def test_the_fatigued_leave_sooner_unless_that_is_switched_off(tiring: float, float64: None) -> None:
    world = Feed(40_000, 4, leave=0.1, tiring=tiring)
    obs, one = world.reset(), torch.ones(40_000, dtype=torch.int64)
    alive, fatigue = torch.ones(40_000, dtype=torch.bool), 0.0
    for _ in range(3):
        obs, _, terminated, _ = world.step({"action": one})
        fatigue = 0.8 * fatigue + 0.2
        assert float(terminated[alive].double().mean()) == pytest.approx(0.1 * (1 + tiring * fatigue), abs=0.015)
        assert torch.allclose(obs["request"][alive, 1], torch.tensor(fatigue))
        alive &= ~terminated
        obs = world.reset(terminated)


def test_evaluations_say_the_time_that_was_spent_beside_the_reward() -> None:
    task = make_task("feed", 64, 0, evaluation=True)
    scores = evaluate_returns(Uniform(task.spec), task, 64)
    shaped = np.dot([scores[f"return_{name}"] for name in task.spec.objectives], task.spec.info["weights"])
    assert scores["return"] == pytest.approx(float(shaped), rel=1e-4)
    assert scores["return_app"] > scores["return_live"] > 0


def test_luck_is_new_at_every_request_and_users_differ(float64: None) -> None:
    world = Feed(4_000, 2, groups=1, tail=0.5, leave=0.0)
    world.reset()
    one, slots = torch.ones(4_000, dtype=torch.int64), []
    for inserted in (0, 0, 1, 1):
        appeal = world.state["appeal"]
        world.step({"action": one * inserted})
        app, live = world.facts["rewards"][:, :2].T
        slots.append((appeal, app - live, live / (appeal - 0.5).exp()))

    def alike(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([one, other]))[0, 1])

    assert alike(slots[0][0], slots[1][0]) == pytest.approx(0.0, abs=0.06)  # appeal
    assert alike(slots[2][2], slots[3][2]) == pytest.approx(0.0, abs=0.06)  # luck of streams
    assert alike(slots[0][1].log(), slots[1][1].log()) == pytest.approx(0.5, abs=0.06)  # the user's mean, and luck


def test_random_behavior_inserts_every_second_time() -> None:
    world = Feed(4_000, 0)
    world.reset()
    actions = [world.behave("random", world.state, torch.full((4_000,), time)) for time in range(2)]
    assert [float(each.double().mean()) for each in actions] == pytest.approx([0.5, 0.5], abs=0.03)
    assert float((actions[0] == actions[1]).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="leave \\(1 \\+ tiring\\) is the probability that the most fatigued leave"):
        Feed(leave=0.2)
    with pytest.raises(UsageError, match="spread is at least 1"):
        Feed(spread=0.5)
    with pytest.raises(UsageError, match="interest and video are times, above 0"):
        Feed(video=0.0)
    with pytest.raises(UsageError, match="displaced is a probability"):
        Feed(displaced=2.0)

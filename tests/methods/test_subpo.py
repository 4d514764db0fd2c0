"""SubPO: gains along the path as it was, credit for what follows only, the time in the policy, and the modular arm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.functional import flatten, gradient
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.methods.theory.subpo import (
    Cells,
    Information,
    OfTask,
    first_visits,
    information_gains,
    matern,
    prefix,
)
from polopt.tasks import make_task
from polopt.tasks.grid.coverage import covered, gains
from polopt.training import api
from tests.guards.harness import built, reseed

MUST = 5

TINY = {"map": "2x3", "start": 1, "horizon": 3, "slip": 0.0}
ALL = torch.cartesian_prod(*[torch.arange(5)] * 3)  # every path of it [125, 3]


def tiny(seed: int = 0, **settings: Any) -> Any:
    """The method on six cells with smooth weights, three steps."""
    common = {"steps": 100, "seed": seed, "loggers": (), "envs": 8, "episodes": 8, "network.sizes": (5,)}
    options = {**TINY, **settings.pop("task_options", {})}
    return api.plan("subpo", "grid/coverage", task_options=options, **{**common, **settings}).build()


def played(method: Any, actions: Tensor, **options: Any) -> Batch:
    """These actions [R, T] as a batch of episodes."""
    rows, length = actions.shape
    world = make_task("grid/coverage", rows, 0, **{**TINY, **options})
    obs, steps = world.reset(), []
    for action in actions.unbind(1):
        after, reward, *_ = world.step({"action": action})
        steps.append({**world.facts, "obs": obs, "final_obs": after, "reward": reward, "action": action})
        obs = after
    batch = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
    batch["mask"] = torch.ones(rows, length, dtype=torch.bool)
    batch["first"] = torch.arange(length).eq(0).expand(rows, length)
    batch["hidden"] = torch.zeros(rows, length, getattr(method.policy.net, "hidden_size", 1))
    return TensorDict(batch, (rows, length))


def cells_of(batch: Batch) -> Tensor:
    """The cells [R, T + 1] of paths, read from observations."""
    seen = torch.cat([batch["obs"][:, :1], batch["final_obs"]], 1)
    return seen[..., :6].argmax(-1)


# Must 1: gains of the visited set, along the path as it was


def test_must_1_of_a_grid_they_are_those_of_coverage(float64):
    method = tiny()
    batch = played(method, ALL)
    near, weights = method.task.near, method.task.weights
    expected = gains(cells_of(batch), near, weights)
    torch.testing.assert_close(method.gains(batch), expected[:, 1:])
    total = covered(cells_of(batch), near, weights)
    start = covered(cells_of(batch)[:, :1], near, weights)
    torch.testing.assert_close(method.gains(batch).sum(1), total - start)
    assert method.rewards(batch).equal(method.gains(batch))
    stays = (ALL == 4).all(1)
    assert method.gains(batch)[stays].eq(0).all()
    assert method.gains(batch, modular=True)[stays].gt(0).all()


def test_must_1_without_the_fact_the_reward_is_the_gain():
    method = api.plan("subpo", "grid/items", steps=1, loggers=(), envs=4, episodes=4).build()
    batch = method.collect()
    assert "gain" not in batch.keys()
    assert batch["reward"].sum() > 0
    assert method.gains(batch).equal(batch["reward"])
    method.task.close()


def test_must_1_first_visits_by_hand():
    path = torch.tensor([[0, 1, 0, 2, 1], [1, 1, 1, 0, 1]]).unsqueeze(-1).double()
    new = [[True, True, False, True, False], [True, False, False, True, False]]
    assert first_visits(path).tolist() == new
    assert first_visits(torch.cat([path, path], -1)).tolist() == new
    other = torch.cat([path, torch.arange(5.0).double().expand(2, 5).unsqueeze(-1)], -1)
    assert first_visits(other).all()  # one coordinate is enough to be elsewhere


def test_must_1_cells_by_hand():
    """Coordinate 1 only, cells of width 1/2: 0, 0, 1, 0, -1; the start is covered and pays nothing."""
    path = torch.tensor([[[9.0, 0.1], [8.0, 0.4], [7.0, 0.5], [6.0, 0.0], [5.0, -0.1]]])
    function = Cells(coordinates=(1,), width=0.5)
    batch = TensorDict({}, (1, 4))
    assert function.gains(batch, path, False).tolist() == [[0, 1, 0, 1]]
    assert function.gains(batch, path, True).tolist() == [[1, 1, 1, 1]]
    assert Cells(width=0.5).gains(batch, path, False).tolist() == [[1, 1, 1, 1]]


def test_must_1_information_by_determinants(float64):
    """Of every prefix, in numpy; a place measured again tells log(3)/2 where the noise is 1, after log(2)/2."""
    path = torch.randn(2, 5, 3)
    path[:, 3] = path[:, 1]
    found = Information(coordinates=(0, 2), lengthscale=0.7, noise=0.3).gains(TensorDict({}, (2, 4)), path, False)
    for row in range(2):
        total = []
        for length in range(1, 6):
            places = path[row, :length][:, [0, 2]].numpy()
            r = np.sqrt(5) * np.linalg.norm(places[:, None] - places, axis=-1) / 0.7
            k = (1 + r + r**2 / 3) * np.exp(-r)
            total.append(np.linalg.slogdet(np.eye(length) + k / 0.3)[1] / 2)
        assert found[row].tolist() == pytest.approx(np.diff(total))
    again = information_gains(matern(torch.zeros(1, 2, 1), 1.0), 1.0)
    assert again[0].tolist() == pytest.approx([math.log(2) / 2, math.log(3 / 2) / 2])
    alone = Information(noise=0.25).gains(TensorDict({}, (2, 4)), path, True)
    torch.testing.assert_close(alone, torch.full((2, 4), math.log(5) / 2))


@given(seed=st.integers(0, 10_000), function=st.sampled_from([Cells(width=0.8), Information(lengthscale=2.0)]))
def test_must_1_they_are_monotone_and_submodular(seed, function):
    """What a state adds falls when a state is put in front, is at least 0 and at most what it is worth alone; F of the
    whole path does not depend on the order."""
    generator = torch.Generator().manual_seed(seed)
    path = torch.randn(1, 6, 2, generator=generator, dtype=torch.float64)
    batch = TensorDict({}, (1, 5))
    found = function.gains(batch, path, False)[0]
    assert (found >= -1e-9).all()
    assert (found <= function.gains(batch, path, True)[0] + 1e-9).all()
    shorter = function.gains(batch, path[:, 1:], False)[0]
    assert (found[1:] <= shorter + 1e-9).all()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(5, generator=generator)])
    torch.testing.assert_close(function.gains(batch, path[:, order], False).sum(), found.sum())


# Must 2: what follows is credited, over a baseline


def test_must_2_credit_by_hand():
    """Gains 3, 0, 2 and 1, 4 of a shorter episode, divided by 2."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    gain = torch.tensor([[3.0, 0.0, 2.0], [1.0, 4.0, 9.0]])
    method = tiny(scale=2.0)
    batch = played(method, ALL[:2]).set("gain", gain).set("mask", mask)
    found = method.evaluate_episodes(batch)
    assert found["returns"].tolist() == [[2.5, 1.0, 1.0], [2.5, 2.0, 0.0]]
    assert found["advantage"].tolist() == [[0.0, -1.0, 1.0], [0.0, 1.0, 0.0]]
    torch.testing.assert_close(found["weight"], torch.tensor([[0.2, 0.2, 0.2], [0.2, 0.2, 0.0]]))
    assert prefix(gain, 1.0, mask).tolist() == [[3.0, 3.0, 5.0], [1.0, 5.0, 0.0]]


def expected_slopes(**settings: Any) -> tuple[Tensor, Tensor]:
    """The gradient of E F over all paths, by autograd, and the mean gradient of the loss, each path as often as it
    comes."""
    method = tiny(baseline="none", average_over="episodes", **settings)
    own = list(method.policy.parameters())
    batch = played(method, ALL)
    probability = method.policy.log_prob(batch).sum(1).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    value = covered(cells_of(batch), method.task.near, method.task.weights)
    exact = gradient((probability * value).sum(), own)
    batch = method.evaluate_episodes(batch)
    batch["weight"] = probability.detach().unsqueeze(1).expand_as(batch["weight"])
    return exact, -gradient(method.policy_loss(batch)[0], own)


@pytest.mark.parametrize("recurrent", ["clock", "gru"])
def test_must_2_the_expected_gradient_is_that_of_the_set_function(float64, recurrent):
    """Markovian with the time, and with memory; F depends on the whole path."""
    exact, found = expected_slopes(**{"network.recurrent": recurrent})
    torch.testing.assert_close(found, exact)
    assert exact.norm() > 0.01


def test_must_2_the_whole_return_is_the_same_gradient_and_noisier(float64):
    """Over all paths: the second moment about the mean of one-path gradients is larger than with suffix credit."""
    exact, found = expected_slopes(credit="return")
    torch.testing.assert_close(found, exact)
    spread = {}
    for credit in ("reward-to-go", "return"):
        method = tiny(credit=credit, baseline="time-mean", average_over="episodes")
        own = list(method.policy.parameters())
        batch = method.evaluate_episodes(played(method, ALL))
        log_prob = method.policy.log_prob(batch)
        slopes = [gradient((log_prob[row] * batch["advantage"][row]).sum(), own) for row in range(0, 125, 3)]
        spread[credit] = torch.stack(slopes).var(0).sum()
    assert spread["reward-to-go"] < 0.9 * spread["return"]


def test_the_released_credit_is_another_gradient(float64):
    exact, found = expected_slopes(credit="prefix")
    cosine = (found @ exact) / (found.norm() * exact.norm())
    assert cosine < 0.99


# Must 3: the time, or the path, is in the policy


def test_must_3_the_markovian_policy_knows_the_time_and_not_the_path(float64):
    """On a map that does not show it: the same cell at two times gives two distributions, at one time one."""
    method = tiny(task_options={"obs": "place"})
    assert method.policy.recurrent
    actions = torch.tensor([[4, 4, 4], [0, 2, 4], [4, 0, 2]])  # stay; up, down, stay; stay, up, down. Up is the edge
    batch = played(method, actions, obs="place", map="2x3", start=4)
    logits = method.policy.logits(batch)
    assert not torch.allclose(logits[0, 0], logits[0, 1])
    assert batch["obs"][0, 2].equal(batch["obs"][1, 2])
    torch.testing.assert_close(logits[0, 2], logits[1, 2])  # by another path


def test_must_3_with_history_it_knows_the_path(float64):
    method = tiny(preset="history", task_options={"obs": "place"})
    batch = played(method, torch.tensor([[4, 4, 4], [0, 2, 4]]), obs="place", start=4)
    logits = method.policy.logits(batch)
    assert batch["obs"][0, 2].equal(batch["obs"][1, 2])
    assert not torch.allclose(logits[0, 2], logits[1, 2])
    torch.testing.assert_close(logits[0, 0], logits[1, 0])


def test_must_3_what_acts_is_what_is_scored(float64):
    """The clock of acting and that of a window agree, in episodes of any row."""
    with built("subpo", envs=2, episodes=4) as method:
        batch = method.collect()
        torch.testing.assert_close(method.policy.log_prob(batch), batch["log_prob"])
        assert batch["hidden"][..., 0].tolist() == [[0, 1, 2, 3, 4, 5]] * 4


# Must 4: the modular arm


def test_must_4_modular_is_reinforce_on_repeated_rewards(float64):
    """Bitwise: SubPO with a modular F on one map, and REINFORCE where all visits pay."""
    common = {
        "envs": 4,
        "episodes": 4,
        "network.sizes": (8,),
        "network.recurrent": "clock",
        "discount": 1.0,
        "lr": 0.01,
        "average_over": "decisions",
    }
    after = {}
    for name, own, repeats in (("subpo", {"modular": True}, False), ("reinforce", {}, True), ("subpo", {}, True)):
        options = {"horizon": 6, "repeats": repeats}
        settings = {"steps": 72, "seed": 5, "loggers": (), "task_options": options, **common, **own}
        method = api.plan(name, "grid/coverage", **settings).build()
        reseed()
        for _ in range(3):
            method.update(method.collect())
        after[name, repeats] = flatten(method.policy.parameters()).detach()
        method.task.close()
    assert after["subpo", False].equal(after["reinforce", True])
    assert not after["subpo", True].equal(after["reinforce", True])  # the gain is read where all visits pay too


def test_must_4_a_task_that_does_not_say_is_refused():
    with pytest.raises(UsageError, match=r"^grid/items does not say what a state is worth alone: it has no fact"):
        api.plan("subpo", "grid/items", loggers=(), modular=True, envs=1, episodes=2).build()


def test_must_4_coverage_is_reported_whatever_is_learned(float64):
    scores = {}
    for modular in (False, True):
        with built("subpo", modular=modular) as method:
            batch = method.collect()
            scores[modular] = method.update(batch)["coverage"].item()
            assert scores[modular] == pytest.approx(batch["gain"].sum(1).mean().item())
            found = method.evaluate(method.task.twin(3), 3)
            assert found["coverage"] == pytest.approx(found["return"])
            assert found["length"] == 6
    assert scores[False] == scores[True]


# Must 5, the rest


def test_must_5_nothing_is_bootstrapped(float64):
    """There is no critic, and an end by the clock does not change the credit."""
    with built("subpo") as method:
        assert [name for name, _ in method.modules()] == ["policy", "vectors"]
        batch = method.collect()
        one = method.evaluate_episodes(batch)["returns"]
        cut = batch.clone(False).set("truncated", batch["terminated"]).set("terminated", batch["truncated"])
        assert method.evaluate_episodes(cut)["returns"].equal(one)


def test_padding_gains_nothing():
    method = tiny(function=Cells(width=0.1))
    batch = played(method, ALL[:4])
    batch["mask"] = torch.tensor([[True, True, False]]).expand(4, 3)
    assert method.gains(batch)[:, 2].eq(0).all()
    assert method.gains(batch)[:, :2].eq(1).all()  # the time is a coordinate, so every cell is new


def test_a_short_episode_is_paid_for_where_it_ended(float64):
    """Of two episodes the first ends after one decision, in a cell that it has not seen."""
    with built("subpo", "CartPole-v1", function=Cells(width=1.0)) as method:
        obs = torch.zeros(2, 3, 4)
        final = torch.zeros(2, 3, 4)
        obs[1, 1:, 0] = torch.tensor([1.5, 2.5])
        final[0, 0, 0], final[1, :, 0] = 1.5, torch.tensor([1.5, 2.5, 2.5])
        mask = torch.tensor([[True, False, False], [True, True, True]])
        batch = TensorDict({"obs": obs, "final_obs": final, "mask": mask, "reward": torch.zeros(2, 3)}, (2, 3))
        assert method.gains(batch).tolist() == [[1, 0, 0], [1, 1, 0]]


def test_the_entropy_bonus_is_divided_by_the_number_of_the_update(float64):
    for decay, expected in ((True, [0.3, 0.15, 0.1]), (False, [0.3] * 3)):
        method = tiny(entropy_coefficient=0.3, entropy_decay=decay)
        for coefficient in expected:
            batch = method.collect()
            method.update(batch)
            assert method.entropy_coefficient.item() == pytest.approx(coefficient)
            loss, metrics = method.policy_loss(method.evaluate_episodes(batch))
            assert (metrics["policy_loss"] - loss).item() == pytest.approx(coefficient * metrics["entropy"].item())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"credit": "prefix", "discount": 0.9}, r"^discount has no effect where what came before is credited"),
        ({"entropy_decay": False}, r"^entropy_decay has no effect without an entropy bonus"),
        ({"function": Cells(coordinates=(7,))}, r"^grid/coverage shows 7 numbers, and there is no coordinate 7$"),
    ],
)
def test_what_cannot_act_is_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        tiny(**settings)


def test_the_presets_are_the_official_settings():
    base = {"loggers": (), "task_options": {"map": "30x30", "start": 34, "horizon": 39, "slip": 0.0}}
    config = api.plan("subpo", "grid/coverage", preset="gp", **base).config
    assert (config.episodes, config.lr, config.scale, config.network.sizes) == (500, 1e-3, 82.0, (64, 32))
    assert (config.discount, config.average_over, config.network.activation) == (1.0, "decisions", "tanh")
    assert config.function == OfTask()
    released = api.plan("subpo", "grid/coverage", preset="released", **base).config
    assert (released.credit, released.baseline) == ("prefix", "none")
    rooms = api.plan("subpo", "grid/coverage", preset="rooms", **base).config
    assert (rooms.episodes, rooms.envs, rooms.lr) == (3000, 3000, 0.02)


def test_it_covers_more_than_modular_rewards_do():
    """20 updates of 100 episodes on 5 x 5 cells."""
    found = {}
    for modular in (False, True):
        options = {"map": "5x5", "start": 12, "horizon": 8}
        settings = {"envs": 100, "episodes": 100, "lr": 0.03, "network.sizes": (16,), "modular": modular}
        method = api.plan("subpo", "grid/coverage", steps=1, loggers=(), task_options=options, **settings).build()
        for _ in range(20):
            coverage = method.update(method.collect())["coverage"].item()
        found[modular] = coverage
    assert found[False] > 1.2 * found[True]


@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_evaluated(float64, greedy):
    """The first starts, as it is asked to act: by the episodes themselves."""
    with built("subpo") as method:
        task = method.task.twin(3)
        found = method.evaluate(task, 3, greedy=greedy)
        with paired():
            batch = Episodes(task, starts=range(3), greedy=greedy).next(method.policy)
        returns = batch["reward"].sum(1).tolist()
        assert found["return"] == pytest.approx(np.mean(returns))
        assert found["return_std"] == pytest.approx(np.std(returns))
        assert found["return_std"] > 0 or greedy
        assert method.evaluate(task, 3, greedy=not greedy)["return"] != found["return"]

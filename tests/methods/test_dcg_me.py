"""DCG-MAP-Elites against loops over episodes, transitions and parents."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import polopt
from polopt import registry
from polopt.core.errors import UsageError
from polopt.core.functional import assign, flatten
from polopt.core.state import gather
from polopt.methods.theory.dcg_me import descriptor_of
from polopt.policies.conditioned import join
from polopt.training import api
from tests.guards.harness import advance, built, plan

MUST = 4


def grown(method, iterations=2):
    """After some iterations; each is 8 and 4 episodes of 10 decisions."""
    advance(method, 10**9, updates=iterations)
    return method


def test_must_1_rewards_are_scaled_by_how_near_the_episode_came_when_they_are_drawn(float64):
    with built("dcg-me", length_scale=0.3, reward_offset=0.5) as method:
        grown(method)
        batch = method.collect()
        for name, side in batch.items():
            final = side["final_obs"][:, -1, :2]
            torch.testing.assert_close(side["descriptor"], (2 * final - 1).unsqueeze(1).expand(-1, 10, -1))
            assert (side["told"] == side["descriptor"]).all() == (name == "offspring")
            method.replay.add(side.exclude("taken", "climbed"))
        assert len(method.replay) == 3 * 12 * 10
        sample = method.replay.sample(64)
        out = method.as_told(sample)
        for row in range(64):
            away = math.dist(sample["descriptor"][row].tolist(), sample["told"][row].tolist())
            expected = math.exp(-away / 0.3) * (sample["reward"][row].item() + 0.5)
            assert out["reward"][row].item() == pytest.approx(expected)
        assert (out["obs"]["context"] == sample["told"]).all()
        assert (out["next_obs"]["obs"] == sample["next_obs"]).all()
        assert (out["next_obs"]["context"] == sample["told"]).all()
        assert (out["reward"] < sample["reward"] + 0.5 - 1e-9).any()  # of the actor's episodes
        assert (out["reward"] == sample["reward"] + 0.5).any()  # of the offspring's


def test_must_2_the_actor_plays_what_the_archive_has_and_stays_out_of_it():
    with built("dcg-me") as method:
        grown(method)
        genotypes = []
        add = method.archive.add
        method.archive.add = lambda *parts: genotypes.append(parts[0]) or add(*parts)
        side = method.collect()["actor"]
        known = method.archive.descriptor[method.archive.filled].tolist()
        assert all(told in known for told in side["told"][:, 0].tolist())
        action, _ = method.actor.actor.rsample(join(side["obs"], side["told"]))
        torch.testing.assert_close(side["action"], action.detach(), rtol=1e-4, atol=1e-6)
        assert [len(each) for each in genotypes] == [8]


def test_must_3_every_parent_climbs_for_its_own_descriptor_with_an_adam_of_its_own(float64, monkeypatch):
    with built("dcg-me", gradient_steps=4, gradient_lr=0.02) as method:
        grown(method)
        cells = method.archive.filled[:3]
        parents, descriptors = method.archive.genotype[cells], method.archive.descriptor[cells]
        samples = [method.replay.sample(16) for _ in range(4)]
        drawn = iter(samples)
        monkeypatch.setattr(method.replay, "sample", lambda count: next(drawn))
        critic = {path: leaf.clone() for path, leaf in gather(method.clipped).items()}
        children = method.climbed(method.population, parents, descriptors)
        for parent, descriptor, child in zip(parents, descriptors, children):
            policy = method.beginner().requires_grad_(True)
            assign(list(policy.parameters()), parent)
            optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
            for sample in samples:
                obs = sample["obs"]
                action, _ = policy.rsample(obs)
                q = method.clipped.critic(join(obs, descriptor.expand(16, -1)), action)[0]
                optimizer.zero_grad()
                (-q.mean()).backward()
                optimizer.step()
            torch.testing.assert_close(child, flatten(policy.parameters()).detach(), rtol=1e-6, atol=1e-9)
        assert all(torch.equal(leaf, critic[path]) for path, leaf in gather(method.clipped).items())
        assert torch.equal(parents, method.archive.genotype[cells])


def test_must_4_the_episodes_of_the_actor_count():
    with built("dcg-me") as method:
        method.collect()
        assert (method.ledger.env_steps, method.ledger.episodes) == (12 * 10, 12)
    with built("dcg-me", actor_episodes=0) as method:
        assert list(method.collect().keys()) == ["offspring"]
        assert method.ledger.env_steps == 8 * 10


def test_the_target_and_the_loss_of_the_critics(float64):
    with built("dcg-me", target_noise=0.0, discount=0.7) as method:
        grown(method)
        sample = method.replay.sample(16)
        sample["truncated"], sample["terminated"] = torch.arange(16) % 4 == 0, torch.arange(16) % 4 == 1
        batch = method.as_told(sample)
        loss, _ = method.critic_loss(batch)
        total = 0.0
        for row in range(16):
            one = batch[row : row + 1]
            action, _ = method.target_actor.rsample(one["next_obs"])
            after = method.clipped.target_critic(one["next_obs"], action).min()
            y = one["reward"] + 0.7 * after * (~one["terminated"])
            q = method.clipped.critic(one["obs"], one["action"])[:, 0]
            if row % 4:  # those that a time limit has cut do not count
                total = total + ((q - y) ** 2).sum()
        torch.testing.assert_close(loss, total / 16)


def test_the_actor_moves_first_and_every_other_step(float64):
    """With the critic before its step; the target of the actor follows with it, that of the critics always."""
    with built("dcg-me", delay=2, critic_steps=3, target_noise=0.0) as method:
        grown(method, 1)
        method.steps = 0
        seen = []
        minimize = method.actor_optimizer.minimize
        critic = lambda: flatten(method.clipped.critic.parameters()).detach().clone()  # noqa: E731
        actor = lambda: flatten(method.target_actor.parameters()).detach().clone()  # noqa: E731
        slow = lambda: flatten(method.clipped.target_critic.parameters()).detach().clone()  # noqa: E731
        method.actor_optimizer.minimize = lambda *parts: seen.append(critic()) or minimize(*parts)
        before, targets, slows = [critic()], [actor()], [slow()]
        for _ in range(3):
            method.fit()
            before.append(critic())
            targets.append(actor())
            slows.append(slow())
        assert len(seen) == 2
        assert torch.equal(seen[0], before[0])
        assert torch.equal(seen[1], before[2])
        moved = [not torch.equal(*pair) for pair in itertools.pairwise(targets)]
        assert moved == [True, False, True]
        for old, new, now in zip(slows, slows[1:], before[1:]):
            torch.testing.assert_close(new, old + method.config.tau * (now - old))


def test_offspring_are_fresh_at_first_then_half_climb_and_half_vary(float64, monkeypatch):
    with built("dcg-me", iso=0.0, line=0.0, gradient_share=0.25) as method:
        fresh, count = method.emit()
        assert count == 0
        assert len(fresh.unique(dim=0)) == 8
        grown(method, 1)
        monkeypatch.setattr(method, "climbed", lambda population, genotypes, descriptors: genotypes + 5.0)
        children, count = method.emit()
        assert count == 2
        known = method.archive.genotype[method.archive.filled]
        assert all((child - 5.0 - known).abs().amax(1).min() < 1e-9 for child in children[:2])
        assert all((child - known).abs().amax(1).min() == 0 for child in children[2:])


def test_the_archive_gets_returns_and_places_of_whole_episodes():
    with built("dcg-me", reward_offset=0.25) as method:
        side = method.collect()["offspring"]
        returns = (side["reward"] + 0.25).sum(1)
        for number, cell in enumerate(method.archive.cell(side["descriptor"][:, 0]).tolist()):
            assert method.archive.fitness[cell] >= returns[number] - 1e-5
            if side["taken"][number, 0]:
                assert method.archive.fitness[cell].item() == pytest.approx(returns[number].item())
                assert torch.equal(method.archive.genotype[cell], method.population.genotypes[number])
        assert side["taken"][:, 0].sum() == len(method.archive.filled)


def test_a_descriptor_is_where_an_episode_ends_or_its_mean():
    batch = {
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        "final_obs": torch.tensor(
            [[[1.0, 0.0, 2.0]] * 2 + [[4.0, 0.0, 8.0]], [[1.0, 9.0, 3.0], [3.0, 9.0, 5.0], [7.0] * 3]]
        ),
    }
    assert descriptor_of(batch, "final", (0, 2)).tolist() == [[4.0, 8.0], [3.0, 5.0]]
    assert descriptor_of(batch, "mean", (2,)).tolist() == [[4.0], [4.0]]


def test_without_descriptors_the_critic_is_told_nothing_and_rewards_stay():
    with built("dcg-me", conditioned=False) as method:
        grown(method)
        sample = method.replay.sample(32)
        batch = method.as_told(sample)
        assert not batch["obs"]["context"].any()
        assert torch.equal(batch["reward"], sample["reward"])


def test_map_elites_trains_nothing_and_chooses_from_the_archive():
    settings = registry.load("dcg-me").presets["map-elites"] | {"gradient_steps": 150}  # the default
    with built("dcg-me", **settings) as method:
        start = gather(method.clipped), gather(method.actor)
        start = [{path: leaf.clone() for path, leaf in each.items()} for each in start]
        metrics = advance(method, 10**9, updates=3)[-1]
        assert "critic_loss" not in metrics
        assert metrics["gradient_accepted"] == 0
        for now, then in zip((gather(method.clipped), gather(method.actor)), start):
            assert all(torch.equal(now[path], then[path]) for path in now)
        cell = int(method.archive.filled[0])
        place = (method.archive.descriptor[cell] + 1) / 2
        method.policy.given(place.tolist())
        assert torch.equal(flatten(method.policy.actor.parameters()), method.archive.genotype[cell])


def test_the_evaluation_asks_for_what_is_in_the_archive():
    with built("dcg-me") as method:
        grown(method)
        task = plan("dcg-me").make_task(1, 2)
        scores = method.evaluate(task, 5)
        assert scores["qd_score"] == pytest.approx(method.archive.fitness[method.archive.filled].sum().item())
        assert scores["coverage"] == len(method.archive.filled) / 16
        errors = []
        filled = method.archive.filled
        for cell in filled[torch.linspace(0, len(filled) - 1, 5).round().long()]:
            told = method.archive.descriptor[cell]
            obs, time = task.reset(index=torch.zeros(2, dtype=torch.int64)), 0
            while time < 10:
                action, _ = method.actor.actor.rsample(join(obs, told.expand(2, -1)))
                obs, *_ = task.step({"action": method.actor.env_action(action.detach())})
                time += 1
            errors.append((2 * obs[0, :2] - 1 - told).norm().item() / 2)
        assert scores["descriptor_error"] == pytest.approx(np.mean(errors), abs=1e-5)
        assert method.figures()["archive"].values
        task.close()


def test_a_loaded_policy_is_told_a_descriptor(tmp_path):
    smoke = registry.load("dcg-me").smoke
    settings = {"task_options": smoke.task_options, "loggers": (), **smoke.config}
    polopt.train("dcg-me", smoke.task, steps=240, out=tmp_path / "run", seed=3, **settings)
    actor = polopt.load(tmp_path / "run")
    obs = np.array([0.5, 0.5, 0.0], np.float32)
    one, other = (actor.given(place).predict(obs) for place in ([0.2, 0.9], [0.8, 0.1]))
    assert not np.array_equal(one, other)
    assert np.array_equal(actor.given([0.2, 0.9]).predict(obs), one)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"coordinates": (0, 9)}, r"^coordinates \(0, 9\) are not all among the 3 of an observation$"),
        ({"low": (0.0,)}, r"^low has 1 numbers for 2 coordinates$"),
        ({"low": (0.0, 1.0)}, r"^descriptors need finite bounds: give low and high, which point/robot does not have$"),
    ],
)
def test_what_is_no_descriptor_is_refused(settings, sentence):
    planned = plan("dcg-me", **settings)
    with pytest.raises(UsageError, match=sentence):
        planned.build()


def test_what_has_no_vector_is_refused():
    planned = api.plan("dcg-me", "masked", loggers=(), steps=100)
    with pytest.raises(UsageError, match=r"^dcg-me needs observations that are vectors, and masked has"):
        planned.build()


def test_options_of_what_is_not_there_are_refused():
    with pytest.raises(UsageError, match=r"^length_scale has no effect where nothing is conditioned on a descriptor"):
        plan("dcg-me", conditioned=False, length_scale=0.5)
    with pytest.raises(UsageError, match=r"^gradient_steps has no effect without gradient_share"):
        plan("dcg-me", gradient_share=0.0, gradient_steps=7)

"""DAC: the reward is the discriminator's, computed when a transition is drawn."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.data.relabel import relabeled
from polopt.methods.offline.dac import first_episodes
from polopt.training import api
from tests.guards.harness import advance, built


def softplus(x):
    return (1 + x.exp()).log()


def test_the_loss_by_hand(float64):
    """Means of both sides, and ten times that of the penalty, at shares of the method's own generator."""
    with built("dac") as method:
        batch = method.collect()
        expert, learner = batch["expert"][0], batch["learner"][0]
        share = torch.rand(16, generator=copy.deepcopy(method).generator)
        loss, metrics = method.witness(expert, learner)
        high, low = method.discriminator(expert), method.discriminator(learner)
        mixed = TensorDict(
            {k: share[:, None] * expert[k] + (1 - share[:, None]) * learner[k] for k in expert.keys()}, [16]
        )
        mixed = mixed.apply(lambda value: value.detach().requires_grad_())
        slopes = torch.autograd.grad(method.discriminator(mixed).sum(), [mixed["obs"], mixed["action"]])
        penalty = (torch.cat(slopes, 1).norm(dim=1) - 1).square().mean()
        plain = softplus(-high).mean() + softplus(low).mean()
        torch.testing.assert_close(loss, plain + 10.0 * penalty)
        torch.testing.assert_close(metrics["discriminator_loss"], plain)
        torch.testing.assert_close(metrics["gradient_penalty"], penalty)


def test_the_policy_learns_from_the_discriminator_after_its_step_and_never_from_the_task(float64):
    with built("dac", reward_scale=3.0) as method:
        batch = method.collect()
        seen = []
        original = method.target

        def target(each):
            seen.append(each["reward"].clone())
            return original(each)

        method.target = target
        before = method.discriminator.reward(batch["replay"])
        metrics = method.update(batch)
        after = method.discriminator.reward(batch["replay"])
        assert seen[0].equal(after)
        assert not after.equal(before)
        assert metrics["reward"].item() == pytest.approx(after.mean().item())
        assert float((batch["replay"]["reward"] - after).abs().min()) > 1e-6  # what is stored is the task's


def test_rewards_of_an_n_step_sample_are_those_of_every_step(float64):
    with built("dac", n_step=3, discount=0.5) as method:
        advance(method, 56, 4)
        replay = method.source.replay
        batch = replay.sample(64)
        found = relabeled(batch, method.discriminator.reward)["reward"]
        replay_all = replay.whole()
        each = method.discriminator.reward(replay_all)
        over = replay_all["steps"]["factor"]
        for index, value in zip(batch["index"].tolist(), found.tolist()):
            place = index - int(replay_all["index"][0])
            count = int((over[place] > 0).sum())
            assert value == pytest.approx(sum(0.5**k * float(each[place + k]) for k in range(count)))


def test_the_discriminator_sees_expert_and_replay_in_the_policys_units(float64):
    with built("dac", discriminator_updates=2) as method:
        batch = method.collect()
        assert batch["expert"].batch_size == batch["learner"].batch_size == torch.Size([2, 16])
        assert batch["replay"].batch_size == torch.Size([16])
        assert float(method.expert["action"].abs().max()) <= 1.0 < 1.9  # the environment's are up to 2
        recorded = {tuple(row) for row in method.expert["obs"].tolist()}
        assert {tuple(row) for row in batch["expert"]["obs"].flatten(0, 1).tolist()} <= recorded
        stored = {tuple(row) for row in method.source.replay.whole()["obs"].tolist()}
        assert {tuple(row) for row in batch["learner"]["obs"].flatten(0, 1).tolist()} <= stored


def test_a_step_on_each_pair_of_sides(float64):
    with built("dac", discriminator_updates=2) as method:
        batch, other = method.collect(), copy.deepcopy(method)
        method.discriminate(batch)
        for number in range(2):
            loss, _ = other.witness(batch["expert"][number], batch["learner"][number])
            other.discriminator_optimizer.step(loss)
        pairs = zip(method.discriminator.parameters(), other.discriminator.parameters())
        assert all(one.equal(two) for one, two in pairs)
        assert method.discriminate(TensorDict({k: batch[k][:0] for k in ("expert", "learner")}, [])) == {}


def test_the_first_episodes():
    data = TensorDict({"first": torch.tensor([1, 0, 1, 0, 0, 1]).bool(), "obs": torch.arange(6)}, [6])
    assert first_episodes(data, 2)["obs"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="there are 3 recorded episodes, and 4 are to be learned from"):
        first_episodes(data, 4)
    with built("dac", episodes=1) as one, built("dac") as all_of_them:
        assert (len(one.expert), len(all_of_them.expert)) == (200, 400)


def test_the_bound_and_other_divergences(float64):
    with built("dac", bound=0.1, divergence="reverse-kl", penalty=0.0) as method:
        batch = method.collect()
        expert, learner = batch["expert"][0], batch["learner"][0]
        loss, _ = method.witness(expert, learner)
        high, low = method.discriminator(expert), method.discriminator(learner)
        torch.testing.assert_close(loss, (-high).exp().mean() + low.mean())
        assert float(method.discriminator.reward(learner).abs().max()) <= 0.1
        assert weigh(expert)["weight"].sum().item() == pytest.approx(1)


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UsageError, match="dac imitates an expert: name a dataset as --task or with --demonstrations"):
        api.plan("dac", "Pendulum-v1").build()
    with pytest.raises(UsageError, match="without the demonstrations 'random'"):
        api.plan("dac", "Pendulum-v1", random_episodes=3)


def test_the_discriminator_has_a_rate_of_its_own():
    with built("dac", discriminator_lr=7e-3, lr=1e-3) as method:
        assert (method.discriminator_optimizer.lr, method.policy_optimizer.lr) == (7e-3, 1e-3)

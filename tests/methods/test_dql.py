"""DQL: its two losses, its target and its slow copies, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.policies.base import with_noise
from polopt.policies.wrappers import BestOf
from polopt.training import api

SMALL = {"dataset": "random", "random_episodes": 1, "batch_size": 16, "network.sizes": (8,), "loggers": ()}


def make(method: str = "dql", **changes: Any) -> Any:
    return api.plan(method, "Pendulum-v1", seed=1, **SMALL | changes).build()


def batch_of(size: int = 6, **keys: Any) -> Any:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator)

    batch = {
        "obs": draw(3),
        "action": draw(1).tanh(),
        "reward": draw(),
        "next_obs": draw(3),
        "terminated": torch.zeros(size, dtype=torch.bool),
        "truncated": torch.zeros(size, dtype=torch.bool),
    }
    return weigh(TensorDict(batch | keys, batch_size=[size]))


def test_the_target_is_the_minimum_over_critics_of_the_maximum_over_samples():
    method = make(backup_samples=2, discount=0.9)
    method.target_actor.rsample = lambda obs, n: (torch.zeros(n, 6, 1), None)
    values = torch.tensor([[[1.0, 1, 1, 1, 1, 1], [3, 3, 3, 3, 3, 3]], [[2.5] * 6, [2.0] * 6]])  # [E, n, B]
    method.target_critic = lambda obs, action: values
    ends = {
        "terminated": torch.tensor([False, True, False, True, False, False]),
        "truncated": torch.tensor([False, False, True, True, True, False]),
    }
    target = method.target(batch_of(reward=torch.ones(6), **ends))
    np.testing.assert_allclose(target, [3.25, 1.0, 3.25, 1.0, 3.25, 3.25])  # 1 + .9 min(3, 2.5)


def test_the_critic_loss_is_the_mean_squared_error_summed_over_critics(float64):
    method, batch = make(), batch_of(target=torch.arange(6.0))
    q = method.critic(batch["obs"], batch["action"]).detach().numpy()
    loss, metrics = method.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx(((q - np.arange(6.0)) ** 2).mean(1).sum())
    assert float(metrics["q"].detach()) == pytest.approx(q.mean())


def test_the_policy_ascends_one_critic_in_units_of_another(float64):
    method = make(eta=0.7)
    batch = with_noise(method.actor, batch_of())
    q = method.critic(batch["obs"], batch["action"]).detach()
    seen = set()
    for _ in range(8):
        member, scale = method.chosen(batch)
        assert len(member.unique()) == len(scale.unique()) == 1
        seen.add(int(member[0]))
        assert float(scale[0]) == pytest.approx(1 / float(q[1 - int(member[0])].abs().mean()))
    assert seen == {0, 1}
    batch["member"], batch["scale"] = torch.ones(6, dtype=torch.int64), torch.full((6,), 0.25)
    torch.manual_seed(9)
    loss, metrics = method.policy_loss(batch)
    torch.manual_seed(9)
    action, _ = method.actor.rsample(batch["obs"])
    ascent = method.critic(batch["obs"], action)[1].mean()
    imitation = method.actor.imitation_loss(batch, batch["noise"]).mean()
    assert float(loss.detach()) == pytest.approx(float((imitation - 0.7 * 0.25 * ascent).detach()))
    assert float(metrics["imitation_loss"].detach()) == pytest.approx(float(imitation.detach()))
    assert float(metrics["policy_q"].detach()) == pytest.approx(float(ascent.detach()))


def test_the_gradient_of_q_goes_through_the_whole_chain(float64):
    method = make(**{"policy.steps": 4})
    obs = torch.randn(5, 3)
    noise = method.actor.draw(method.actor.net.features(obs))
    parameter = next(iter(method.actor.net.trunk.parameters()))

    def value() -> torch.Tensor:
        action = method.actor.generate(method.actor.net.features(obs), noise)
        return method.critic(obs, action)[0].sum()

    (gradient,) = torch.autograd.grad(value(), parameter)
    with torch.no_grad():
        direction = torch.randn_like(parameter)
        ends = []
        for sign in (1, -1):
            parameter.add_(sign * 1e-6 * direction)
            ends.append(float(value()))
            parameter.sub_(sign * 1e-6 * direction)
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_the_target_policy_waits_and_then_follows_every_so_often():
    method = make(policy_start=3, policy_every=2, policy_tau=0.5)
    moved = []
    for _ in range(7):
        before = [value.clone() for value in method.target_actor.parameters()]
        method.update(method.collect())
        after = list(method.target_actor.parameters())
        moved.append(not all(torch.equal(one, other) for one, other in zip(before, after)))
        if moved[-1]:
            for old, new, own in zip(before, after, method.actor.parameters()):
                torch.testing.assert_close(new, 0.5 * old + 0.5 * own)
    assert moved == [False, False, False, False, True, False, True]


def test_it_acts_with_one_of_several_candidates_and_the_target_critic_is_part_of_the_policy():
    method = make(candidates=7)
    assert isinstance(method.policy, BestOf)
    assert (method.policy.samples, method.policy.how) == (7, "softmax")
    assert method.policy.critic is method.target_critic
    single = make(candidates=1)
    assert single.policy is single.actor


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="dql needs a policy that passes gradients through its samples"):
        make(policy="autoregressive")
    with pytest.raises(UsageError, match="dql learns from a dataset: name one as --task, or with --dataset"):
        make(dataset="", random_episodes=10)


def test_rewards_of_antmaze_are_scaled_as_in_the_released_code():
    method = make(rewards="antmaze")
    raw, scaled = method.source.data["reward"], method.collect()["reward"]
    assert set(scaled.tolist()) <= set((4 * raw - 2).tolist())


@pytest.mark.parametrize("name", ["dql", "ofql"])
def test_learning_rates_stay(name):
    """The official scheduler steps once in 50 of 2,000 epochs of a period of 2,000: (1 + cos(pi 40 / 2000)) / 2."""
    method = make(name)
    first = [optimizer.rate for optimizer in method.optimizers()]
    method.progress = 1.0
    last = [optimizer.rate for optimizer in method.optimizers()]
    official = 0.5 * (1 + np.cos(np.pi * 40 / 2000))
    assert len(first) == 2
    assert official == pytest.approx(0.999, abs=1e-4)
    assert [one / other for one, other in zip(last, first)] == pytest.approx([official] * 2, abs=2e-3)

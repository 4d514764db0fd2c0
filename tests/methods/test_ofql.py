"""OFQL: what its paper must not be without, with numbers worked out here, and that it chooses between modes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.policies.base import with_noise
from polopt.policies.flow import MeanFlowPolicy
from polopt.training import api
from tests.methods.test_dql import batch_of, make

MUST = 4


def make_ofql(**changes: Any) -> Any:
    return make("ofql", **changes)


def test_must_1_the_target_is_a_jacobian_product_and_constant(float64):
    """The loss and its gradient against central differences of the network along the path."""
    method = make_ofql(eta=0.0)
    policy, batch = method.actor, with_noise(method.actor, batch_of(8))
    assert isinstance(policy, MeanFlowPolicy)
    since, time = batch["noise", "time"].split(1, -1)
    noise, action = batch["noise", "noise"], batch["action"]
    x, velocity = (1 - time) * action + time * noise, noise - action
    features = policy.net.features(batch["obs"])

    def u(step: float) -> torch.Tensor:
        return policy.mean_velocity(features, x + step * velocity, since, time + step)

    target = velocity - (time - since) * (u(1e-6) - u(-1e-6)).detach() / 2e-6
    by_hand = (u(0.0) - target).square().mean()
    batch["member"], batch["scale"] = torch.zeros(8, dtype=torch.int64), torch.ones(8)
    loss, _ = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)
    parameters = list(policy.parameters())
    ours = torch.autograd.grad(loss, parameters)
    for one, other in zip(ours, torch.autograd.grad(by_hand, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    # With the gradient also through the target the answer would be another one.
    through = (u(0.0) - velocity + (time - since) * (u(1e-4) - u(-1e-4)) / 2e-4).square().mean()
    wrong = torch.autograd.grad(through, parameters)
    assert max(float((one - other).abs().max()) for one, other in zip(ours, wrong)) > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_must_2_equal_times_come_with_the_flow_ratio(share):
    method = make_ofql(**{"policy.flow_ratio": share})
    since, time = method.actor.draw_noise(batch_of(4000))["time"].unbind(-1)
    assert float((since == time).double().mean()) == pytest.approx(share, abs=0.03)
    assert (since <= time).all()
    assert make_ofql().config.policy.flow_ratio == 0.5


def test_must_3_one_call_in_the_critics_target_in_the_policys_ascent_and_when_acting(float64):
    method = make_ofql()
    for actor in (method.actor, method.target_actor):
        calls: list[tuple[float, float]] = []
        original = actor.mean_velocity

        def counted(features: Any, x: Any, since: Any, time: Any, original=original, calls=calls) -> Any:
            calls.append((float(since.flatten()[0]), float(time.flatten()[0])))
            return original(features, x, since, time)

        actor.mean_velocity = counted
        if actor is method.target_actor:
            method.target(batch_of())
        else:
            method.policy.act(torch.randn(2, 3))
            actor.rsample(torch.randn(2, 3))
            assert calls.pop() == (0.0, 1.0)
        assert calls == [(0.0, 1.0)]
    # The action is noise minus u(noise, 0, 1), clipped.
    obs, actor = torch.randn(5, 3), make_ofql().actor
    torch.manual_seed(2)
    action, log_prob = actor.rsample(obs)
    torch.manual_seed(2)
    noise = actor.draw(actor.net.features(obs))[..., 0, :]
    u = actor.mean_velocity(actor.net.features(obs), noise, torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(action, (noise - u).clamp(-1, 1))
    assert log_prob is None


def test_must_4_the_network_reads_both_times_by_embeddings_of_their_own(float64):
    actor = make_ofql().actor
    one, other = actor.net.embeddings
    assert not any(p is q for p in one.parameters() for q in other.parameters())
    features, x = actor.net.features(torch.randn(4, 3)), torch.randn(4, 1)
    times = [torch.full((4, 1), value) for value in (0.2, 0.6, 0.9)]
    base = actor.mean_velocity(features, x, times[0], times[2])
    assert not torch.allclose(base, actor.mean_velocity(features, x, times[1], times[2]))
    assert not torch.allclose(base, actor.mean_velocity(features, x, times[0], times[1]))


def test_actions_are_clipped_for_q_but_not_in_the_regression(float64):
    method = make_ofql(eta=0.0)
    action = torch.full((6, 1), 1.5)  # beyond what a sample can be
    batch = with_noise(method.actor, batch_of(action=action))
    since, time = batch["noise", "time"].split(1, -1)
    noise = batch["noise", "noise"]
    features = method.actor.net.features(batch["obs"])
    x, velocity = (1 - time) * action + time * noise, noise - action
    slope = method.actor.slope(features, x, since, time, velocity)
    error = method.actor.mean_velocity(features, x, since, time) - velocity + (time - since) * slope
    expected = error.square().mean(-1)
    torch.testing.assert_close(method.actor.imitation_loss(batch, batch["noise"]), expected)
    assert float(method.actor.rsample(10 * batch["obs"])[0].detach().abs().max()) <= 1.0


class Bandit(gymnasium.Env):
    """One decision; the data have actions near -0.7 and 0.7, and the second is better."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action[0] > 0), True, False, {}


def test_it_takes_the_better_of_two_modes():
    settings = {"dataset": "random", "eta": 0.5, "max_grad_norm": None, "network.sizes": (32, 32)}
    rates = {"lr": 1e-2, "critic_lr": 1e-2, "lr_schedule": "linear"}
    method = api.plan("ofql", Bandit, seed=3, loggers=(), **settings, **rates).build()
    for step in range(200):
        method.progress = step / 200
        sign = torch.randint(2, (128, 1)) * 2.0 - 1.0
        action = (0.7 * sign + 0.05 * torch.randn(128, 1)).clamp(-1, 1)
        batch = {
            "obs": torch.zeros(128, 1),
            "action": action,
            "reward": (action[:, 0] > 0).float(),
            "next_obs": torch.zeros(128, 1),
            "terminated": torch.ones(128, dtype=torch.bool),
            "truncated": torch.zeros(128, dtype=torch.bool),
        }
        method.update(TensorDict(batch, batch_size=[128]))
    drawn = method.policy.act(torch.zeros(1000, 1))[0]["action"]
    assert float((drawn > 0.4).double().mean()) > 0.9

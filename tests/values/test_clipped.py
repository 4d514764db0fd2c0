"""Clipped double Q-learning against numbers worked out here; in use: tests/methods/test_td3.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values.clipped import ClippedQ, smoothed
from polopt.values.critics import QEnsemble

SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))


def make(members=2, **options):
    return ClippedQ(QEnsemble(SPEC, Network((8,)), members=members), **options)


def batch_of(size, **keys):
    draw = torch.Generator().manual_seed(3)
    batch = {
        "obs": torch.randn(size, 3, generator=draw),
        "next_obs": torch.randn(size, 3, generator=draw),
        "action": torch.rand(size, 2, generator=draw),
        "reward": torch.randn(size, generator=draw),
        "terminated": torch.zeros(size, dtype=torch.bool),
        "weight": torch.full((size,), 1 / size),
    }
    return TensorDict(batch | keys, [size])


def test_noise_has_a_deviation_and_a_bound_and_stays_where_the_policy_acts():
    torch.manual_seed(0)
    action = torch.zeros(50_000, 2)
    assert float(smoothed(action, 0.2, 10.0).std()) == pytest.approx(0.2, rel=0.02)
    noise = smoothed(action, 0.2, 0.3)
    assert float(noise.abs().max()) == pytest.approx(0.3)
    assert float((noise.abs() > 0.299).float().mean()) == pytest.approx(0.1336, abs=0.01)  # beyond 1.5 deviations
    edge = smoothed(torch.ones(1000, 1), 0.2, 0.5)
    assert float(edge.max()) == 1.0
    assert float(edge.min()) < 0.6
    assert float(smoothed(torch.ones(1000, 1), 0.2, 0.5, unit=False).max()) > 1.2
    state = torch.get_rng_state()
    assert torch.equal(smoothed(action, 0.0, 0.5), action)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_target_is_of_the_slow_copies_and_time_limits_are_bootstrapped_through():
    part = make(discount=0.5)
    part.critic.forward = lambda obs, action: torch.full((2, 3), 100.0)
    part.target_critic.forward = lambda obs, action: torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 9.0]])
    ends = {"terminated": torch.tensor([False, True, False]), "truncated": torch.tensor([False, False, True])}
    batch = batch_of(3, reward=torch.tensor([1.0, 2.0, 3.0]), **ends)
    assert part.target(batch, batch["action"]).tolist() == [1.5, 2.0, 4.5]
    several = batch.clone().set("discount", torch.tensor([0.25, 0.25, 1.0]))  # of sums over several steps
    assert part.target(several, batch["action"]).tolist() == [1.25, 2.0, 6.0]
    soft = part.target(batch, batch["action"], torch.tensor([1.0, 1.0, -2.0]), 0.1)
    np.testing.assert_allclose(soft, [1.5 - 0.05, 2.0, 4.5 + 0.1], rtol=1e-6)


@pytest.mark.parametrize(("reduce", "values"), [("min", {1.0}), ("mean", {4.0}), ("random-2", {1.0, 4.0})])
def test_members_are_reduced(reduce, values):
    part = make(3, reduce=reduce, discount=1.0)
    part.target_critic.forward = lambda obs, action: torch.tensor([[1.0], [4.0], [7.0]]).expand(3, 5)
    batch = batch_of(5, reward=torch.zeros(5))
    seen = [part.target(batch, batch["action"]) for _ in range(40)]
    assert all(len(set(target.tolist())) == 1 for target in seen)  # one pair for a whole batch
    assert {float(target[0]) for target in seen} == values


def test_what_cannot_be_reduced_is_refused():
    with pytest.raises(UsageError, match="random-2 takes two critics, and there is one"):
        make(1, reduce="random-2")
    with pytest.raises(UsageError, match="not 'max'"):
        make(reduce="max")


def test_the_critic_loss_is_the_squared_error_summed_over_critics(float64):
    part, batch = make(), batch_of(4, target=torch.tensor([1.0, -1.0, 0.5, 2.0]), weight=torch.full((4,), 0.25))
    batch = batch.to(torch.float64)
    loss, metrics = part.critic_loss(batch)
    q = part.critic(batch["obs"], batch["action"])
    expected = sum(torch.nn.functional.mse_loss(member, batch["target"]) for member in q)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["q"], q.mean())
    assert not any(parameter.requires_grad for parameter in part.target_critic.parameters())


@pytest.mark.parametrize(
    "network",
    [Network((8, 8)), Network((8,), normalization="layer"), Network((8, 8), blocks="residual"), "own"],
)
def test_the_first_critic_alone_is_the_first_of_all(network, float64):
    if network == "own":
        network = Network(make=lambda inputs, outputs: torch.nn.Linear(inputs, outputs))
    part, batch = ClippedQ(QEnsemble(SPEC, network, members=3)), batch_of(4).to(torch.float64)
    action = batch["action"].requires_grad_()
    one, every = part.first(batch["obs"], action), part.critic(batch["obs"], action)
    torch.testing.assert_close(one, every[0])
    assert not torch.allclose(every[0], every[1])
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), action)[0] for value in (one, every[0])))
    torch.testing.assert_close(part.critic(batch["obs"], action, members=2), every[:2])


def test_targets_follow():
    part = make(tau=0.25)
    before = [parameter.clone() for parameter in part.target_critic.parameters()]
    with torch.no_grad():
        for parameter in part.critic.parameters():
            parameter.add_(1.0)
    part.follow()
    for old, new in zip(before, part.target_critic.parameters()):
        torch.testing.assert_close(new, old + 0.25)

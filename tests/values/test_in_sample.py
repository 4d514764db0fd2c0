"""The expectile value and the in-sample Q against numbers worked out here; in use: tests/methods/test_iql.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import optimize
from tensordict import TensorDict

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values.in_sample import InSample, expectile_value_loss


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9, 0.99])
def test_the_minimizer_is_the_expectile(tau, float64):
    q = np.random.default_rng(0).normal(size=50)

    def loss(value):
        values = torch.full((50,), float(value))
        return float(expectile_value_loss(values, torch.from_numpy(q), torch.full((50,), 1 / 50), tau))

    found = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x
    above, below = q[q > found], q[q <= found]
    assert tau * (above - found).sum() == pytest.approx((1 - tau) * (found - below).sum(), abs=1e-4)
    if tau == 0.5:
        assert found == pytest.approx(q.mean(), abs=1e-5)


def test_no_gradient_goes_into_q_and_shapes_must_agree():
    q, value = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    expectile_value_loss(value, q, torch.full((3,), 1 / 3), 0.8).backward()
    assert q.grad is None
    np.testing.assert_allclose(value.grad, np.full(3, -2 * 0.8 / 3), rtol=1e-6)
    with pytest.raises(ValueError, match="shapes must be equal"):
        expectile_value_loss(value, torch.ones(3, 1), torch.ones(3), 0.8)


@pytest.mark.parametrize("action", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3])])
def test_it_serves_every_kind_of_action(action):
    spec = Spec(spaces.Box(-1, 1, (4,)), action)
    part = InSample(spec, Network((8,)), expectile=0.9)
    drawn = {
        "Box": torch.rand(5, 2),
        "Discrete": torch.tensor([0, 1, 2, 0, 1]),
        "MultiDiscrete": torch.ones(5, 2).long(),
    }
    batch = TensorDict(
        {
            "obs": torch.randn(5, 4),
            "next_obs": torch.randn(5, 4),
            "action": drawn[type(action).__name__],
            "reward": torch.randn(5),
            "terminated": torch.zeros(5, dtype=torch.bool),
            "weight": torch.full((5,), 0.2),
        },
        [5],
    )
    for loss in (part.value_loss, part.critic_loss):
        value, metrics = loss(batch)
        value.backward()
        assert all(torch.isfinite(each).all() for each in metrics.values())
    assert part.advantage(batch).shape == (5,)
    before = [parameter.clone() for parameter in part.target_critic.parameters()]
    with torch.no_grad():
        for parameter in part.critic.parameters():
            parameter.add_(1.0)
    part.follow()
    for old, new in zip(before, part.target_critic.parameters()):
        torch.testing.assert_close(new, old + 0.005)

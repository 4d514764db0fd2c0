from __future__ import annotations

import itertools
import math

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values import Conservative
from polopt.values.histogram import HistogramQ

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), "a toy")


def critic(low=-10.0, high=0.0, bins=20, spread=0.75):
    torch.manual_seed(0)
    return HistogramQ(SPEC, Network((16,)), 2, low, high, bins, spread)


def test_a_histogram_by_hand():
    q = critic(0.0, 3.0, 3, spread=1.0)  # bins of width 1, deviation 1
    phi = [0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (-1.5, -0.5, 0.5, 1.5)]
    mass = [b - a for a, b in itertools.pairwise(phi)]
    expected = [each / sum(mass) for each in mass]
    assert q.histogram(torch.tensor(1.5)).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_mean_of_a_histogram_is_its_target():
    q = critic()
    target = torch.linspace(-8.5, -1.5, 30)
    histogram = q.histogram(target)
    assert torch.allclose(histogram.sum(-1), torch.ones(30), atol=1e-6)
    assert torch.allclose(q.mean(histogram.log()), target, atol=2e-3)
    beyond = q.histogram(torch.tensor([-50.0, -10.0, 7.0]))
    assert torch.isfinite(beyond).all()
    assert torch.equal(beyond[0], beyond[1])
    assert int(beyond[2].argmax()) == 19


def test_shapes_and_the_loss():
    q = critic()
    obs, action = torch.rand(5, 3), torch.rand(4, 5, 2)
    assert q(obs, action).shape == (2, 4, 5)
    assert q(obs, action[0]).shape == (2, 5)
    logits, target, weight = q.logits(obs, action[0]), -10 * torch.rand(5), torch.full((5,), 0.2)
    one = [
        -(q.histogram(target[row]) * logits[member, row].log_softmax(-1)).sum()
        for member in range(2)
        for row in range(5)
    ]
    assert torch.allclose(q.cross_entropy(logits, target, weight), 0.2 * torch.stack(one).sum())
    with pytest.raises(ValueError, match="shapes must be equal"):
        q.cross_entropy(logits, target.unsqueeze(1), weight)


def test_a_conservative_critic_with_histograms_learns_its_targets():
    torch.manual_seed(0)
    values = Conservative(bins=30, low=-5.0, high=5.0, coefficient=0.0).build(
        SPEC, Network((32,)), discount=0.9, tau=0.1, members=2
    )
    batch = weigh(TensorDict({"obs": torch.rand(16, 3), "action": torch.rand(16, 2), "target": torch.randn(16)}, [16]))
    optimizer = torch.optim.Adam(values.critic.parameters(), lr=1e-2)
    for _ in range(600):
        loss, metrics = values.critic_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (values.critic(batch["obs"], batch["action"]) - batch["target"]).abs().max() < 0.4
    assert float(metrics["q"].detach()) == pytest.approx(float(batch["target"].mean()), abs=0.1)


def test_what_it_refuses():
    with pytest.raises(UsageError, match="from low to high, not from 1 to 1"):
        critic(1.0, 1.0)
    with pytest.raises(UsageError, match="at least 2 bins"):
        Conservative(bins=1)
    with pytest.raises(UsageError, match="set bins, too"):
        Conservative(low=-1.0)

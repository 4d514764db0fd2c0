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
from polopt.core.state import gather, restore
from polopt.networks import Network
from polopt.values import Conservative, Histogram, Implicit
from polopt.values.critics import QEnsemble
from polopt.values.histogram import HistogramQ, make_q, value_range

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), "a toy")


def critic(low=-10.0, high=0.0, bins=20, spread=0.75):
    torch.manual_seed(0)
    return HistogramQ(SPEC, Network((16,)), 2, Histogram(bins, low, high), spread)


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
    values = Conservative(histogram=Histogram(30, -5.0, 5.0), coefficient=0.0).build(
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


def test_an_implicit_critic_with_histograms_learns_its_targets():
    torch.manual_seed(0)
    values = Implicit(histogram=Histogram(30, -5.0, 5.0)).build(SPEC, Network((32,)), discount=0.0, tau=0.1, members=2)
    batch = {"obs": torch.rand(16, 3), "next_obs": torch.rand(16, 3), "action": torch.rand(16, 2)}
    batch |= {"reward": torch.randn(16), "terminated": torch.zeros(16, dtype=torch.bool)}
    batch = weigh(TensorDict(batch, [16]))
    logits = values.critic.logits(batch["obs"], batch["action"])
    loss, _ = values.critic_loss(batch)
    torch.testing.assert_close(loss, values.critic.cross_entropy(logits, batch["reward"], batch["weight"]))
    optimizer = torch.optim.Adam(values.critic.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        values.critic_loss(batch)[0].backward()
        optimizer.step()
    assert (values.critic(batch["obs"], batch["action"]) - batch["reward"]).abs().max() < 0.4


@pytest.mark.parametrize(
    ("reward", "terminated", "discount", "expected"),
    [
        ([-1.0, -1.0, 0.0], [False, False, True], 0.99, (-100.0, 0.0)),  # costs until the goal: those of the paper
        ([0.0, 0.0, 1.0], [False, False, True], 0.99, (0.0, 1.0)),  # a reward at the goal
        ([-16.0, -2.0], [False, False], 0.9, (-160.0, 0.0)),
        ([2.0, -3.0, 5.0, -7.0], [False, False, True, True], 0.5, (-13.0, 9.0)),
        ([1.0, 1.0], [True, True], 1.0, (0.0, 1.0)),
        ([1.0, 1.0], [False, False], 1.0, (0.0, math.inf)),
    ],
)
def test_the_range_of_values_follows_from_the_rewards(reward, terminated, discount, expected):
    found = value_range(torch.tensor(reward), torch.tensor(terminated), discount)
    assert found == pytest.approx(expected, rel=1e-6)


def test_open_ends_are_covered_and_saved_and_given_ones_stay():
    q = make_q(SPEC, Network((4,)), 2, Histogram(10))
    q.cover(-100.0, 0.0)
    assert (float(q.edges[0]), float(q.edges[-1]), len(q.edges)) == (-100.0, 0.0, 11)
    assert float(q.histogram(torch.tensor(-95.0)).argmax()) == 0
    again = make_q(SPEC, Network((4,)), 2, Histogram(10))
    restore(again, gather(q))
    assert torch.equal(again.edges, q.edges)
    half = make_q(SPEC, Network((4,)), 2, Histogram(10, high=5.0))
    half.cover(-100.0, 0.0)
    assert (float(half.edges[0]), float(half.edges[-1])) == (-100.0, 5.0)
    assert isinstance(make_q(SPEC, Network((4,)), 2, None), QEnsemble)


def test_what_it_refuses():
    with pytest.raises(UsageError, match="from low to high, not from 1 to 1"):
        Histogram(low=1.0, high=1.0)
    with pytest.raises(UsageError, match="bins must be at least 2"):
        Histogram(bins=1)
    for low, high in ((0.0, 0.0), (-math.inf, 0.0)):
        with pytest.raises(UsageError, match=f"the range from {low:g} to {high:g}, which no histogram covers"):
            make_q(SPEC, Network((4,)), 2, Histogram()).cover(low, high)

"""Classes of heavy-tailed responses, and action values that are held by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from polopt.core.errors import UsageError
from polopt.values.anchored import AnchoredQ, LogBins


def test_classes_are_zero_and_parts_of_equal_ratio_whose_centers_are_means(float64: None) -> None:
    bins = LogBins(2, 4)
    times = torch.tensor([0.0, 1.0, 5.0, 9.0, 20.0, 60.0, 1000.0, 0.0])  # parts end at 10 and 100
    seen = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    bins.fit(torch.stack([times, seen], 1))
    torch.testing.assert_close(bins.edges[0], torch.tensor([0.0, 10.0, 100.0]))
    torch.testing.assert_close(bins.center, torch.tensor([[0.0, 5.0, 40.0, 1000.0], [0.0, 1.0, 1.0, 1.0]]))
    often = torch.tensor([[2.0, 3.0, 2.0, 1.0], [4.0, 4.0, 0.0, 0.0]])
    torch.testing.assert_close(bins.prior.exp(), (often + 1) / 12)
    found = bins.classes(torch.tensor([[0.0, 0.0], [9.9, 1.0], [10.1, 1.0], [1e9, 0.0]]))
    assert found.tolist() == [[0, 0], [1, 1], [2, 1], [3, 0]]


def test_what_is_beyond_a_thousandth_moves_no_class(float64: None) -> None:
    value = torch.linspace(1.0, 100.0, 5_000)
    bins, other = LogBins(1, 5), LogBins(1, 5)
    bins.fit(value[:, None])
    value[-1] = 1e6
    other.fit(value[:, None])
    torch.testing.assert_close(bins.edges, other.edges)
    assert other.center[0, -1] > 2 * bins.center[0, -1]  # what it is worth does count


def test_means_of_heavy_tails_have_no_bias(float64: None) -> None:
    """Of classes as often as they were, the expectation is the mean of the data; middles of classes are far from it."""
    value = torch.exp(1.5 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1)))
    bins = LogBins(1, 8)
    bins.fit(value)
    often = torch.bincount(bins.classes(value)[:, 0], minlength=8) / len(value)
    logits = often.clamp_min(1e-30).log()
    assert float(bins.mean(logits[None])) == pytest.approx(float(value.mean()))


def test_cross_entropy_is_the_sum_over_responses(float64: None) -> None:
    bins = LogBins(2, 3)
    bins.fit(torch.tensor([[0.0, 1.0], [1.0, 10.0], [100.0, 0.0]]))
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(3))
    probability = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    found = bins.cross_entropy(logits, torch.tensor([[0.0, 9.0], [50.0, 2.0]]), torch.tensor([0.25, 2.0]))
    expected = -0.25 * np.log(probability[0, 0, 0] * probability[0, 1, 2])
    expected -= 2.0 * np.log(probability[1, 0, 2] * probability[1, 1, 1])
    assert float(found) == pytest.approx(expected)
    with pytest.raises(UsageError, match="are at least 0, and some are not"):
        bins.fit(torch.tensor([[-1.0, 0.0]]))


class Fixed(nn.Module):
    """Outputs that are parameters."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = nn.Parameter(torch.randn(outputs, generator=torch.Generator().manual_seed(5)))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.outputs.expand(len(obs), -1)


def test_q_is_the_expected_reward_held_still_plus_what_is_learned(float64: None) -> None:
    net = Fixed(AnchoredQ.outputs(2, 2, 3))
    critic = AnchoredQ(net, 2, 2, 3)
    critic.fit(torch.tensor([[0.0, 1.0], [1.0, 10.0], [100.0, 0.0]]), torch.tensor([2.0, -0.5]))
    table = net.outputs.detach().numpy().reshape(2, 7)
    q = []
    for future, *logits in table:
        chance = np.exp(np.reshape(logits, (2, 3)) + critic.classes.prior.numpy())
        live, price = (chance / chance.sum(-1, keepdims=True) * critic.classes.center.numpy()).sum(-1)
        q.append(future + 2.0 * live - 0.5 * price)
    found = critic(torch.zeros(1, 1))
    np.testing.assert_allclose(found.detach().numpy()[0], q)
    found.sum().backward()
    assert net.outputs.grad is not None
    assert net.outputs.grad.reshape(2, 7).tolist() == [[1.0, *[0.0] * 6]] * 2


def test_without_responses_it_is_one_head() -> None:
    critic = AnchoredQ(Fixed(AnchoredQ.outputs(3, 0, 8)), 3, 0, 8)
    critic.fit(torch.zeros(4, 0), torch.zeros(0))
    torch.testing.assert_close(critic(torch.zeros(2, 1))[1], critic.net.outputs)


def test_classes_are_placed_wherever_they_are_and_in_their_precision() -> None:
    """Data are on the CPU, and the critic perhaps on an accelerator."""
    value = torch.rand(50, 2, dtype=torch.float64)
    assert LogBins(2, 4).to("meta").fit(value) is None
    bins = LogBins(2, 4)
    bins.fit(value)
    assert bins.classes(value).float().mean() == bins.classes(value.float()).float().mean() > 0


def test_what_each_counts_is_of_the_data_and_comes_from_no_other_run() -> None:
    response = torch.tensor([[0.0], [1.0], [4.0]])
    one, other = (AnchoredQ(Fixed(AnchoredQ.outputs(2, 1, 3)), 2, 1, 3) for _ in range(2))
    one.fit(response, torch.tensor([2.0]))
    other.fit(10 * response, torch.tensor([0.5]))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.classes.center, other.classes.center)
    assert one.weights.tolist() == [2.0]

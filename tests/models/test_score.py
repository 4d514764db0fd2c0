"""The score network against scores that are known, and its loss against the formula of denoising."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polopt.core.errors import UsageError
from polopt.models.score import Score, ladder
from polopt.networks import Network


def test_the_ladder():
    torch.testing.assert_close(ladder(1.0, 0.01, 3), torch.tensor([1.0, 0.1, 0.01]))


def test_the_loss_is_that_of_denoising(float64):
    """sigma^2 |S(x + sigma n) + n / sigma|^2, which holds the network to no other sign and no other power of sigma."""
    score = Score(3, Network((8,)))
    x, noise, sigma = torch.randn(5, 3), torch.randn(5, 3), torch.linspace(0.05, 1.0, 5).unsqueeze(-1)
    expected = sigma.square() * (score(x + sigma * noise, sigma) + noise / sigma).square()
    torch.testing.assert_close(score.errors(x, sigma, noise), expected.mean(-1))
    torch.testing.assert_close(score(x, sigma) * sigma, -score.noise(x, sigma))


def test_it_knows_how_much_noise_there_is():
    score, x = Score(2, Network((8,))), torch.randn(4, 2)
    assert not torch.equal(score.noise(x, torch.tensor([0.1])), score.noise(x, torch.tensor([0.3])))


def test_the_score_points_to_the_data():
    """Two modes in the plane: after a short training the score agrees with that of the mixture."""
    torch.manual_seed(0)
    modes, sigma = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.full((1,), 0.3)
    rows = modes[torch.randint(2, (4096,))] + 0.2 * torch.randn(4096, 2)
    score = Score(2, Network((64, 64), "silu"))
    optimizer = torch.optim.Adam(score.parameters(), lr=3e-3)
    for _ in range(300):
        loss = score.errors(rows[torch.randint(4096, (256,))], sigma.expand(256, 1), torch.randn(256, 2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = rows[:500] + sigma * torch.randn(500, 2)
    spread = 0.2**2 + 0.3**2
    logits = -(x.unsqueeze(1) - modes).square().sum(-1) / (2 * spread)
    exact = ((modes - x.unsqueeze(1)) / spread * logits.softmax(1).unsqueeze(-1)).sum(1)
    learned = score(x, sigma.expand(500, 1))
    assert nn.functional.cosine_similarity(learned, exact).mean() > 0.9
    assert 0.7 < (learned.norm() / exact.norm()).item() < 1.3


def test_recurrent_networks_are_refused():
    with pytest.raises(UsageError, match="a score network is feed-forward"):
        Score(2, Network((8,), recurrent="gru"))

"""The gradient of the log density of recorded rows, learned by taking noise away from them.

    score      S(x, sigma) = -eps(x, sigma) / sigma, of the density of rows with N(0, sigma^2 I) added
    loss       E |eps(x + sigma n, sigma) - n|^2 = E sigma^2 |S(x + sigma n, sigma) + n / sigma|^2,   n ~ N(0, I),
               a mean over coordinates
    denoised   x + sigma^2 S(x, sigma): where a row that was seen as x is to be expected

Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; with one network for a ladder of noise,
Song and Ermon 2019, arXiv 1907.05600.
"""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.losses.denoising import denoising
from polopt.networks import Network


def ladder(high: float, low: float, levels: int) -> Tensor:
    """Levels of noise [levels] from `high` down to `low`, each a fixed share of the one before."""
    return torch.linspace(math.log(high), math.log(low), levels).exp()


class Score(nn.Module):
    """The score of rows [..., D] that noise of deviation `sigma` [..., 1] was added to. Rows are standardized. What the
    network predicts is the noise, which is of the order of 1 at every level.

    Raises UsageError for recurrent networks.
    """

    def __init__(self, size: int, network: Network) -> None:
        super().__init__()
        if network.recurrent != "none":
            raise UsageError("a score network is feed-forward: set its recurrent to none")
        self.size = size
        self.net = network.build(spaces.Box(-math.inf, math.inf, (size + 1,)), size, head_gain=1.0)

    def noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """eps [..., D], the noise in x in units of sigma."""
        return self.net(torch.cat([x, sigma.log().expand(*x.shape[:-1], 1)], -1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -self.noise(x, sigma) / sigma

    def errors(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """The loss [...] of rows [..., D] without noise, and of `noise` [..., D] drawn from N(0, I)."""
        return denoising(self.noise(x + sigma * noise, sigma), noise)

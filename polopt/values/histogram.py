"""Values as histograms: an ensemble of critics that is trained by classification."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polopt.core.batch import same_shape
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.encoders import Obs


class HistogramQ(nn.Module):
    """Q(obs, action) of `members` critics, each the mean of a softmax over `bins` equal parts of [low, high].

    Targets become Gaussians of deviation `spread` bins, cut to the support, and the loss is the cross-entropy to them
    (HL-Gauss, Farebrother et al. 2024, arXiv 2403.03950, section 3.1). `forward` returns [E, ...] for actions [..., A]
    as the policy acts, or [n, B, A] beside observations [B, ...]. Raises UsageError for an empty support.
    """

    def __init__(
        self, spec: Spec, network: Network, members: int, low: float, high: float, bins: int, spread: float = 0.75
    ) -> None:
        super().__init__()
        if low >= high:
            raise UsageError(f"the support of a value is from low to high, not from {low:g} to {high:g}")
        self.members = members
        self.deviation = spread * (high - low) / bins
        self.network = network.build(spec.obs, bins, inputs_extra=spec.action_dim, ensemble=members, head_gain=1.0)
        self.edges: Tensor
        self.register_buffer("edges", torch.linspace(low, high, bins + 1), persistent=False)

    def logits(self, obs: Obs, action: Tensor) -> Tensor:
        """Unnormalized log-probabilities [E, ..., bins]."""
        return self.network(obs, action)

    def mean(self, logits: Tensor) -> Tensor:
        """The value [...] of logits [..., bins]."""
        return logits.softmax(-1) @ (0.5 * (self.edges[1:] + self.edges[:-1]))

    def forward(self, obs: Obs, action: Tensor) -> Tensor:
        return self.mean(self.logits(obs, action))

    def histogram(self, target: Tensor) -> Tensor:
        """Probabilities [..., bins] of a target [...]; one beyond the support counts as its end."""
        target = target.clamp(self.edges[0], self.edges[-1]).unsqueeze(-1)
        below = 0.5 * (1.0 + torch.erf((self.edges - target) / (math.sqrt(2.0) * self.deviation)))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def cross_entropy(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Sum over members and decisions of weight * cross-entropy, logits [E, B, bins], target and weight [B]."""
        same_shape(target=target, weight=weight, logits_of_a_member=logits[0, ..., 0])
        error = -(self.histogram(target.detach()) * logits.log_softmax(-1)).sum(-1)
        return (weight * error).sum()

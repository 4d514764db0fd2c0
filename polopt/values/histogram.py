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
from polopt.networks.normalizer import Normalizer
from polopt.values import Histogram
from polopt.values.critics import QEnsemble


class HistogramQ(nn.Module):
    """Q(obs, action) of `members` critics, each the mean of a softmax over equal parts of a support [low, high].

    Targets become Gaussians of deviation `spread` bins, cut to the support, and the loss is the cross-entropy to them
    (HL-Gauss, Farebrother et al. 2024, arXiv 2403.03950, section 3.1). `forward` returns [E, ...] for actions [..., A]
    as the policy acts, or [n, B, A] beside observations [B, ...]. The support is saved with the weights; ends that the
    config leaves open are set by `cover`, and mean nothing before.
    """

    edges: Tensor

    def __init__(
        self,
        spec: Spec,
        network: Network,
        members: int,
        histogram: Histogram,
        spread: float = 0.75,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        self.members = members
        self.histogram_config = histogram
        self.spread = spread
        self.network = network.build(
            spec.obs,
            histogram.bins,
            inputs_extra=spec.action_dim,
            ensemble=members,
            head_gain=1.0,
            normalizer=normalizer,
        )
        low = 0.0 if histogram.low is None else histogram.low
        high = low + 1.0 if histogram.high is None else histogram.high
        self.register_buffer("edges", torch.linspace(low, high, histogram.bins + 1))

    def cover(self, low: float, high: float) -> None:
        """Sets the ends that the config leaves open. Raises UsageError when there is nothing between them."""
        config = self.histogram_config
        low, high = low if config.low is None else config.low, high if config.high is None else config.high
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(
                f"the data's rewards give values the range from {low:g} to {high:g}, which no histogram covers: set "
                "low and high of the histogram"
            )
        self.edges.copy_(torch.linspace(low, high, len(self.edges)))

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
        deviation = self.spread * (self.edges[1] - self.edges[0])
        below = 0.5 * (1.0 + torch.erf((self.edges - target) / (math.sqrt(2.0) * deviation)))
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def cross_entropy(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Sum over members and decisions of weight * cross-entropy, logits [E, B, bins], target and weight [B]."""
        same_shape(target=target, weight=weight, logits_of_a_member=logits[0, ..., 0])
        error = -(self.histogram(target.detach()) * logits.log_softmax(-1)).sum(-1)
        return (weight * error).sum()


def make_q(
    spec: Spec, network: Network, members: int, histogram: Histogram | None, normalizer: Normalizer | None = None
) -> QEnsemble | HistogramQ:
    """Critics whose values are histograms, or numbers without one."""
    if histogram is None:
        return QEnsemble(spec, network, members=members, normalizer=normalizer)
    return HistogramQ(spec, network, members, histogram, normalizer=normalizer)


def value_range(reward: Tensor, terminated: Tensor, discount: float) -> tuple[float, float]:
    """The ends between which every discounted return lies: rewards of decisions that go on may come for ever, those of
    decisions that end an episode once. Both tensors are [...]; an end may be infinite where nothing is discounted."""

    def bound(sign: float) -> float:
        parts = (sign * reward[terminated], sign * reward[~terminated])
        once, ever = (max(0.0, float(part.max())) if len(part) else 0.0 for part in parts)
        return once + (ever / (1.0 - discount) if discount < 1.0 else math.inf if ever else 0.0)

    return 0.0 - bound(-1.0), bound(1.0)

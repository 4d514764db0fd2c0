"""Mirror descent: stay near the previous policy, in KL(new || old) or in a Tsallis divergence (arXiv 2005.09814).

All are weighted sums over decisions (the steps of a chain are averaged, see `spread`), to be multiplied by 1 / step
size. The frozen old policy gets no gradient through its parameters, only (where actions are reparameterized) through
the action.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from polopt.core.batch import Batch, decision_mean, same_shape, spread, weighted_mean
from polopt.core.numeric import bounded_exp


class Divergence(Protocol):
    """A policy with the exact `kl(batch, other)` = KL(self || other) per decision."""

    def kl(self, batch: Batch, other: object) -> Tensor: ...


def exact_proximity(policy: Divergence, old: object, batch: Batch) -> Tensor:
    """sum of weight * KL(policy || old): NEW first, in closed form. Reads `weight` and what the policies read."""
    return weighted_mean(policy.kl(batch, old), batch["weight"])


def reparameterized_proximity(log_prob: Tensor, old_log_prob: Tensor, weight: Tensor) -> Tensor:
    """sum of weight * (log_prob - old_log_prob) for actions of the NEW policy drawn by `rsample`: KL(new || old).

    Both log-densities must be differentiable in the action: the gradient goes through it in both terms.
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    return decision_mean(log_prob - old_log_prob, weight)


def sampled_proximity(log_prob: Tensor, old_log_prob: Tensor, weight: Tensor, q: float = 1.0) -> Tensor:
    """Tsallis proximity from actions of the OLD policy: sum of weight * ratio * (log_{2-q} new - log_{2-q} old).

    log_p(x) = (x^(1-p) - 1) / (1 - p), the logarithm at p = 1; ratio = new / old. The gradient goes through both
    factors; without the ratio it would push away from the old policy. q = 1 is KL(new || old).
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    old_log_prob = old_log_prob.detach()
    ratio = bounded_exp(log_prob - old_log_prob)
    return (spread(weight, log_prob) * ratio * (_q_log(log_prob, 2 - q) - _q_log(old_log_prob, 2 - q))).sum()


def _q_log(log_x: Tensor, p: float) -> Tensor:
    """log_p(x) from log x."""
    return log_x if p == 1 else torch.expm1((1 - p) * log_x) / (1 - p)

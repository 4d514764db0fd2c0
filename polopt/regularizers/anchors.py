"""Penalties that tie a policy to given rows, to the policy that sampled them, or to a fixed reference.

All are weighted sums over decisions, so that micro-batches add up. Log-probabilities are shaped alike, or ValueError;
trailing dimensions that the weight lacks are averaged (`spread`).
"""

from __future__ import annotations

from torch import Tensor

from polopt.core.batch import decision_mean, same_shape
from polopt.regularizers import ReferenceKL
from polopt.regularizers.kl import kl_estimate


def cloning(log_prob: Tensor, weight: Tensor) -> Tensor:
    """-(weight * log_prob).sum(): imitates the given rows.

    On rows of an old policy it is the forward KL(old || policy) up to a constant, and adds its coefficient to every
    advantage of a REINFORCE loss (arXiv 2509.24203, "forward-kl"). On chosen answers, with weight 1 / pairs, it is the
    SUM over tokens of RPO's supervised term (arXiv 2405.16436).
    """
    return -decision_mean(log_prob, weight)


def squared_log_ratio(log_prob: Tensor, old_log_prob: Tensor, weight: Tensor) -> Tensor:
    """(weight * (log_prob - old_log_prob)^2).sum(), WITHOUT the 1/2 of `kl_estimate(..., "k2")`.

    The penalty of OPMD with its 1/2 in the coefficient (arXiv 2501.12599; arXiv 2509.24203, "k2").
    """
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    return decision_mean((log_prob - old_log_prob.detach()).square(), weight)


def reference_penalty(
    config: ReferenceKL, log_prob: Tensor, reference_log_prob: Tensor, weight: Tensor, exact: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """coefficient * KL(policy || reference), to be added to a loss, and the detached KL alone; both 0-d.

    `exact` is `policy.kl(batch, reference)` per decision; only the estimator "exact" wants it, and ValueError says so.
    """
    if (config.estimator == "exact") != (exact is not None):
        raise ValueError(f"a reference penalty with estimator '{config.estimator}' got exact = {exact is not None}")
    kl = exact if exact is not None else kl_estimate(log_prob, reference_log_prob.detach(), config.estimator)
    mean = decision_mean(kl, weight)
    return config.coefficient * mean, mean.detach()

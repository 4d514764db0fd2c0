"""Sampled estimates of a KL divergence (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from torch import Tensor

from polopt.core.batch import same_shape
from polopt.core.numeric import bounded_expm1


def kl_estimate(log_prob: Tensor, reference_log_prob: Tensor, kind: str = "k3") -> Tensor:
    """Estimates KL(policy || reference) per decision, for actions SAMPLED FROM THE POLICY whose `log_prob` comes first.

    With d = log_prob - reference_log_prob: "k1" d, unbiased, high variance; "k2" d^2 / 2, biased, small variance;
    "k3" exp(-d) - 1 + d, unbiased and never negative. Shapes are equal, or ValueError.

    As a loss, in expectation over such actions, they differ: the gradient of k1 is 0 (useless), that of k2 is the
    gradient of KL(policy || reference), that of k3 the gradient of the reverse KL(reference || policy). Below
    d = -20 k3 follows its tangent: one action that the policy has lost makes neither it nor its gradient infinite.
    """
    same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob)
    difference = log_prob - reference_log_prob
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return bounded_expm1(-difference) + difference
    raise ValueError(f"KL estimates are 'k1', 'k2' and 'k3', not '{kind}'")

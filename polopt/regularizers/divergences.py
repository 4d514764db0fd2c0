"""f-divergences D_f(policy || reference) = E_reference[f(u)], u = policy / reference, from log ratios log u.

Every f here is convex with f(1) = f'(1) = 0, so that estimates are never negative; a multiple of u - 1, by which papers
differ, changes no divergence. With d = log u:

| kind | f(u) | slope f'(u) |
|---|---|---|
| reverse-kl | u log u - u + 1 | log u |
| forward-kl | u - 1 - log u | 1 - 1/u |
| jensen-shannon | u log u - (u + 1) log((u + 1) / 2), twice the usual one | log(2u / (1 + u)) |
| total-variation | abs(1 - u) / 2 | sign(log u) / 2 |
| reverse-chi-squared | (u - 1)^2 | 2 (u - 1) |
| forward-chi-squared | (u - 1)^2 / u | 1 - 1/u^2 |
| alpha | (u^(1-a) - (1-a) u - a) / (a (a-1)), a in (0, 1) | (1 - u^-a) / a |

alpha is the reverse KL as a -> 0 and the forward KL as a -> 1. Source: f-DPO, arXiv 2309.16240, table 1, where a
preference loss takes `slope` of the log ratio in the place of the log ratio. The three above alpha: f-DPG, arXiv
2302.08215.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

from polopt.core.batch import same_shape
from polopt.core.numeric import bounded_exp, bounded_expm1

KINDS = (
    "reverse-kl",
    "forward-kl",
    "jensen-shannon",
    "total-variation",
    "reverse-chi-squared",
    "forward-chi-squared",
    "alpha",
)


def slope(log_ratio: Tensor, kind: str = "reverse-kl", alpha: float = 0.5) -> Tensor:
    """f'(u) at log u = `log_ratio`, of any shape: never decreasing, 0 where the policies agree. Differentiable."""
    _check(kind, alpha)
    if kind == "reverse-kl":
        return log_ratio
    if kind == "forward-kl":
        return -bounded_expm1(-log_ratio)
    if kind == "jensen-shannon":
        return math.log(2) - softplus(-log_ratio)
    if kind == "total-variation":
        return log_ratio.sign() / 2
    if kind == "reverse-chi-squared":
        return 2 * bounded_expm1(log_ratio)
    if kind == "forward-chi-squared":
        return -bounded_expm1(-2 * log_ratio)
    return -bounded_expm1(-alpha * log_ratio) / alpha


def divergence(log_prob: Tensor, reference_log_prob: Tensor, kind: str = "reverse-kl", alpha: float = 0.5) -> Tensor:
    """f(u) / u: an unbiased, never negative estimate per decision of D_f, for actions SAMPLED FROM THE POLICY.

    For "reverse-kl" it is the k3 estimate of KL(policy || reference). A number to log or to subtract from rewards; as
    a loss its gradient is not that of the divergence, `divergence_loss` has that. Raises ValueError when shapes differ.
    """
    _check(kind, alpha)
    same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob)
    d = log_prob - reference_log_prob
    inverse = bounded_exp(-d)
    if kind == "reverse-kl":
        return bounded_expm1(-d) + d
    if kind == "forward-kl":
        return -bounded_expm1(-d) - d * inverse
    if kind == "jensen-shannon":
        half = softplus(d) - math.log(2)  # log((u + 1) / 2)
        return d - (1 + inverse) * half
    if kind == "total-variation":
        return bounded_expm1(-d).abs() / 2
    if kind == "reverse-chi-squared":
        return bounded_expm1(d) + bounded_expm1(-d)
    if kind == "forward-chi-squared":
        return bounded_expm1(-d).square()
    return (bounded_exp(-alpha * d) - (1 - alpha) - alpha * inverse) / (alpha * (alpha - 1))


def divergence_loss(
    log_prob: Tensor, reference_log_prob: Tensor, weight: Tensor, kind: str = "reverse-kl", alpha: float = 0.5
) -> Tensor:
    """sum of weight * sg[f'(u)] * log_prob: in expectation over actions of the policy, its gradient is that of D_f.

    sg stops the gradient; the value means nothing. All shapes are equal, or ValueError.
    """
    same_shape(log_prob=log_prob, reference_log_prob=reference_log_prob, weight=weight)
    pull = slope(log_prob.detach() - reference_log_prob.detach(), kind, alpha)
    return (weight * pull * log_prob).sum()


def _check(kind: str, alpha: float) -> None:
    if kind not in KINDS:
        raise ValueError(f"an f-divergence is one of {', '.join(KINDS)}, not '{kind}'")
    if kind == "alpha" and not 0 < alpha < 1:
        raise ValueError(f"alpha of an f-divergence must be inside (0, 1), not {alpha}")

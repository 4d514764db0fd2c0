"""One policy-gradient estimator for every kind of decision: control steps, tokens, turns, denoising steps.

The loss is `policy_gradient(log_prob, ratio, advantage, weight, keep)`; a published variant is a choice of `ratio`,
`keep` and `weight`. Its GRADIENT equals that of the variant's own loss (PPO's min/clamp form, for example); its value
does not, and is not comparable between variants.

Shapes: `log_prob` has one element per decision. A smaller tensor (an advantage [B] beside tokens [B, T]) is aligned on
the left. A smaller weight is shared by the decisions that it lacks: the steps of a chain [N, T, K] beside a weight
[N, T] count as their mean, and a weight [N, T, K] says otherwise (`spread`). In `ratio` levels and `token_weights` the
first dimension counts rows (sequences), the others what a row is made of.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polopt.core.batch import align_left, positive, same_shape, spread
from polopt.core.numeric import bounded_exp

Level = tuple[Tensor, Tensor]


def ratio(log_prob: Tensor, denominator: Tensor | Literal["current", "one"], level: Level | None = None) -> Tensor:
    """Probability ratio of each decision, detached, shaped like `log_prob`.

    `denominator`: log-probabilities of the same decisions under another policy (equal shape), "current" (the ratio is
    exactly 1) or "one" (the ratio is the probability itself).
    `level = (ids, coefficient)` shares one ratio among the decisions of a row that have equal ids: its logarithm is the
    sum over them of coefficient * (log_prob - denominator). `ids` is int64, counted from 0 within each row; both are
    shaped like `log_prob`. ids 0 with coefficient mask / length is the sequence ratio of GSPO (arXiv 2507.18071), with
    coefficient mask the product of the token ratios.
    Beyond e^20 a ratio grows linearly in its logarithm (`bounded_exp`), so that no metric and no gradient overflows.
    Raises ValueError when shapes differ.
    """
    log_prob = log_prob.detach()
    if isinstance(denominator, str):
        if denominator == "current":
            return torch.ones_like(log_prob)
        if denominator != "one":
            raise ValueError(f"denominator must be a tensor, 'current' or 'one', not '{denominator}'")
        difference = log_prob
    else:
        same_shape(log_prob=log_prob, denominator=denominator)
        difference = log_prob - denominator.detach()
    if level is not None:
        difference = _pool(difference, *level)
    return bounded_exp(difference)


def _pool(difference: Tensor, ids: Tensor, coefficient: Tensor) -> Tensor:
    same_shape(difference=difference, ids=ids, coefficient=coefficient)
    rows = (difference.shape[0], -1)
    index, terms = ids.reshape(rows), (coefficient * difference).reshape(rows)
    # A row has at most as many ids as elements: a buffer of that size needs no look at the largest id (no host sync).
    return torch.zeros_like(terms).scatter_add(1, index, terms).gather(1, index).reshape(difference.shape)


def policy_gradient(
    log_prob: Tensor, ratio: Tensor, advantage: Tensor, weight: Tensor, keep: Tensor | float = 1.0
) -> Tensor:
    """-(weight * sg[keep * advantage * ratio] * log_prob).sum(), the score-function loss; sg stops the gradient.

    `log_prob` carries the gradient; the others may have fewer dimensions, see the top of this file. `keep` is any
    non-negative tensor; where it or the weight is 0 a decision is out, even if its ratio has overflowed to infinity.
    A weighted SUM: over micro-batches it adds up exactly. Raises ValueError when a shape is no prefix of log_prob's.
    """
    return -(coefficient(log_prob, ratio, advantage, weight, keep) * log_prob).sum()


@torch.no_grad()
def coefficient(
    log_prob: Tensor, ratio: Tensor, advantage: Tensor, weight: Tensor, keep: Tensor | float = 1.0
) -> Tensor:
    """weight * keep * advantage * ratio, shaped like `log_prob`: what `policy_gradient` multiplies each one with."""
    factor = spread(weight, log_prob) * (align_left(keep, log_prob) if isinstance(keep, Tensor) else keep)
    score = factor * align_left(advantage, log_prob) * align_left(ratio, log_prob)
    return torch.where(factor == 0, 0.0, score)


def clip(
    ratio: Tensor, advantage: Tensor, low: float | Tensor, high: float | Tensor, dual: float | None = None
) -> Tensor:
    """1 where PPO's clipped objective has a gradient, else 0 (arXiv 1707.06347, equation 7), shaped like `ratio`.

    Kept: advantage >= 0 and ratio <= 1 + high, or advantage < 0 and ratio >= 1 - low; both bounds are inclusive, as in
    autograd of min/clamp. `dual` also drops negative advantages with ratio > dual (arXiv 1912.09729).
    """
    advantage = align_left(advantage, ratio)
    kept = torch.where(advantage >= 0, ratio <= 1 + high, ratio >= 1 - low)
    if dual is not None:
        kept = kept & ((advantage >= 0) | (ratio <= dual))
    return kept.to(ratio.dtype)


def two_side(ratio: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """1 where 1 - low <= ratio <= 1 + high, else 0, whatever the advantage (arXiv 2509.24203)."""
    return ((ratio >= 1 - low) & (ratio <= 1 + high)).to(ratio.dtype)


def ring(
    ratio: Tensor,
    advantage: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    outer_low: float,
    outer_high: float,
) -> Tensor:
    """`two_side`, and 1 also where a step from far outside leads back to the old policy (arXiv 2509.24203).

    Those are: advantage >= 0 and ratio <= 1 - outer_low, or advantage <= 0 and ratio >= 1 + outer_high.
    """
    advantage = align_left(advantage, ratio)
    back = ((advantage >= 0) & (ratio <= 1 - outer_low)) | ((advantage <= 0) & (ratio >= 1 + outer_high))
    return torch.maximum(two_side(ratio, low, high), back.to(ratio.dtype))


def cap(ratio: Tensor, high: float | Tensor) -> Tensor:
    """min(ratio, 1 + high) / ratio: the ratio is cut at 1 + high, nothing is dropped (arXiv 2506.13585, equation 5)."""
    return torch.where(ratio > 1 + high, (1 + high) / ratio, 1.0)


def shape(log_prob: Tensor, gamma: float) -> Tensor:
    """gamma / (p + gamma)^2 with p = exp(log_prob): the slope of p / (p + gamma) (arXiv 2504.14945), detached."""
    return gamma / (log_prob.detach().exp() + gamma).square()


def token_weights(mask: Tensor, kind: str, length: float | None = None, rows: Tensor | None = None) -> Tensor:
    """Weights [B, ...] of tokens for one optimizer step, from `mask` (bool [B, ...], True = sampled token).

    "token": every token counts the same, sum 1 (DAPO). "sequence": every sequence counts the same and is the mean over
    its tokens, sum 1 (GRPO). "constant": sum over tokens / `length`, mean over sequences (Dr. GRPO); `length` defaults
    to the number of positions of a row. "sum": sum over tokens, mean over sequences.
    Rows without any token are not counted as sequences. `rows` [B], at least 0, says how much each row counts beside
    the others: with 0 it might as well not be there, with 2 it might as well be there twice.
    Computed once on the whole step, before it is cut into micro-batches: 1 x 8 == 8 x 1.
    """
    weight = mask.to(torch.get_default_dtype())
    tokens = weight.reshape(mask.shape[0], -1).sum(1)
    sequence = (tokens > 0).to(weight.dtype)
    if rows is not None:
        same_shape(rows=rows, tokens=tokens)
        weight, sequence = weight * align_left(rows, weight), sequence * rows
    if kind == "token":
        return weight / positive(weight.sum())
    sequences = positive(sequence.sum())
    if kind == "sequence":
        return weight / align_left(tokens.clamp_min(1.0), weight) / sequences
    if kind == "constant":
        return weight / ((length or mask[0].numel()) * sequences)
    if kind == "sum":
        return weight / sequences
    raise ValueError(f"token weights are 'token', 'sequence', 'constant' or 'sum', not '{kind}'")


def reweighed(weight: Tensor, mask: Tensor, passed: Tensor, kind: str, rows: Tensor | None = None) -> Tensor:
    """Weights [B, T] of the tokens that `passed`, from those of all of `mask`: `token_weights` of this kind, of `rows`.

    Where they are a mean over tokens it becomes one over the tokens that passed. Sequences are counted as before, also
    those of which none did.
    """
    if kind in ("constant", "sum"):
        return weight * passed
    dims = (1,) if kind == "sequence" else (0, 1)
    each = weight.new_ones(len(mask), 1) if rows is None else rows.unsqueeze(1)
    before, after = ((each * tokens).sum(dims, keepdim=True) for tokens in (mask, passed))
    return weight * passed * (before / positive(after))

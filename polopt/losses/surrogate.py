"""From a `Surrogate` config to a loss: the only place that knows what its fields mean."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from polopt.core.batch import align_left, decision_mean, same_shape, weighted_mean
from polopt.core.numeric import bounded_exp, bounded_exps
from polopt.losses import Surrogate
from polopt.losses.estimator import Level, cap, clip, coefficient, ratio, ring, shape, two_side

METRICS = {
    "surrogate": "mean of advantage times ratio where the gradient is kept | small; positive when the step helps",
    "approx_kl": "k3 estimate of KL(old || new) per decision (or token), never negative | 0.003 to 0.03; above: "
    "smaller `lr` or fewer `epochs`",
    "approx_kl_k1": "k1 estimate of the same: noisier, unbiased, may be negative | agrees with the one above",
    "clip_fraction": "share of ratios outside the clip range | 0.05 to 0.3",
}
"""What the numbers of `surrogate_loss` mean, and after | what to look for: see `Settings.metrics`."""


def surrogate_loss(
    surrogate: Surrogate,
    log_prob: Tensor,
    old_log_prob: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    *,
    clip_scale: float | Tensor = 1.0,
    mask: Tensor | None = None,
    level: Level | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss and metrics of one (micro-)batch; every number is a weighted sum over decisions.

    `log_prob` and `old_log_prob` have equal shapes, one element per decision; `advantage` and `weight` have that shape
    or leading dimensions of it; decisions that the weight lacks, such as the steps of a chain, are averaged (`spread`).
    `old_log_prob` may be None (demonstrations) where the variant does not need it: the metrics then take the current
    policy for the old one. `clip_scale` multiplies the clip range (an annealed clip), not the outer bounds of a ring.
    `mask` (bool, shaped like `log_prob`; none: where the weight is not 0) says which decisions a ratio of level
    "sequence" is a mean over, the first dimension counting rows. `level` (see `ratio`) replaces the surrogate's own.

    The loss has the variant's gradient, not its value: it is meant for `backward`. Metrics, detached:
    `surrogate` sum of weight * keep * advantage * ratio; `approx_kl` k3 and `approx_kl_k1` k1 estimate of
    KL(old || current) per decision, from actions of the old policy; `clip_fraction` share of ratios out of the range.
    Raises ValueError when shapes do not fit, or when an old_log_prob that is needed is missing.
    """
    if old_log_prob is None:
        if surrogate.needs_old:
            raise ValueError("this surrogate needs old_log_prob")
        old_log_prob = log_prob.detach()
    if level is None and surrogate.level == "sequence":
        mask = (align_left(weight, log_prob) != 0).expand_as(log_prob) if mask is None else mask
        level = sequence_level(mask, log_prob)
    same_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    with torch.no_grad():  # of a loss by its gradient only the last line has one
        difference = log_prob - old_log_prob
        against_old, excess = bounded_exps(difference)
        if level is not None:
            against_old = ratio(log_prob, old_log_prob, level)
        if surrogate.keep == "shape":
            kept = shape(log_prob, surrogate.shape_gamma)
        else:
            kept = keep(surrogate, against_old, advantage, clip_scale)
        used = against_old
        if surrogate.denominator != "old":
            used = ratio(log_prob, cast(Literal["current", "one"], surrogate.denominator), level)
        score = coefficient(log_prob, used, advantage, weight, kept)
        low, high = surrogate.scaled_range(clip_scale)
        metrics = {
            "surrogate": score.sum(),
            "approx_kl": decision_mean(excess - difference, weight),  # `kl_estimate`, of what is there already
            "approx_kl_k1": -decision_mean(difference, weight),
            "clip_fraction": decision_mean((against_old < low) | (against_old > high), weight),
        }
    return -(score * log_prob).sum(), metrics


def expected_advantage(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """sum of weight ratio advantage, all [...]: the surrogate by value, which a line search compares."""
    return weighted_mean(bounded_exp(log_prob - old_log_prob) * advantage, weight)


def sequence_level(mask: Tensor, log_prob: Tensor) -> Level:
    """The level of one ratio per row, exp of the mean of its log ratios where `mask` is True (arXiv 2507.18071).

    `mask` is bool and shaped like `log_prob`, the first dimension counting rows. Raises ValueError when shapes differ.
    """
    same_shape(mask=mask, log_prob=log_prob)
    present = mask.to(log_prob.dtype)
    count = present.reshape(mask.shape[0], -1).sum(1).clamp_min(1.0)
    return torch.zeros_like(mask, dtype=torch.int64), present / align_left(count, present)


def keep(surrogate: Surrogate, ratio: Tensor, advantage: Tensor, clip_scale: float | Tensor = 1.0) -> Tensor:
    """How much of each decision's gradient stays, from its ratio against the old policy; shaped like `ratio`.

    Raises ValueError for "shape", which does not look at that ratio.
    """
    low, high = surrogate.clip_low * clip_scale, surrogate.clip_high * clip_scale
    match surrogate.keep:
        case "all":
            return torch.ones_like(ratio)
        case "clip":
            return clip(ratio, advantage, low, high, surrogate.dual_clip)
        case "two-side":
            return two_side(ratio, low, high)
        case "ring":
            return ring(ratio, advantage, low, high, surrogate.ring_low, surrogate.ring_high)
        case "cap":
            return cap(ratio, high)
    raise ValueError(f"keep '{surrogate.keep}' is no function of the ratio")

"""From a `Surrogate` config to a loss: the only place that knows what its fields mean."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from polopt.core.batch import align_left
from polopt.losses import Surrogate
from polopt.losses.estimator import Level, clip, policy_gradient, ratio
from polopt.regularizers.kl import kl_estimate


def surrogate_loss(
    surrogate: Surrogate,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    *,
    clip_scale: float | Tensor = 1.0,
    level: Level | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss and metrics of one (micro-)batch; every number is a weighted sum over decisions.

    `log_prob` and `old_log_prob` have equal shapes, one element per decision; `advantage` and `weight` have that shape
    or leading dimensions of it. `clip_scale` multiplies the clip range (an annealed clip). `level`: see `ratio`.

    The loss has the variant's gradient, not its value: it is meant for `backward`. Metrics, detached:
    `surrogate` sum of weight * keep * advantage * ratio; `approx_kl` k3 and `approx_kl_k1` k1 estimate of
    KL(old || current) per decision, from actions of the old policy; `clip_fraction` share of ratios out of the range.
    """
    against_old = ratio(log_prob, old_log_prob, level)
    kept = keep(surrogate, against_old, advantage, clip_scale)
    used = against_old
    if surrogate.denominator != "old":
        used = ratio(log_prob, cast(Literal["current", "one"], surrogate.denominator), level)
    loss = policy_gradient(log_prob, used, advantage, weight, kept)

    with torch.no_grad():
        spread = align_left(weight, log_prob)
        low, high = surrogate.clip_range
        outside = (against_old < 1 - (1 - low) * clip_scale) | (against_old > 1 + (high - 1) * clip_scale)
        metrics = {
            "surrogate": -policy_gradient(torch.ones_like(log_prob), used, advantage, weight, kept),
            "approx_kl": (spread * kl_estimate(old_log_prob, log_prob, "k3")).sum(),
            "approx_kl_k1": (spread * kl_estimate(old_log_prob, log_prob, "k1")).sum(),
            "clip_fraction": (spread * outside).sum(),
        }
    return loss, metrics


def keep(surrogate: Surrogate, ratio: Tensor, advantage: Tensor, clip_scale: float | Tensor = 1.0) -> Tensor:
    """How much of each decision's gradient stays, from its ratio against the old policy; shaped like `ratio`."""
    if surrogate.keep == "clip":
        low, high = surrogate.clip_low * clip_scale, surrogate.clip_high * clip_scale
        return clip(ratio, advantage, low, high, surrogate.dual_clip)
    return torch.ones_like(ratio)

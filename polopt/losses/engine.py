"""The sampler's log-probabilities against the trainer's: how far apart they are, and weights that correct for it.

A generation engine computes in other shapes, kernels or precision than the trainer, so its log-probabilities differ
from those of the same weights in the trainer. Importance weights exp(log_prob - engine_log_prob), truncated, make an
estimate from the engine's samples one of the trainer's policy ("truncated importance sampling" of Yao et al. 2025,
"Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
"""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import align_left, same_shape
from polopt.core.numeric import bounded_exp


@torch.no_grad()
def engine_gap(log_prob: Tensor, engine_log_prob: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Mismatch over the tokens of `mask` (all [B, T]): `engine_gap` mean and `engine_gap_max` largest |difference| of
    log-probabilities, in nats, and `engine_ratio` mean of exp(log_prob - engine_log_prob), which is 1 without any."""
    same_shape(log_prob=log_prob, engine_log_prob=engine_log_prob, mask=mask)
    count = mask.sum().clamp_min(1)
    difference = torch.where(mask, log_prob - engine_log_prob, 0.0)
    return {
        "engine_gap": difference.abs().sum() / count,
        "engine_gap_max": difference.abs().amax(),
        "engine_ratio": torch.where(mask, bounded_exp(difference), 0.0).sum() / count,
    }


@torch.no_grad()
def truncated_importance(log_prob: Tensor, engine_log_prob: Tensor, mask: Tensor, cap: float, level: str) -> Tensor:
    """Weights [B, T]: min(exp(log_prob - engine_log_prob), cap) per "token", or of the sum over each row's tokens per
    "sequence". All arguments are [B, T]; outside of the mask the difference counts as 0."""
    same_shape(log_prob=log_prob, engine_log_prob=engine_log_prob, mask=mask)
    difference = torch.where(mask, log_prob - engine_log_prob, 0.0)
    if level == "sequence":
        difference = align_left(difference.sum(1), difference).expand_as(difference)
    elif level != "token":
        raise ValueError(f"engine weights are per 'token' or 'sequence', not '{level}'")
    return bounded_exp(difference).clamp_max(cap)

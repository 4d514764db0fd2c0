"""Statistics within groups: rows that share a baseline (the answers to one prompt, the decisions of one minute).

`group` holds dense ids, int64 from 0 and below the number of elements; it is shaped like `x`, whatever that shape is.
Where `valid` (bool) is False an element counts in no statistic. Every result is shaped like `x`: each element gets the
number of its own group. Nothing here looks at the number of groups, so nothing waits for a device. Raises ValueError
when shapes differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape
from polopt.values import GroupBaseline


def group_sum(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum of the valid elements of a group."""
    same_shape(x=x, group=group, valid=_valid(x, valid))
    terms = torch.where(_valid(x, valid), x, 0.0).reshape(-1)
    index = group.reshape(-1)
    return torch.zeros_like(terms).index_add(0, index, terms)[index].reshape(x.shape)


def group_count(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Number of valid elements of a group, in the dtype of `x`."""
    return group_sum(torch.ones_like(x), group, valid)


def group_mean(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of the valid elements of a group, 0 where there is none."""
    return group_sum(x, group, valid) / group_count(x, group, valid).clamp_min(1.0)


def group_std(x: Tensor, group: Tensor, valid: Tensor | None = None, ddof: int = 1) -> Tensor:
    """Standard deviation (dividing by n - ddof) of the valid elements of a group, 0 where there are fewer than two."""
    deviation = x - group_mean(x, group, valid)
    degrees = (group_count(x, group, valid) - ddof).clamp_min(1.0)
    return (group_sum(deviation.square(), group, valid) / degrees).sqrt()


def group_max(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Largest valid element of a group, 0 where there is none."""
    same_shape(x=x, group=group, valid=_valid(x, valid))
    terms = torch.where(_valid(x, valid), x, -torch.inf).reshape(-1)
    index = group.reshape(-1)
    top = torch.full_like(terms, -torch.inf).scatter_reduce(0, index, terms, "amax")[index].reshape(x.shape)
    return torch.where(top.isfinite(), top, 0.0)


def group_equal(x: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Whether the valid elements of a group are all the same (bool), also where there is one or none."""
    return group_sum((x != group_max(x, group, valid)).to(x.dtype), group, valid) == 0


def group_log_avg_exp(x: Tensor, group: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """temperature * log(mean exp(x / temperature)) over the valid elements of a group, 0 where there is none.

    The baseline of OPMD (arXiv 2501.12599; arXiv 2509.24203): near the mean at a high temperature, near the largest
    element at a low one.
    """
    top = group_max(x / temperature, group, valid)
    total = group_sum((x / temperature - top).exp(), group, valid)
    count = group_count(x, group, valid)
    return torch.where(count > 0, temperature * (top + (total / count).log()), 0.0)


def group_advantage(config: GroupBaseline, reward: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """(reward - baseline - shift) / scale, as `GroupBaseline` says."""
    same_shape(reward=reward, group=group, valid=_valid(reward, valid))
    over = torch.zeros_like(group) if config.baseline == "batch" else group
    count = group_count(reward, over, valid)
    match config.baseline:
        case "leave-one-out":
            baseline = (group_sum(reward, over, valid) - reward) / (count - 1).clamp_min(1.0)
        case "log-avg-exp":
            baseline = group_log_avg_exp(reward, over, config.temperature, valid)
        case "none":
            baseline = torch.zeros_like(reward)
        case _:
            baseline = group_mean(reward, over, valid)
    if config.baseline != "none":  # exactly, so that a deviation of 0 does not blow up what rounding leaves
        exact = baseline + (reward - baseline).detach()  # the reward, with the gradient of the baseline
        baseline = torch.where(group_equal(reward, over, valid), exact, baseline)
    baseline, alone = baseline + config.shift, count <= 1
    advantage = reward - (baseline if config.baseline == "none" else torch.where(alone, 0.0, baseline))
    if config.std != "none":
        over = group if config.std == "group" else torch.zeros_like(group)
        spread = advantage if config.std == "batch-centered" else reward
        scale = group_std(spread, over, valid, config.ddof) + config.std_eps
        several = group_count(spread, over, valid) > 1
        advantage = advantage / torch.where(several, scale, 1.0)
        advantage = torch.where(several & group_equal(spread, over, valid), 0.0, advantage)
    if config.single == "zero":
        advantage = torch.where(alone, 0.0, advantage)
    return torch.where(_valid(reward, valid), advantage, 0.0)


def soft_penalty(length: Tensor, limit: float, buffer: float) -> Tensor:
    """0 up to `limit` - `buffer` tokens, then falling to -1 at the limit: arXiv 2503.14476, equation 13."""
    return ((limit - buffer - length) / buffer).clamp(-1.0, 0.0)


def _valid(x: Tensor, valid: Tensor | None) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool) if valid is None else valid

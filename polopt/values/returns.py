"""Returns and advantages of recorded decisions. Time is the LAST dimension, any dimensions may lead.

Three facts about the end of a decision are never merged. `terminated`: the future is worth 0, so there is no bootstrap.
`truncated`: the future goes on unseen, so bootstrap, but the next column is another episode. The last column: the same
as a truncation. `next_value` is therefore always the value of the TRUE successor (of the final observation at an end),
not of the column to the right.

Objectives stand in front, rewards and values [m, N, T]: flags, discounts per decision and masks may then be [N, T], and
every objective gets what a call of its own would give.

`discount` is a number, or a tensor with one discount per decision. `mask` (True = exists) lets columns be skipped: the
result is that of the row without them, and 0 in them; `next_value` must then look over the gap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape

Discount = float | Tensor


def recursion(term: Tensor, factor: Tensor, mask: Tensor | None = None) -> Tensor:
    """y_t = term_t + factor_t * y_{t+1} along the last dimension, y = 0 after its end; differentiable.

    One fused operation per column, in the textbook order of additions, so that holes and padding change no bit.
    On one CPU core [8, 2048] takes 6 ms and [4096, 24] 0.4 ms, 1 or 2 per cent of a PPO update. (A doubling scan of
    log2(T) passes takes 0.3 and 0.5 ms, but adds in an order that depends on where the holes are.)
    """
    same_shape(term=term, factor=factor)
    if mask is not None:
        same_end(term, mask=mask)
        term, factor = torch.where(mask, term, 0.0), torch.where(mask, factor, 1.0)
    terms, factors = (x.movedim(-1, 0).contiguous().unbind(0) for x in (term, factor))
    columns = list(terms)
    for t in range(len(columns) - 2, -1, -1):
        columns[t] = torch.addcmul(terms[t], factors[t], columns[t + 1])
    result = torch.stack(columns, -1)
    return result if mask is None else torch.where(mask, result, 0.0)


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: Discount,
    gae_lambda: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16): (advantage, returns), both [..., T], detached.

    delta_t = reward + discount (1 - terminated) next_value - value;
    advantage_t = delta_t + discount gae_lambda (1 - (terminated or truncated)) advantage_{t+1};
    returns = advantage + value. All tensors are [..., T]; raises ValueError when shapes differ.
    """
    same_shape(reward=reward, value=value, next_value=next_value)
    same_end(reward, terminated=terminated, truncated=truncated)
    discount = _discount(discount, reward)
    delta = reward + torch.where(terminated, 0.0, discount * next_value) - value
    factor = torch.where(terminated | truncated, 0.0, discount * gae_lambda)
    advantage = recursion(delta, factor, mask)
    returns = advantage + value
    return advantage, returns if mask is None else torch.where(mask, returns, 0.0)


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: Discount,
    trace: float | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """TD(lambda) returns [..., T] with `trace` as lambda (Sutton and Barto, equation 12.18, recursive form).

    G_t = reward + discount (1 - terminated) ((1 - trace) next_value + trace G_{t+1}), with trace 0 where the row stops
    or the decision ends its episode. trace 0 is the one-step target, trace 1 the discounted sum with one bootstrap.
    Where next_value is the value of the next column it equals `gae` plus value. Differentiable in reward and values.
    """
    same_shape(reward=reward, next_value=next_value)
    same_end(reward, terminated=terminated, truncated=truncated)
    discount = _discount(discount, reward)
    factor = torch.where(terminated | truncated | _last(reward, mask), 0.0, discount * trace)
    next_value = torch.where(terminated, 0.0, next_value)
    term = reward + (discount - factor) * next_value
    return recursion(term, factor, mask)


def discounted_returns(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: Discount,
    next_value: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Sum of discounted rewards up to the end of the episode or row, [..., T].

    With `next_value`, truncations and the last column are bootstrapped from it; without, the sum is plain Monte Carlo
    and an unfinished episode counts what was seen of it.
    """
    if next_value is not None:
        return lambda_returns(reward, next_value, terminated, truncated, discount, 1.0, mask)
    same_end(reward, terminated=terminated, truncated=truncated)
    factor = torch.where(terminated | truncated, 0.0, _discount(discount, reward))
    return recursion(reward, factor, mask)


def n_step_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, discount: Discount, n: int
) -> Tensor:
    """n rewards and a bootstrap (Sutton and Barto, equation 7.1), [..., T]; fewer where the episode or the row ends.

    Raises ValueError for n < 1.
    """
    same_shape(reward=reward, next_value=next_value)
    same_end(reward, terminated=terminated, truncated=truncated)
    if n < 1:
        raise ValueError(f"n-step returns need n >= 1, not {n}")
    discount = _discount(discount, reward)
    one_step = reward + torch.where(terminated, 0.0, discount * next_value)
    stops = terminated | truncated | _last(reward, None)
    returns = one_step
    for _ in range(min(n, reward.shape[-1]) - 1):
        # The n-step return of t is its reward and the (n - 1)-step return of t + 1; roll wraps only into `stops`.
        returns = torch.where(stops, one_step, reward + discount * returns.roll(-1, -1))
    return returns


def standardize(advantage: Tensor, weight: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """(advantage - mean) / (std + epsilon) over the decisions that exist; std with n - 1.

    `weight` is a mask or the batch's weight: where it is 0 a decision does not exist and gives 0; the others count
    alike. A single decision gives 0. Called once per optimizer step, before micro-batches are split.
    What stands in front of the dimensions of `weight` (objectives [m, N, T] beside [N, T]) is standardized one by one.
    """
    if weight is not None and weight.dim() < advantage.dim():
        return torch.stack([standardize(each, weight, epsilon) for each in advantage])
    if weight is None:
        return standardize_rows(advantage.reshape(1, -1), epsilon).view_as(advantage)
    exists = weight > 0
    same_shape(advantage=advantage, weight=exists)
    count = exists.sum()
    mean = torch.where(exists, advantage, 0.0).sum() / count.clamp_min(1)
    centered = torch.where(exists, advantage - mean, 0.0)
    return centered / ((centered.square().sum() / (count - 1).clamp_min(1)).sqrt() + epsilon)


def standardize_rows(rows: Tensor, epsilon: float = 1e-8) -> Tensor:
    """`standardize` of each row of [n, elements] by itself, where all exist."""
    variance, mean = torch.var_mean(rows, 1, correction=min(1, rows.shape[1] - 1), keepdim=True)
    return (rows - mean) / (variance.sqrt() + epsilon)


def explained_variance(value: Tensor, returns: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - Var(returns - value) / Var(returns), 0-d, detached: 1 for a perfect critic, 0 for one that knows the mean.

    `weight` is a mask or the batch's weight. 0 when all returns are equal: there is nothing to explain. What stands in
    front of its dimensions (objectives) gets one number each, [m].
    """
    if weight is not None and weight.dim() < returns.dim():
        return torch.stack([explained_variance(*pair, weight) for pair in zip(value, returns, strict=True)])
    weight = torch.ones_like(returns) if weight is None else weight.to(returns.dtype)
    same_shape(value=value, returns=returns, weight=weight)
    weight = weight / weight.sum()

    def variance(x: Tensor) -> Tensor:
        return (weight * (x - (weight * x).sum()).square()).sum()

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - value) / total, 0.0).detach()


def same_end(reward: Tensor, **others: Tensor) -> None:
    """Raises ValueError unless each other tensor has the shape of `reward`, or lacks some of its first dimensions."""
    for name, other in others.items():
        front = reward.dim() - other.dim()
        if front < 0 or reward.shape[front:] != other.shape:
            raise ValueError(
                f"shapes must be equal, but for objectives in front: rewards {tuple(reward.shape)}, "
                f"{name} {tuple(other.shape)}"
            )


def _discount(discount: Discount, reward: Tensor) -> Tensor:
    """One discount per decision, shaped like `reward`."""
    if isinstance(discount, Tensor) and discount.dim() > 0:
        same_end(reward, discount=discount)
        return discount.expand_as(reward)
    return torch.ones_like(reward) * discount


def _last(like: Tensor, mask: Tensor | None) -> Tensor:
    """True in the last column (that exists) of each row."""
    exists = torch.ones_like(like, dtype=torch.bool) if mask is None else mask
    after = exists.flip(-1).cumsum(-1).flip(-1)
    return exists & (after == 1)

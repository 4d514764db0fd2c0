"""Values of an empirical tabular model with confidence: optimistic planning (UCBVI) and lower bounds of given policies.

Azar et al. 2017 (arXiv 1703.05449) for the optimistic values. Everything is float64 and non-stationary: tables are
[H, S, A], values [H + 1, S] with V[H] = 0 and rewards in [0, 1], so that values lie in [0, H].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bonus(NamedTuple):
    """The width b = deviation sqrt(Var(V~)) + constant + gap P^ (V~ - V_), with deviation and constant [H, S, A]."""

    deviation: Tensor
    constant: Tensor
    gap: float


def practical(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    """3 sqrt(Var L / n) + 1.4 H L / n + sqrt(L / n)."""
    rate = log_term / visits
    return Bonus(3 * rate.sqrt(), 1.4 * horizon * rate + rate.sqrt(), 0.0)


def bernstein(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    """3 sqrt(Var L / n) + 14 H^2 L / n + P^ (V~ - V_) / H."""
    rate = log_term / visits
    return Bonus(3 * rate.sqrt(), 14 * horizon**2 * rate, 1 / horizon)


def hoeffding(visits: Tensor, horizon: int, log_term: float) -> Bonus:
    """H sqrt(L / n)."""
    return Bonus(torch.zeros_like(visits), horizon * (log_term / visits).sqrt(), 0.0)


BONUSES = {"practical": practical, "bernstein": bernstein, "hoeffding": hoeffding}


def scaled(bonus: Bonus, scale: float, visits: Tensor) -> Bonus:
    """The bonus times `scale`, and H where nothing was seen (there P^ is 0, and so are variance and gap)."""
    seen, horizon = visits > 0, float(len(visits))
    constant = torch.where(seen, scale * bonus.constant, horizon)
    return Bonus(torch.where(seen, scale * bonus.deviation, 0.0), constant, scale * bonus.gap)


class Bounds(NamedTuple):
    """The optimistic policy [H, S, A] and V~ [H + 1, S], and what lower bounds need: Q_ at step h is
    max(0, floor + slope V_{h+1}) with floor [H, S, A] and slope [H, S, A, S]."""

    policy: Tensor
    upper: Tensor
    floor: Tensor
    slope: Tensor


def optimistic_plan(reward: Tensor, transition: Tensor, bonus: Bonus) -> Bounds:
    """Value iteration on Q~ = min(H, r + P^ V~ + b); the policy takes the first of equal actions.

    Args:
        reward: mean rewards [H, S, A]; transition: frequencies [H, S, A, S]; both 0 where nothing was seen.
    """
    horizon, states, _ = reward.shape
    policy, floor = torch.zeros_like(reward), torch.empty_like(reward)
    upper, lower = reward.new_zeros(2, horizon + 1, states)
    slope = (1 + bonus.gap) * transition
    for h in reversed(range(horizon)):
        after = upper[h + 1]
        mean, square = (transition[h] @ torch.stack((after, after.square()), -1)).unbind(-1)
        width = bonus.deviation[h] * (square - mean.square()).clamp_min(0).sqrt() + bonus.constant[h]
        width = width + bonus.gap * mean  # lacks - gap P^ V_, which `slope` adds for the V_ of any policy
        q = (reward[h] + mean + width - bonus.gap * (transition[h] @ lower[h + 1])).clamp_max(horizon)
        best = q.max(-1, keepdim=True)
        upper[h] = best.values[:, 0]
        policy[h].scatter_(-1, best.indices, 1.0)
        floor[h] = reward[h] - width
        lower[h] = (floor[h] + slope[h] @ lower[h + 1]).clamp_min(0).gather(-1, best.indices)[:, 0]
    return Bounds(policy, upper, floor, slope)


def lower_values(bounds: Bounds, policies: Tensor) -> Tensor:
    """V_ [C, S] at the first step of given policies [C, H, S, A]: Q_ = max(0, r + P^ V_ - b), averaged over actions."""
    table = policies.movedim(0, -1)  # [H, S, A, C]
    value = bounds.floor.new_zeros(bounds.floor.shape[1], len(policies))
    for h in reversed(range(len(bounds.floor))):
        q = (bounds.floor[h].unsqueeze(-1) + bounds.slope[h] @ value).clamp_min(0)
        value = (table[h] * q).sum(1)
    return value.T

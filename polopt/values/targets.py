"""Targets of temporal-difference learning, and reductions over an ensemble of critics (dimension 0)."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape


def td_target(reward: Tensor, discount: float | Tensor, terminated: Tensor, next_value: Tensor) -> Tensor:
    """reward + discount * (1 - terminated) * next_value, [...].

    `terminated` is bool and holds no truncations: time limits are bootstrapped through. `discount` is a number, or one
    per decision (gamma^h for chunks of h steps). What `next_value` holds where terminated is never read.
    Raises ValueError when shapes differ.
    """
    same_shape(reward=reward, terminated=terminated, next_value=next_value)
    if isinstance(discount, Tensor) and discount.dim() > 0:
        same_shape(reward=reward, discount=discount)
    return reward + (discount * next_value).masked_fill(terminated, 0.0)


def soft_value(q: Tensor, log_prob: Tensor, temperature: float | Tensor) -> Tensor:
    """q - temperature * log_prob, [...]: the soft value of a sampled action (arXiv 1812.05905, equation 3)."""
    same_shape(q=q, log_prob=log_prob)
    return q - temperature * log_prob


def reduce_members(q: Tensor, kind: str = "min", generator: torch.Generator | None = None) -> Tensor:
    """[E, ...] -> [...]: "min" (clipped double Q), "mean", or "random-2", the minimum of two members drawn at random.

    "random-2" draws one pair for the whole batch (REDQ, arXiv 2101.05982, algorithm 1, M = 2).
    """
    if kind == "min":
        return q.amin(0)
    if kind == "mean":
        return q.mean(0)
    if kind == "random-2":
        pair = torch.randperm(q.shape[0], generator=generator, device=generator.device if generator else q.device)[:2]
        return q.index_select(0, pair.to(q.device)).amin(0)
    raise ValueError(f"members are reduced by 'min', 'mean' or 'random-2', not '{kind}'")


def pessimistic_pair(mean: Tensor, std: Tensor, noise: Tensor, bound: float = 3.0) -> tuple[Tensor, Tensor]:
    """Expected and sampled return of the critic with the smallest mean (DSAC-T, arXiv 2310.05858).

    `mean`, `std` [E, ...] describe Gaussian returns, `noise` [...] is standard normal and clipped to +-`bound`.
    Returns (q, z), each [...]: q the smallest mean, z = mean + std * noise of that SAME member. The target of the mean
    is built from q, that of the std from z; a minimum over samples would mix members.
    """
    same_shape(mean=mean, std=std)
    same_shape(mean_of_a_member=mean[0], noise=noise)
    q, member = mean.min(0)
    spread = std.gather(0, member.unsqueeze(0)).squeeze(0)
    return q, q + spread * noise.clamp(-bound, bound)


def bounded_target(value: Tensor, target: Tensor, bound: float | Tensor) -> Tensor:
    """value + clamp(target - value, -bound, bound), detached: a target at most `bound` away (DSAC, arXiv 2001.02811).

    `value` may be [E, ...] beside `target` [...]; `bound` is a number, [...] or, per member, [E, 1, ...].
    """
    value = value.detach()
    same_shape(value=value[0] if value.dim() == target.dim() + 1 else value, target=target)
    bound = bound.detach() if isinstance(bound, Tensor) else value.new_full((), bound)
    return value + (target.detach() - value).clamp(-bound, bound)

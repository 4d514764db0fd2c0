"""Weighted regression: critics on targets, policies on actions. Every loss is a weighted sum over decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.batch import same_shape


def squared(error: Tensor) -> Tensor:
    """error^2 / 2."""
    return 0.5 * error.square()


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """error^2 / 2 up to |error| = delta, then linear with slope delta; never negative, continuous derivative."""
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta))


def expectile(error: Tensor, tau: float) -> Tensor:
    """|tau - 1(error < 0)| * error^2 (IQL, arXiv 2110.06169, equation 5), WITHOUT the 1/2 of `squared`.

    `error` is target - prediction: with tau above 0.5, predictions that are too low cost more, and the minimizer of the
    mean is above the mean. `tau` is inside (0, 1).
    """
    squares = error.square()  # times plain numbers: a tensor of them would have the default dtype, not that of `error`
    return torch.where(error < 0, (1 - tau) * squares, tau * squares)


def regression(prediction: Tensor, target: Tensor, weight: Tensor, delta: float | None = None) -> Tensor:
    """Sum of weight * (prediction - target)^2 / 2, or of Huber's function with threshold `delta`.

    `target` and `weight` are [...]; `prediction` is [...] or [E, ...]: an ensemble is the sum over its members.
    No gradient goes into the target. Raises ValueError when shapes differ: (B, 1) against (B,) is never a broadcast.
    """
    same_shape(target=target, weight=weight)
    if prediction.dim() != target.dim() + 1:
        same_shape(prediction=prediction, target=target)
    elif prediction.shape[1:] != target.shape:
        same_shape(prediction_of_a_member=prediction[0], target=target)
    error = prediction - target.detach()
    return (weight * (squared(error) if delta is None else huber(error, delta))).sum()


def value_loss(
    value: Tensor,
    returns: Tensor,
    weight: Tensor,
    *,
    old_value: Tensor | None = None,
    clip: float | Tensor | None = None,
) -> Tensor:
    """The value loss of PPO: sum of weight * 1/2 (value - returns)^2, clipped around `old_value` when `clip` is given.

    Clipped: 1/2 max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) (OpenAI baselines, ppo2; "The 37
    implementation details of PPO", detail 9). `old_value` and `returns` are constants. Raises ValueError when shapes
    differ, or when `clip` comes without `old_value`.
    """
    same_shape(value=value, returns=returns, weight=weight)
    returns = returns.detach()
    error = (value - returns).square()
    if clip is not None:
        if old_value is None:
            raise ValueError("a clipped value loss needs old_value")
        same_shape(value=value, old_value=old_value)
        old_value = old_value.detach()
        bound = clip if isinstance(clip, Tensor) else value.new_full((), clip)
        clipped = old_value + (value - old_value).clamp(-bound, bound)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * (weight * error).sum()


def imitation(error: Tensor, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """Sum of weight * sg[importance] * error: cloning, or advantage-weighted regression with importance exp(A / T).

    `error` is a policy's `imitation_loss` per decision (-log_prob, squared error, ...). All shapes are equal, or
    ValueError.
    """
    same_shape(error=error, weight=weight)
    if importance is None:
        return (weight * error).sum()
    same_shape(error=error, importance=importance)
    return (weight * importance.detach() * error).sum()


def emphasis(log_prob: Tensor, kind: str) -> Tensor | None:
    """How much each demonstrated token counts by its probability p = exp(log_prob), detached, shaped like `log_prob`.

    "none": all the same (None). "probability": p, so that the gradient is that of p (DFT, arXiv 2508.05629; SFT with
    importance weights). "uncertainty": p (1 - p), least for what is known and what is out of reach, most at
    p = 1/2 (CHORD-phi, arXiv 2508.11408).
    """
    if kind == "none":
        return None
    probability = log_prob.detach().exp()
    if kind == "probability":
        return probability
    if kind == "uncertainty":
        return probability * (1 - probability)
    raise ValueError(f"emphasis is 'none', 'probability' or 'uncertainty', not '{kind}'")

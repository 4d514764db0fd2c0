"""The pathwise gradient: improve a policy through a differentiable critic."""

from __future__ import annotations

from torch import Tensor

from polopt.core.batch import same_shape, weighted_mean


def pathwise(q: Tensor, log_prob: Tensor | None, temperature: float | Tensor, weight: Tensor) -> Tensor:
    """(weight * (temperature * log_prob - q)).sum(): the soft policy loss of SAC (arXiv 1812.05905, equation 7).

    `q` is the critic's value at an action drawn by `rsample`, already reduced over critics, and `log_prob` the
    log-density of that action; all are [...] as `weight`. `log_prob` None is a deterministic policy: the loss of DDPG
    and TD3.
    The gradient reaches `q` and `log_prob` only. Raises ValueError when shapes differ.
    """
    if log_prob is None:
        return -weighted_mean(q, weight)
    same_shape(q=q, log_prob=log_prob, weight=weight)
    if isinstance(temperature, Tensor):
        temperature = temperature.detach()
    return weighted_mean(temperature * log_prob - q, weight)

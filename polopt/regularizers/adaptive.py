"""Step sizes and penalties that follow the KL divergence of the last update. Values are 0-d tensors: no host sync."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveRate(nn.Module):
    """The learning rate of rsl_rl: smaller when KL(old || new) is above 2 * target, larger below target / 2.

    Call `update(kl)` with the mean exact KL of the minibatch BEFORE each gradient step, and take `value`. A KL of
    exactly 0 (the first step of an update) changes nothing.
    """

    value: Tensor

    def __init__(self, lr: float, target: float = 0.01, factor: float = 1.5, low: float = 1e-5, high: float = 1e-2):
        super().__init__()
        self.target, self.factor, self.low, self.high = target, factor, low, high
        self.register_buffer("value", torch.tensor(float(lr), dtype=torch.float64))

    @torch.no_grad()
    def update(self, kl: Tensor) -> Tensor:
        """Moves the rate by the rule; returns a copy of the new value, 0-d float64."""
        kl = kl.detach().to(self.value)
        slower = (self.value / self.factor).clamp_min(self.low)
        faster = (self.value * self.factor).clamp_max(self.high)
        close = torch.where((kl > 0) & (kl < self.target / 2), faster, self.value)
        self.value.copy_(torch.where(kl > 2 * self.target, slower, close))
        return self.value.clone()


class AdaptivePenalty(nn.Module):
    """PPO's KL coefficient: doubled after an update with KL > 1.5 * target, halved below target / 1.5.

    arXiv 1707.06347, section 4. `target` None keeps the coefficient.
    """

    value: Tensor

    def __init__(self, initial: float = 1.0, target: float | None = 0.01) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("value", torch.tensor(float(initial)))

    @torch.no_grad()
    def update(self, kl: Tensor) -> Tensor:
        """Moves the coefficient by the rule, once per policy update; returns a copy of the new value, 0-d."""
        if self.target is not None:
            kl = kl.detach()
            change = torch.where(kl > 1.5 * self.target, 2.0, torch.where(kl < self.target / 1.5, 0.5, 1.0))
            self.value.mul_(change)
        return self.value.clone()

"""The temperature that holds a policy's entropy at a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polopt.core.batch import same_shape


class EntropyTemperature(nn.Module):
    """The weight of entropy against reward, learned as the dual variable of "mean entropy >= target", or fixed.

    `target_entropy` in nats, in the units in which the policy acts; None fixes the temperature at `initial`: there
    are no parameters then, and `learned` is False.
    """

    target_entropy: Tensor
    log_alpha: Tensor

    def __init__(self, initial: float = 1.0, target_entropy: float | None = None, *, form: str = "alpha") -> None:
        super().__init__()
        if form not in ("alpha", "log-alpha"):
            raise ValueError(f"the form of a temperature loss is 'alpha' or 'log-alpha', not '{form}'")
        self.learned = target_entropy is not None
        self.form = form
        log_alpha = torch.tensor(math.log(initial) if initial > 0 else -math.inf)
        if target_entropy is None:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.log_alpha = nn.Parameter(log_alpha)
            self.register_buffer("target_entropy", torch.tensor(float(target_entropy)), persistent=False)

    @property
    def value(self) -> Tensor:
        """The temperature, 0-d, detached."""
        return self.log_alpha.detach().exp()

    def loss(self, entropy: Tensor, weight: Tensor | None = None) -> Tensor:
        """alpha * sg[mean entropy - target] (arXiv 1812.05905, equation 18); form "log-alpha" puts log alpha for alpha.

        `entropy` is the mean over the batch (0-d), or [...] per decision with its `weight`, which adds up over
        micro-batches; either exact or from -log_prob of sampled actions. No gradient goes into it. The temperature
        rises while the entropy is below the target. Raises ValueError when shapes differ, RuntimeError when fixed.
        """
        if not self.learned:
            raise RuntimeError("a fixed temperature has no loss")
        same_shape(entropy=entropy, weight=self.target_entropy if weight is None else weight)
        gap = entropy.detach() - self.target_entropy
        gap = gap if weight is None else (weight * gap).sum()
        return (self.log_alpha.exp() if self.form == "alpha" else self.log_alpha) * gap

"""What models of the world read: columns on one scale, and actions of every kind as numbers."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer


class Scale(Normalizer):
    """Mean and deviation of the columns of data, taken once; a column that never changes has deviation 1."""

    def __init__(self, size: int) -> None:
        super().__init__(spaces.Box(-np.inf, np.inf, (size,)))

    def fit(self, rows: Tensor) -> None:
        """Takes the statistics of `rows` [B, size], in place of those before."""
        rows = rows.detach().double()
        self.mean.copy_(rows.mean(0))
        self.variance.copy_(rows.var(0, correction=0))
        self.count.fill_(len(rows))

    @property
    def std(self) -> Tensor:
        return torch.where(self.variance > 1e-12, self.variance.sqrt(), 1.0)

    def forward(self, obs: Obs) -> Obs:
        return (obs - self.mean.to(obs.dtype)) / self.std.to(obs.dtype)

    def back(self, scaled: Tensor) -> Tensor:
        """The inverse of calling it."""
        return scaled * self.std.to(scaled.dtype) + self.mean.to(scaled.dtype)


def factor_counts(spec: Spec) -> list[int]:
    """The number of values of each factor of a discrete action, none for a Box."""
    if isinstance(spec.action, spaces.Discrete):
        return [int(spec.action.n)]
    if isinstance(spec.action, spaces.MultiDiscrete):
        return spec.action.nvec.reshape(-1).tolist()
    if not isinstance(spec.action, spaces.Box):
        raise UsageError(f"a model of the world needs Box or discrete actions; {spec.name} has {spec.action}")
    return []


def action_features(action: Tensor, counts: list[int], factors: bool) -> Tensor:
    """Actions as inputs [..., A]: values, or one-hot vectors side by side."""
    if not counts:
        return action
    parts = action.unbind(-1) if factors else (action,)
    return torch.cat([functional.one_hot(part, count) for part, count in zip(parts, counts, strict=True)], -1)

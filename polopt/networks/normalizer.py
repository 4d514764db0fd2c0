"""Running mean and standard deviation of observations."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.networks.encoders import Obs, is_dict, observed


class Normalizer(nn.Module):
    """Rescales real-valued observations to mean 0 and standard deviation 1 over everything seen so far.

    Statistics are merged batch by batch in float64 (Chan, Golub and LeVeque 1979) and lie in buffers, so they are
    saved and moved with the module. Entries of dict spaces have statistics of their own; uint8 and integer entries
    and `action_mask` pass unchanged. Until the first `update` it only clips, to [-clip, clip].

    One object serves policy and critic. Call `update` at the end of a method's `update`: recorded log-probabilities
    belong to the statistics that the actor saw. In eval mode `update` does nothing.

    What is divided by is the root of (variance + epsilon), plus `floor` where that is given.
    """

    def __init__(self, space: gymnasium.Space, clip: float = 10.0, epsilon: float = 1e-8, floor: float = 0.0) -> None:
        super().__init__()
        self.clip = clip
        self.epsilon = epsilon
        self.floor = floor
        self.parts: dict[str, int] = {}
        self.normalizers = nn.ModuleList()
        self.shape: tuple[int, ...] | None = None
        if isinstance(space, spaces.Dict):
            for key, item in observed(space):
                self.parts[key] = len(self.normalizers)
                self.normalizers.append(Normalizer(item, clip, epsilon, floor))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.shape = tuple(space.shape)
            self.mean: Tensor
            self.variance: Tensor
            self.count: Tensor
            self.register_buffer("mean", torch.zeros(space.shape, dtype=torch.float64))
            self.register_buffer("variance", torch.ones(space.shape, dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, obs: Obs) -> Obs:
        """Normalized copy of `obs` [..., *space.shape]; a dict comes back as a plain dict."""
        if is_dict(obs):
            return {key: self._part(key)(obs[key]) if key in self.parts else obs[key] for key in obs.keys()}
        if self.shape is None:
            return obs
        variance = self.variance + self.epsilon
        scale = (variance.sqrt() + self.floor).reciprocal() if self.floor else variance.rsqrt()
        return ((obs - self.mean.to(obs.dtype)) * scale.to(obs.dtype)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, obs: Obs, mask: Tensor | None = None) -> None:
        """Takes in `obs` [..., *space.shape]; rows where `mask` [...] is False do not count."""
        if not self.training:
            return
        if is_dict(obs):
            for key in self.parts:
                self._part(key).update(obs[key], mask)
            return
        if self.shape is None:
            return
        rows = obs.detach().reshape(-1, *self.shape).to(torch.float64)
        if mask is None:
            count = torch.full_like(self.count, rows.shape[0])
        else:
            keep = mask.reshape(-1, *([1] * len(self.shape)))
            rows = torch.where(keep, rows, 0.0)
            count = keep.sum().to(torch.float64)
        size = count.clamp_min(1.0)
        mean = rows.sum(0) / size
        spread = (rows - mean).square()
        variance = (spread if mask is None else torch.where(keep, spread, 0.0)).sum(0) / size
        total = self.count + count
        share = count / total.clamp_min(1.0)
        delta = mean - self.mean
        # Before the first batch the variance of 1 is only a placeholder: its share is then zero.
        merged = (1.0 - share) * self.variance + share * variance + share * (1.0 - share) * delta.square()
        self.variance.copy_(merged)
        self.mean.add_(share * delta)
        self.count.copy_(total)

    def _part(self, key: str) -> Normalizer:
        part = self.normalizers[self.parts[key]]
        assert isinstance(part, Normalizer)
        return part

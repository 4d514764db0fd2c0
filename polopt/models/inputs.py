"""What models of the world read: columns on one scale, and actions of every kind as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
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


Path = tuple[str, ...]


class Vector:
    """Observations of a Box of floats, or of a Dict of such, as vectors [..., size] and back.

    Raises UsageError for other observations, which no regression predicts.
    """

    def __init__(self, spec: Spec) -> None:
        self.space = spec.obs
        self.parts = list(_leaves(spec.obs, (), spec))
        self.sizes = [math.prod(shape) for _, shape in self.parts]
        self.size = sum(self.sizes)

    def __call__(self, obs: Obs) -> Tensor:
        columns = []
        for path, shape in self.parts:
            leaf = _at(obs, path)
            columns.append(leaf.reshape(*leaf.shape[: leaf.dim() - len(shape)], math.prod(shape)))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def back(self, vector: Tensor) -> Obs:
        """The inverse of calling it: a tensor, or a TensorDict."""
        lead = vector.shape[:-1]
        if isinstance(self.space, spaces.Box):
            return vector.reshape(*lead, *self.space.shape)
        found: dict[Path, Tensor] = {}
        for (path, shape), part in zip(self.parts, vector.split(self.sizes, -1), strict=True):
            found[path] = part.reshape(*lead, *shape)
        obs = TensorDict({}, batch_size=lead, device=vector.device)
        for path, leaf in found.items():
            obs.set(path, leaf)
        return obs


def _leaves(space: spaces.Space, path: Path, spec: Spec) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Path and shape of each Box."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key), spec)
    elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        yield path, space.shape
    else:
        raise UsageError(f"a model of the world needs Box observations of real numbers; {spec.name} has {spec.obs}")


def _at(obs: Obs, path: Path) -> Tensor:
    for key in path:
        obs = obs[key]
    return obs


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

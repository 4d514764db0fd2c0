"""Tensors of what an environment gives, and what it gets of tensors: one way for all who read and write.

Training, evaluation, data sets and `predict` share these readers and writers, so they see the same numbers. What may be
wrong with a single observation is said by `polopt.core.observations`, which worker processes import: it needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.observations import MASK_KEY
from polopt.tasks.facts import Shapes

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


class NonFinite(Exception):
    """NaN or infinity in row `row` of an observation, under the key `where`."""

    def __init__(self, row: int, where: str = "") -> None:
        super().__init__(row)
        self.row = row
        self.where = where


def as_floats(raw: np.ndarray) -> Tensor:
    """A fresh tensor in the default dtype. A plain copy in numpy takes a quarter of the time of `Tensor.to`."""
    dtype = torch.get_default_dtype()
    if raw.dtype == FLOATS.get(dtype):
        return torch.from_numpy(np.array(raw))
    return torch.from_numpy(raw).to(dtype, copy=True)


def unpacked(packed: np.ndarray, shapes: Shapes) -> dict[str, Tensor]:
    """The tensors [N, *shape] in rows [N, K] of `facts.pack`."""
    parts = as_floats(packed).split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(len(part), *shape) for (name, shape), part in zip(shapes.items(), parts)}


def reader(space: spaces.Space, name: str, mask: bool = False) -> Callable[[Any], Any]:
    """A function from a batch of raw observations to fresh tensors (or a TensorDict of them) [N, ...]."""
    if isinstance(space, spaces.Dict):
        parts = {key: reader(part, name, key == MASK_KEY) for key, part in space.spaces.items()}

        def read_dict(raw: Any) -> TensorDict:
            tensors = {}
            for key, read in parts.items():
                try:
                    tensors[key] = read(raw[key])
                except NonFinite as error:
                    raise NonFinite(error.row, f" '{key}'{error.where}") from None
            return TensorDict(tensors, batch_size=[len(next(iter(tensors.values())))])

        return read_dict
    if mask and isinstance(space, (spaces.MultiBinary, spaces.Box)):
        return lambda raw: torch.from_numpy(np.array(raw, dtype=bool))
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        start = torch.as_tensor(space.start, dtype=torch.int64)
        return lambda raw: torch.from_numpy(np.array(raw, dtype=np.int64)) - start
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return lambda raw: torch.from_numpy(np.array(raw))
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):

        def read_box(raw: Any) -> Tensor:
            tensor = as_floats(raw)
            finite = np.isfinite(tensor.numpy())
            if not finite.all():
                raise NonFinite(int((~finite.reshape(len(raw), -1).all(axis=1)).argmax()))
            return tensor

        return read_box
    kind = type(space).__name__
    raise UsageError(
        f"{name} has a {kind} observation space; polopt serves Box, Discrete, MultiDiscrete, MultiBinary and Dict of "
        "these: wrap the environment"
    )


def without_choice(mask: Tensor, space: spaces.Space) -> Tensor:
    """The rows, bool [N], whose mask [N, A] of legal actions leaves nothing to do: in one factor, of several."""
    counts = space.nvec.reshape(-1).tolist() if isinstance(space, spaces.MultiDiscrete) else [mask.shape[-1]]
    return torch.stack([~part.any(-1) for part in mask.split(counts, -1)]).any(0)


def rounded(action: Tensor, space: spaces.Space) -> Tensor:
    """Actions [N, ...] in the environment's units: whole numbers where its Box holds nothing else."""
    whole = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)
    return action.round() if whole and action.is_floating_point() else action


def writer(space: spaces.Space, name: str) -> Callable[[Tensor], np.ndarray]:
    """A function from actions as tensors to a batch of the environment's own, always a copy."""
    dtype = space.dtype
    if isinstance(space, spaces.Box):
        shape = space.shape
        return lambda action: np.array(rounded(action.detach().cpu(), space).numpy(), dtype=dtype).reshape(-1, *shape)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return lambda action: np.array(action.detach().cpu().numpy(), dtype=dtype)
    raise UsageError(
        f"{name} has a {type(space).__name__} action space; polopt serves Box, Discrete and MultiDiscrete: "
        "wrap the environment"
    )

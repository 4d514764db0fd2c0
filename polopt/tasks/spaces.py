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
from polopt.core.observations import MASK_KEY, check_observed, checker, lifted, row_of, rows_in, stacked
from polopt.core.spec import Spec
from polopt.tasks.facts import Shapes

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


class NonFinite(Exception):
    """NaN or infinity in row `row` of an observation, under the key `where`."""

    def __init__(self, row: int, where: str = "") -> None:
        super().__init__(row)
        self.row = row
        self.where = where


def as_floats(raw: np.ndarray) -> Tensor:
    """A fresh tensor in the default dtype, of an array of any layout."""
    dtype = torch.get_default_dtype()
    # numpy copies in a quarter of the time of `Tensor.to`, and reads arrays with negative strides, which torch does not
    return torch.from_numpy(np.array(raw, dtype=FLOATS.get(dtype))).to(dtype)


def unpacked(packed: np.ndarray, shapes: Shapes) -> dict[str, Tensor]:
    """The tensors [N, *shape] in rows [N, K] of `facts.pack`."""
    parts = as_floats(packed).split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(len(part), *shape) for (name, shape), part in zip(shapes.items(), parts)}


def reader(space: spaces.Space, name: str, mask: bool = False) -> Callable[[Any], Any]:
    """A function from a batch of raw observations to fresh tensors (or a TensorDict of them) [N, ...].

    Raises UsageError for a space that is not served.
    """
    check_observed(space, name)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        entries = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = {key: reader(part, name, key == MASK_KEY) for key, part in entries}

        def read_dict(raw: Any) -> TensorDict:
            tensors = {}
            for key, read in parts.items():
                try:
                    tensors[str(key)] = read(raw[key])
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

    def read_box(raw: Any) -> Tensor:
        tensor = as_floats(raw)
        finite = np.isfinite(tensor.numpy())
        if not finite.all():
            raise NonFinite(int((~finite.reshape(len(raw), -1).all(axis=1)).argmax()))
        return tensor

    return read_box


def read_given(spec: Spec, obs: Any) -> tuple[Any, bool]:
    """One observation as the environment gives it, as a batch of one row, and True; or a batch of them, with one more
    dimension in front of every array, and False. Raises UsageError, one sentence, for what is neither."""
    space = spec.raw_obs
    rows = rows_in(space, obs)
    if rows == 0:
        raise UsageError("predict was given a batch without an observation")
    check = checker(space)
    each = [obs] if rows is None else (row_of(space, obs, row) for row in range(rows))
    for row, one in enumerate(each):
        if problem := check(one):
            many = ": it takes one, or a batch of them with one more dimension in front" if "shape" in problem else ""
            raise UsageError(f"predict was given {problem}{many if rows is None else f' (row {row})'}")
    try:
        return reader(space, spec.name)(lifted(space, obs) if rows is None else stacked(space, obs)), rows is None
    except NonFinite as error:
        place = "" if rows is None else f" (row {error.row})"
        raise UsageError(f"predict was given an observation{error.where} that is not finite{place}") from None


def check_followed(followed: Any, rows: int, what: str = "episode") -> None:
    """Raises UsageError where a carry of other many rows than are given now is to go on."""
    before = len(next(iter(followed.values()))) if followed else rows
    if before != rows:
        now = f"{rows} observation{'s' * (rows > 1)}"
        raise UsageError(f"predict follows {before} {what}{'s' * (before > 1)} and was given {now}: call reset() first")


def as_given(space: spaces.Space, seen: Any) -> Any:
    """Observations [N, ...] as the environment gives them, of those that the task serves: the inverse of `reader`."""
    if isinstance(space, spaces.Dict):
        return {key: as_given(part, seen[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_given(part, seen[str(number)]) for number, part in enumerate(space.spaces))
    array = seen.cpu().numpy()
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return (array + space.start).astype(space.dtype)
    whole = array.dtype.kind == "f" and not np.issubdtype(space.dtype, np.floating)
    return (np.rint(array) if whole else array).astype(space.dtype)


def without_choice(mask: Tensor, space: spaces.Space) -> Tensor:
    """The rows, bool [N], whose mask [N, A] of legal actions leaves nothing to do: in one factor, of several."""
    counts = space.nvec.reshape(-1).tolist() if isinstance(space, spaces.MultiDiscrete) else [mask.shape[-1]]
    return torch.stack([~part.any(-1) for part in mask.split(counts, -1)]).any(0)


def rounded(action: Tensor, space: spaces.Space) -> Tensor:
    """Actions [N, ...] in the environment's units: whole numbers where its Box holds nothing else."""
    whole = isinstance(space, spaces.Box) and space.dtype.kind in "iu"
    return action.round() if whole and action.is_floating_point() else action


def writer(space: spaces.Space) -> Callable[[Tensor], np.ndarray]:
    """A function from actions as tensors to a batch of the environment's own, always a copy; for a space that
    `check_spaces` has let pass."""
    dtype = space.dtype
    if isinstance(space, spaces.Box):
        shape = space.shape
        return lambda action: np.array(rounded(action, space).numpy(force=True), dtype=dtype).reshape(-1, *shape)
    return lambda action: np.array(action.numpy(force=True), dtype=dtype)

"""Which starts (prompts, problems) come next. Samplers are saved, so a resumed run goes through the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import RunError, UsageError
from polopt.core.state import Stateful


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """`generator`, or else a new one whose seed is drawn from torch's."""
    return generator or torch.Generator().manual_seed(int(torch.randint(2**31, ())))


class Sequential(Stateful):
    """0, 1, 2, ...; with a `size`, from 0 again after size - 1."""

    learned = False
    saved = ("taken",)

    def __init__(self, size: int | None = None) -> None:
        self.size = None if size is None else _positive(size)
        self.taken = 0

    def draw(self, count: int) -> list[int]:
        ids = range(self.taken, self.taken + count)
        self.taken += count
        return [number if self.size is None else number % self.size for number in ids]


class Shuffled(Stateful):
    """Every id in [0, size) once per epoch, each epoch in a new random order.

    A draw may reach over the end of an epoch; only then can it hold an id twice. `epoch` counts the orders begun.
    """

    learned = False
    saved = ("taken", "epoch")

    def __init__(self, size: int, generator: torch.Generator | None = None) -> None:
        self.size = _positive(size)
        self.generator = own_generator(generator)
        self.taken = 0  # of the present order
        self.epoch = 0
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < count:
            if self.taken == len(self._order):
                self._order = torch.randperm(self.size, generator=self.generator)
                self.taken = 0
                self.epoch += 1
            part = self._order[self.taken : self.taken + count - len(ids)].tolist()
            self.taken += len(part)
            ids += part
        return ids

    def extra_state(self) -> dict[str, Any]:
        return {"order": self._order}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._order = state["order"].clone()


class Weighted(Stateful):
    """Ids in [0, size) without replacement, the next one always with probability proportional to its weight.

    `weights()` gives the present weights [size], finite and not negative, at every draw. If fewer than `count` of them
    are positive, all of these ids are drawn and the rest uniformly among the others.

    Draws are the largest w_i / e_i with e_i exponentially distributed: Efraimidis and Spirakis, "Weighted random
    sampling with a reservoir", 2006. Raises UsageError for more ids than there are, RunError for weights that are none.
    """

    learned = False

    def __init__(self, size: int, weights: Callable[[], Tensor], generator: torch.Generator | None = None) -> None:
        self.size = _positive(size)
        self.weights = weights
        self.generator = own_generator(generator)

    def draw(self, count: int) -> list[int]:
        check_count(count, self.size)
        weights = present(self.weights(), self.size, "weights", low=0.0)
        wait = torch.empty(2, self.size, dtype=torch.float64).exponential_(generator=self.generator)
        # Ids without weight queue behind all others, in random order.
        key = torch.where(weights > 0, weights.clamp_min(1e-300).log() - wait[0].log(), -1e6 - wait[1])
        return key.topk(count).indices.tolist()


def check_count(count: int, size: int) -> None:
    """Raises UsageError for more different ids than there are."""
    if count > size:
        raise UsageError(f"{count} different prompts cannot be drawn from {size}")


def present(values: Tensor, size: int, what: str, low: float = -math.inf) -> Tensor:
    """Values [size] that prompts are drawn by, in float64; RunError when they are not finite, or lie below `low`."""
    values = values.detach().to("cpu", torch.float64)
    if values.shape != (size,):
        raise ValueError(f"{what} have shape {tuple(values.shape)}, not {(size,)}")
    if not (values.isfinite() & (values >= low)).all():
        bound = "" if low == -math.inf else f" and at least {low:g}"
        raise RunError(f"the {what} that prompts are drawn with are not all finite{bound}")
    return values


def _positive(size: int) -> int:
    if size < 1:
        raise UsageError(f"there must be at least one prompt to draw from, not {size}")
    return size

"""What a replay needs where rewards are not those of the task, or not yet known: rewards that are computed anew at
every sample, draws that depend on age, and decisions that are stored one step late.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch, align_left, flat, nested
from polopt.core.errors import UsageError
from polopt.data.base import Acts, Source
from polopt.data.rollouts import Rollouts


def relabeled(batch: Batch, reward: Callable[[Batch], Tensor]) -> Batch:
    """A shallow copy of a sample [B] with the rewards that `reward` gives now to its transitions.

    `reward(transitions) -> [...]` reads what the transitions have; of an n-step sample (`Replay(steps=...)`) they are
    those of "steps" [B, n], and their rewards are discounted and summed as the stored ones were.
    """
    batch = batch.clone(False)
    steps = batch.get("steps", None)
    batch["reward"] = reward(batch) if steps is None else (steps["factor"] * reward(steps)).sum(1)
    return batch


class Weights(ABC):
    """How often a replay draws what it holds, by age. They need no scale; the sums are kept until they change."""

    def __init__(self) -> None:
        self._of: Any = None
        self._sums = torch.zeros(0)

    @abstractmethod
    def __call__(self, oldest: int, count: int) -> Tensor:
        """Weights [count] in float64 of the transitions with the numbers `oldest` (0: the first ever added) to
        `oldest + count - 1`."""

    def depends(self, oldest: int, count: int) -> Any:
        """What the weights depend on: where it is the same, so are they."""
        return oldest, count

    def draw(self, oldest: int, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Numbers [size] of transitions, drawn with replacement."""
        if (now := self.depends(oldest, count)) != self._of:
            self._of, self._sums = now, self(oldest, count).cumsum(0)
        point = torch.rand(size, generator=generator, dtype=torch.float64) * self._sums[-1]
        return oldest + torch.searchsorted(self._sums, point, right=True).clamp_max(count - 1)


class Fading(Weights):
    """A memory that fades: the i-th of N, counted from the oldest, has weight tanh((pi i / N)^e) (arXiv 2512.10477)."""

    def __call__(self, oldest: int, count: int) -> Tensor:
        return (torch.pi * torch.arange(count, dtype=torch.float64) / count).pow(torch.e).tanh()

    def depends(self, oldest: int, count: int) -> Any:
        return count

    def draw(self, oldest: int, count: int, size: int, generator: torch.Generator) -> Tensor:
        if count == 1:  # the oldest has weight 0
            return torch.full((size,), oldest)
        return super().draw(oldest, count, size, generator)


class Blocks(Weights):
    """Blocks of `size` transitions, each of which takes the share `rate` from all that came before (boosting, arXiv
    2404.08513): the first ever added has (1 - rate)^(t - 1) of t blocks, the i-th later one rate (1 - rate)^(t - i).

    Where the ring has overwritten the oldest blocks, those that are left keep their proportions.
    Raises UsageError for a rate outside of (0, 1].
    """

    def __init__(self, size: int, rate: float) -> None:
        super().__init__()
        if not 0.0 < rate <= 1.0:
            raise UsageError(f"a new block takes a share above 0 and at most 1, not {rate:g}")
        self.size = size
        self.rate = rate

    def __call__(self, oldest: int, count: int) -> Tensor:
        block = torch.arange(oldest, oldest + count) // self.size
        return shares(self.rate, int(block[-1]) + 1)[block]


def shares(rate: float, count: int) -> Tensor:
    """Shares [count] in float64, oldest first, of a mixture to which each newcomer was added with the share `rate`:
    they sum to 1."""
    age = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    share = rate * (1.0 - rate) ** age
    share[0] = (1.0 - rate) ** (count - 1)  # nobody was there before it
    return share


class Delayed(Source):
    """The decisions of `source` [N, T], each of them once the next one of its row is known.

    Of the keys `ahead`, a decision gets as "next_NAME" what was recorded at the next one, and zeros where none follows:
    its episode is over. `followed` [N, T], bool, says where one does. A decision whose episode was broken off, as by a
    resume that could not restore the task, is truncated. The latest decision of every row is kept back, and is state;
    it takes the place of `Rollouts` in a `ReplaySource`.
    """

    def __init__(self, source: Rollouts, ahead: Sequence[str]) -> None:
        self.source = source
        self.ahead = tuple(ahead)
        self._kept: Batch | None = None

    @property
    def ledger(self) -> Any:
        return self.source.ledger

    @property
    def task(self) -> Any:
        return self.source.task

    def next(self, actor: Acts) -> Batch:
        window = self.source.next(actor)
        if self._kept is None and window.shape[1] == 1:
            self._kept, window = window, self.source.next(actor)
        if self._kept is not None:
            window = cast(Batch, torch.cat([self._kept.to(window.device), window], 1))
        batch, later, self._kept = window[:, :-1].clone(False), window[:, 1:], window[:, -1:].clone()
        over = batch["terminated"] | batch["truncated"]
        batch["truncated"] = batch["truncated"] | (later["first"] & ~over)
        batch["followed"] = ~over & ~later["first"]
        for name in self.ahead:
            value = later[name]
            batch[f"next_{name}"] = value * align_left(batch["followed"], value)
        return batch

    def episodes(self) -> list[tuple[float, int]]:
        return self.source.episodes()

    def forget(self) -> None:
        self.source.forget()

    def extra_state(self) -> dict[str, Any]:
        return {} if self._kept is None else flat(self._kept)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._kept = TensorDict(nested(state), batch_size=state["reward"].shape[:2]).clone() if state else None

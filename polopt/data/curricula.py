"""Samplers of prompts for curricula: the best of a pool, draws by weight with replacement, fixed rounds, mixtures.

Each draws ids as those of `polopt.data.samplers` do, and is saved with all that it draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polopt.core.errors import RunError, UsageError
from polopt.core.state import Stateful
from polopt.data.episodes import Draws
from polopt.data.samplers import check_count, own_generator, present


class Given(Stateful):
    """The ids that a method has set before each draw, in their order: `sampler.ids = [3, 3, 5]`.

    Raises RunError when other than as many as are set are drawn.
    """

    learned = False
    saved = ("ids",)

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    def draw(self, count: int) -> list[int]:
        if count != len(self.ids):
            raise RunError(f"{len(self.ids)} prompts were chosen, and {count} are to be drawn")
        return list(self.ids)


class Best(Stateful):
    """The ids in [0, size) with the largest of `scores()` [size], in ascending order; of equal ones the first.

    Raises UsageError for more ids than there are, RunError for scores that are not all numbers.
    """

    learned = False

    def __init__(self, size: int, scores: Callable[[], Tensor]) -> None:
        self.size = size
        self.scores = scores

    def draw(self, count: int) -> list[int]:
        check_count(count, self.size)
        scores = present(self.scores(), self.size, "scores")
        return scores.sort(descending=True, stable=True).indices[:count].sort().values.tolist()


class Replaced(Stateful):
    """Ids in [0, size) with replacement, each with probability proportional to its weight.

    `weights()` gives the present weights [size], finite and not negative, at every draw; where all are 0 all ids are
    equally likely. Raises RunError for weights that are none.
    """

    learned = False

    def __init__(self, size: int, weights: Callable[[], Tensor], generator: torch.Generator | None = None) -> None:
        self.size = size
        self.weights = weights
        self.generator = own_generator(generator)

    def draw(self, count: int) -> list[int]:
        weights = present(self.weights(), self.size, "weights", low=0.0)
        weights = weights if weights.sum() > 0 else torch.ones_like(weights)
        return torch.multinomial(weights, count, replacement=True, generator=self.generator).tolist() if count else []


class Rotation(Stateful):
    """All ids in [0, size) in one random order, again and again, drawn once and kept.

    Where fewer than `count` are left the order begins anew; what was left is passed over. Raises UsageError for more
    ids than there are.
    """

    learned = False
    saved = ("taken",)

    def __init__(self, size: int, generator: torch.Generator | None = None) -> None:
        self.size = size
        self.order = torch.randperm(size, generator=own_generator(generator))
        self.taken = 0

    def draw(self, count: int) -> list[int]:
        check_count(count, self.size)
        if self.taken + count > self.size:
            self.taken = 0
        self.taken += count
        return self.order[self.taken - count : self.taken].tolist()

    def extra_state(self) -> dict[str, Any]:
        return {"order": self.order}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.order = state["order"].clone()


class Mixture(Stateful):
    """A share of every draw, rounded down, from one sampler and the rest from another, in turn while both last.

    `maps` give the ids of the task for those of each, such as variants with help; None: they are the same.
    """

    learned = False

    def __init__(
        self,
        first: Draws,
        second: Draws,
        share: float,
        maps: tuple[Callable[[int], int] | None, Callable[[int], int] | None] = (None, None),
    ) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"a share lies between 0 and 1, and {share:g} does not")
        self.first, self.second, self.share, self.maps = first, second, share, maps

    def draw(self, count: int) -> list[int]:
        firsts = int(self.share * count + 1e-9)
        drawn = [sampler.draw(size) for sampler, size in ((self.first, firsts), (self.second, count - firsts))]
        one, other = (
            ids if to is None else [to(number) for number in ids] for ids, to in zip(drawn, self.maps, strict=True)
        )
        both = min(len(one), len(other))
        paired = [number for pair in zip(one, other) for number in pair]
        return [*paired, *one[both:], *other[both:]]

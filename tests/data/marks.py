"""A source that marks its batches with the weight that made them; in a file that a process of its own imports fast."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.ahead import Ahead
from polopt.data.base import Source
from polopt.data.components import Tally


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class Marks(Source):
    """Batches of one row: the weight that made it, its number, and numbers that were drawn."""

    saved = ("made",)

    def __init__(self) -> None:
        self.made = 0
        self.ledger = Ledger()

    def next(self, actor: Any) -> Any:
        self.made += 1
        self.ledger.completions += 3
        drawn = torch.rand(()).item() + random.random() + np.random.random()  # noqa: NPY002
        row = {"weight": actor.value.item(), "number": self.made, "drawn": drawn, "group": 0}
        return TensorDict({name: torch.tensor([value]) for name, value in row.items()}, batch_size=[1])

    def components(self) -> Tally:
        return {"one": [float(self.made), 1.0, 0.0, 1.0]}

    def episodes(self) -> list[tuple[float, int]]:
        return [(float(self.made), 1)]


def served(source: Ahead, actor: Weight, count: int) -> list[tuple[float, ...]]:
    """What the batches of so many updates hold, with the lag that was said; the weight is the number of updates."""
    found = []
    with torch.no_grad():
        for _ in range(count):
            batch = source.next(actor)  # type: ignore[arg-type]
            found.append((*(batch[name].item() for name in ("weight", "number", "drawn")), source.lag))
            actor.value.add_(1.0)
    return found


def begun(where: str = "inline") -> Ahead:
    torch.manual_seed(3)
    return Ahead(Marks(), 2, Ledger(), where)


def check(source: Ahead) -> list[tuple[float, ...]]:
    """Five batches: by which weights, and what they leave of the ledger, the episodes and the generators."""
    luck = torch.get_rng_state(), random.getstate()
    found = served(source, Weight(), 5)
    assert [(weight, lag) for weight, _, _, lag in found] == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    assert [number for _, number, _, _ in found] == [1, 2, 3, 4, 5]
    assert source.ledger.completions == 15  # and not those of the two batches on the way
    assert source.episodes() == [(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1), (5.0, 1)]
    assert source.episodes() == []
    assert source.components() == {"one": [15.0, 5.0, 0.0, 5.0]}
    assert source.components() == {}
    assert torch.equal(torch.get_rng_state(), luck[0])
    assert random.getstate() == luck[1]
    return found


def goes_on_alike(source: Ahead) -> None:
    """Makes the batches of a source that samples inline, and such a one goes on with its state, as it does itself."""
    whole, other = begun(), begun()
    assert check(source) == check(whole)
    served(source, Weight(), 1)
    served(whole, Weight(), 1)
    restore(other, gather(source))
    assert [each.ledger.completions for each in (source, whole, other)] == [18, 18, 18]
    assert served(whole, Weight(), 3) == served(source, Weight(), 3) == served(other, Weight(), 3)
    for each in (source, whole, other):
        assert each.ledger.completions == 27
        assert each.episodes() == [(float(number), 1) for number in range(6, 10)]
        assert each.components() == {"one": [30.0, 4.0, 0.0, 4.0]}
    gather(source)  # takes in what is on the way

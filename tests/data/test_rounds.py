from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.data.base import Source
from polopt.data.preferences import pairs
from polopt.data.rounds import Rounds, updates_per_round

from .texts import Typist


class Counted(Source):
    """Five rows a call, numbered through all calls, as pairs of texts."""

    saved = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def next(self, actor: Any) -> Batch:
        first, self.calls = 5 * self.calls, self.calls + 1
        batch = pairs(Typist(), ["p"] * 5, ["a" * (1 + i) for i in range(5)], ["b"] * 5)
        batch["number"] = torch.arange(first, first + 5)
        return batch

    def episodes(self) -> list[tuple[float, int]]:
        return [(float(self.calls), 1)]


def rounds(**options: Any) -> Rounds:
    return Rounds(Counted(), 2, **{"epochs": 2, "generator": torch.Generator().manual_seed(0), **options})


def test_every_row_once_in_every_pass_and_then_another_round() -> None:
    source = rounds()
    assert source.finished
    assert source.round == 0
    seen = []
    for number in range(3):
        for part in range(6):
            assert source.finished == (part == 0)
            batch = source.next(Typist())
            assert source.round == source.source.calls == number + 1
            seen.append(batch["number"].tolist())
            longest = max(seen[-1]) - 5 * number + 2  # with the token that ends it
            assert batch["chosen", "completion"].shape == (len(seen[-1]), longest)  # trimmed
    assert source.finished
    assert [len(part) for part in seen] == 6 * [2, 2, 1]
    passes = [[row for part in seen[i : i + 3] for row in part] for i in range(0, 18, 3)]
    for number, each in enumerate(passes):
        assert sorted(each) == list(range(5 * (number // 2), 5 * (number // 2) + 5))
    assert len({tuple(x % 5 for x in each) for each in passes}) > 1  # in other orders
    assert source.episodes() == [(3.0, 1)]
    assert updates_per_round(5, 2, 2) == 6
    assert updates_per_round(6, 2) == updates_per_round(5, 2) == 3


def test_what_is_served_may_be_made_of_what_was_collected() -> None:
    source = rounds(prepare=lambda batch: batch[batch["number"] % 5 < 3])
    assert [len(source.next(Typist())) for _ in range(5)] == [2, 1, 2, 1, 2]
    smallest = Rounds(Counted(), batch_size=1)
    assert sorted(smallest.next(Typist())["number"].item() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert smallest.finished
    with pytest.raises(RunError, match="round 1 has no rows to learn from"):
        rounds(prepare=lambda batch: batch[:0]).next(Typist())
    for sizes in ({"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="a round has batches of at least 1 and at least 1 epoch"):
            Rounds(Counted(), **{"batch_size": 2, **sizes})


@pytest.mark.parametrize("done", [0, 1, 3, 5, 6, 8])
def test_a_resumed_round_goes_on_where_it_was(done: int) -> None:
    one, other = rounds(), rounds(generator=torch.Generator().manual_seed(5))
    for _ in range(done):
        one.next(Typist())
    state = {path: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for path, leaf in gather(one).items()}
    other.next(Typist())  # it was somewhere else before
    restore(other, state)
    assert (other.round, other.finished) == (one.round, one.finished)
    for _ in range(8):
        mine, theirs = one.next(Typist()), other.next(Typist())
        assert isinstance(theirs["chosen"], TensorDict)
        assert mine["number"].tolist() == theirs["number"].tolist()
        assert torch.equal(mine["chosen", "completion"], theirs["chosen", "completion"])

from __future__ import annotations

from typing import Any

import pytest
import torch

from polopt.core.batch import Batch
from polopt.data.base import Source
from polopt.data.informative import Informative, distinct

from .texts import Typist


class Graded(Source):
    """Batches of groups of two answers with given rewards, one list of groups a call."""

    def __init__(self, *calls: list[tuple[float, float]]) -> None:
        self.calls = list(calls)
        self.number = 0

    def next(self, actor: Any) -> Batch:
        groups, self.number = self.calls[self.number], self.number + 1
        answers = ["a" * (self.number + i) for i in range(2 * len(groups))]
        batch = actor.tokenize(["p"] * len(answers), answers)
        batch["reward"] = torch.tensor(groups).reshape(-1)
        batch["group"] = torch.arange(len(groups)).repeat_interleave(2)
        batch["failed"] = torch.zeros(len(answers), dtype=torch.bool)
        batch["call"] = torch.full((len(answers),), self.number)
        return batch

    def episodes(self) -> list[tuple[float, int]]:
        return [(1.0, self.number)]


EASY, HARD, MIXED = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)


def test_groups_that_teach_nothing_are_replaced() -> None:
    source = Informative(Graded([EASY, MIXED, HARD], [MIXED, EASY, MIXED], [MIXED] * 3), 2, 5)
    batch = source.next(Typist())
    assert batch["group"].tolist() == [0, 0, 1, 1]  # dense, in the order in which they were sampled
    assert batch["call"].tolist() == [1, 1, 2, 2]
    assert batch["reward"].tolist() == [1, 0, 1, 0]
    assert (source.kept, source.tried) == (3, 6)  # one group was too many
    assert source.source.number == 2
    assert source.episodes() == [(1.0, 2)]
    # Rows of both calls are as wide as the longest, and unharmed.
    lengths = batch["mask"].sum(1).tolist()
    assert lengths == [4, 5, 3, 4]  # two to five letters a, and the end
    assert batch["completion"].shape[1] >= 5


def test_enough_at_once_asks_only_once() -> None:
    source = Informative(Graded([MIXED] * 3), 2, 5)
    assert source.next(Typist())["group"].tolist() == [0, 0, 1, 1]
    assert source.source.number == 1


@pytest.mark.parametrize("tries", [1, 2])
def test_when_the_tries_are_used_up_there_are_fewer(tries: int) -> None:
    source = Informative(Graded([EASY, MIXED], [HARD, EASY], [MIXED] * 2), 2, tries)
    batch = source.next(Typist())
    assert batch["group"].tolist() == [0, 0]
    assert (source.source.number, source.kept, source.tried) == (tries, 1, 2 * tries)


def test_without_any_the_last_batch_is_served_as_it_is() -> None:
    source = Informative(Graded([EASY, EASY], [HARD, EASY]), 2, 2)
    batch = source.next(Typist())
    assert batch["call"].tolist() == [2] * 4
    assert batch["reward"].tolist() == [0, 0, 1, 1]
    assert source.kept == 0


def test_rewards_that_could_not_be_computed_do_not_count() -> None:
    batch = Graded([MIXED, (0.5, 0.25)]).next(Typist())
    batch["failed"] = torch.tensor([False, True, False, False])
    assert distinct(batch).tolist() == [False, False, True, True]

from __future__ import annotations

import pytest
import torch

from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.data import Sequential, Shuffled, Weighted


def test_sequential_counts_and_wraps() -> None:
    assert [Sequential().draw(3), Sequential(2).draw(5)] == [[0, 1, 2], [0, 1, 0, 1, 0]]
    sampler = Sequential(5)
    assert [sampler.draw(3), sampler.draw(3)] == [[0, 1, 2], [3, 4, 0]]


def test_shuffled_draws_every_id_once_per_epoch() -> None:
    sampler = Shuffled(7, torch.Generator().manual_seed(0))
    ids = [number for _ in range(7) for number in sampler.draw(3)]  # three epochs
    epochs = [ids[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert sampler.epoch == 3
    assert sorted(sampler.draw(14)) == sorted([*range(7)] * 2)


@pytest.mark.parametrize("drawn", [0, 2, 5, 8])
def test_a_resumed_sampler_goes_on(drawn: int) -> None:
    weights = torch.arange(5.0)
    for build in (lambda: Sequential(5), lambda: Shuffled(5), lambda: Weighted(5, lambda: weights)):
        sampler, other = build(), build()
        for _ in range(drawn):
            sampler.draw(1)
        restore(other, gather(sampler))
        assert [sampler.draw(3) for _ in range(5)] == [other.draw(3) for _ in range(5)]


def test_weighted_draws_like_urns_without_replacement() -> None:
    weights = torch.tensor([1.0, 2.0, 5.0, 0.0])
    sampler = Weighted(4, lambda: weights, torch.Generator().manual_seed(0))
    draws = [sampler.draw(2) for _ in range(4000)]
    assert all(len(set(draw)) == 2 and 3 not in draw for draw in draws)
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            chance = weights[first] / 8 * weights[second] / (8 - weights[first])
            share = sum(draw == [first, second] for draw in draws) / 4000
            assert abs(share - chance) < 0.03


def test_weighted_follows_its_weights_and_fills_up() -> None:
    weights = torch.zeros(6)
    sampler = Weighted(6, lambda: weights, torch.Generator().manual_seed(0))
    assert sorted(sampler.draw(6)) == list(range(6))  # no weight at all: uniform
    weights[4] = 1e-30
    rest = [sampler.draw(2) for _ in range(600)]
    assert all(draw[0] == 4 for draw in rest)
    counts = torch.tensor([draw[1] for draw in rest]).bincount(minlength=6)
    assert counts[4] == 0
    assert counts[[0, 1, 2, 3, 5]].min() > 80


def test_weighted_says_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="4 different prompts cannot be drawn from 3"):
        Weighted(3, lambda: torch.ones(3)).draw(4)
    with pytest.raises(RunError, match="finite"):
        Weighted(2, lambda: torch.tensor([1.0, float("nan")])).draw(1)
    with pytest.raises(RunError, match="at least 0"):
        Weighted(2, lambda: torch.tensor([1.0, -1.0])).draw(1)
    with pytest.raises(ValueError, match="shape"):
        Weighted(2, lambda: torch.ones(3)).draw(1)
    with pytest.raises(UsageError, match="at least one"):
        Shuffled(0)

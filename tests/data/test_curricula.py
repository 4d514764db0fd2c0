from __future__ import annotations

import pytest
import torch

from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.data.curricula import Best, Given, Mixture, Replaced, Rotation
from polopt.data.samplers import Sequential, Shuffled


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_given_draws_what_was_set():
    sampler = Given([3, 1])
    assert sampler.draw(2) == [3, 1]
    sampler.ids = [5, 5, 2]
    assert sampler.draw(3) == [5, 5, 2]
    with pytest.raises(RunError, match="3 prompts were chosen, and 2 are to be drawn"):
        sampler.draw(2)


def test_best_takes_the_largest_in_ascending_order():
    scores = torch.tensor([0.1, 0.7, 0.7, 0.2, 0.7])
    sampler = Best(5, lambda: scores)
    assert sampler.draw(2) == [1, 2]  # of equal ones the first
    assert sampler.draw(4) == [1, 2, 3, 4]
    scores[0] = 1.0
    assert sampler.draw(2) == [0, 1]  # the present ones
    assert sampler.draw(5) == [0, 1, 2, 3, 4]


def test_replaced_draws_in_proportion_and_again():
    weights = torch.tensor([1.0, 0.0, 3.0])
    sampler = Replaced(3, lambda: weights, seeded())
    counts = torch.tensor(sampler.draw(4000)).bincount(minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] / 4000 - 0.75) < 0.03
    weights[:] = 0.0
    counts = torch.tensor(sampler.draw(3000)).bincount(minlength=3)
    assert (counts / 3000 - 1 / 3).abs().max() < 0.04  # no weight at all: uniform
    assert sampler.draw(0) == []


def test_a_rotation_has_one_order():
    sampler = Rotation(7, seeded())
    order = sampler.order.tolist()
    assert sorted(order) == list(range(7))
    assert [sampler.draw(3), sampler.draw(3)] == [order[:3], order[3:6]]
    assert sampler.draw(3) == order[:3]  # one is left, and passed over
    assert sampler.draw(4) == order[3:]


def test_a_mixture_takes_its_share_in_turn():
    def mixture(share):
        return Mixture(Sequential(), Sequential(), share, (lambda number: 100 + number, None))

    assert mixture(0.5).draw(6) == [100, 0, 101, 1, 102, 2]
    assert mixture(0.25).draw(6) == [100, 0, 1, 2, 3, 4]  # 1.5 of 6, rounded down
    assert mixture(0.0).draw(3) == [0, 1, 2]
    assert mixture(1.0).draw(3) == [100, 101, 102]
    assert mixture(0.3).draw(10)[:2] == [100, 0]  # 0.3 * 10 is just below 3 in binary
    assert sum(number >= 100 for number in mixture(0.3).draw(10)) == 3


def weights():
    return torch.arange(1.0, 7.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: Given([4, 4, 2]),
        lambda seed: Best(6, weights),
        lambda seed: Replaced(6, weights, seeded(seed)),
        lambda seed: Rotation(6, seeded(seed)),
        lambda seed: Mixture(Replaced(6, weights, seeded(seed)), Shuffled(6, seeded(seed + 1)), 0.5),
    ],
)
def test_a_resumed_curriculum_goes_on(build):
    sampler, other = build(0), build(7)
    for _ in range(3):
        sampler.draw(3)
    restore(other, gather(sampler))
    assert [sampler.draw(3) for _ in range(5)] == [other.draw(3) for _ in range(5)]


def test_a_pool_smaller_than_the_batch_is_refused():
    for sampler in (Best(2, lambda: torch.zeros(2)), Rotation(2)):
        with pytest.raises(UsageError, match="3 different prompts cannot be drawn from 2"):
            sampler.draw(3)
    with pytest.raises(UsageError, match=r"a share lies between 0 and 1, and 1\.5 does not"):
        Mixture(Sequential(), Sequential(), 1.5)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(RunError, match="the scores that prompts are drawn with are not all finite"):
        Best(2, lambda: torch.tensor([0.0, torch.nan])).draw(1)
    with pytest.raises(RunError, match="the weights that prompts are drawn with are not all finite and at least 0"):
        Replaced(2, lambda: torch.tensor([0.0, -1.0])).draw(1)
    with pytest.raises(ValueError, match="weights have shape"):
        Replaced(2, lambda: torch.ones(3)).draw(1)

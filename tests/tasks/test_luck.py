"""Luck as a function of a key: the published generator, uniform, and without ties between uses, times and keys."""

from __future__ import annotations

import math

import pytest
import torch

from polopt.tasks.luck import GOLDEN, MASK, exponential, normal, poisson, scrambled, scrambled_keys, uniform


def test_tensors_are_scrambled_as_numbers_are() -> None:
    keys = [0, 1, -1, 2**40 + 7, -(2**63), 2**63 - 1]
    found = scrambled_keys(torch.tensor(keys)).tolist()
    assert [value & MASK for value in found] == [scrambled(key & MASK) for key in keys]


def test_scrambled_is_splitmix64() -> None:
    """The first outputs of the published generator from the seed 1234567: 1234567 plus the golden gamma, finalized."""
    inverse = pow(GOLDEN, -1, 1 << 64)
    states = [(1234567 + k * GOLDEN) % (1 << 64) for k in (1, 2, 3)]
    outputs = [scrambled(state * inverse % (1 << 64)) for state in states]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_unrelated() -> None:
    key = scrambled_keys(torch.arange(500))
    time = torch.arange(500) % 7
    found = uniform(key, time, 40, 3).double()
    assert ((found >= 0) & (found < 1)).all()
    assert found.mean().item() == pytest.approx(0.5, abs=4 * 12**-0.5 / 20_000**0.5)
    assert found.var().item() == pytest.approx(1 / 12, abs=4 * 180**-0.5 / 20_000**0.5)
    columns = torch.corrcoef(found.T)
    assert (columns - torch.eye(40)).abs().max() < 5 / 500**0.5
    for other in (uniform(key, time, 40, 4), uniform(key, time + 1, 40, 3), uniform(key + 1, time, 40, 3)):
        assert abs(torch.corrcoef(torch.stack([found.flatten(), other.double().flatten()]))[0, 1]) < 4 / 20_000**0.5


def test_normal_numbers_have_the_moments_of_the_normal_law() -> None:
    found = normal(scrambled_keys(torch.arange(500)), 0, 80, 1).double()
    assert found.mean().item() == pytest.approx(0.0, abs=4 / 40_000**0.5)
    assert found.var().item() == pytest.approx(1.0, abs=4 * (2 / 40_000) ** 0.5)
    assert (found**4).mean().item() == pytest.approx(3.0, abs=4 * (96 / 40_000) ** 0.5)
    assert (found.abs() < 1.959964).double().mean().item() == pytest.approx(0.95, abs=0.0044)


def test_exponential_and_poisson_numbers_have_their_moments() -> None:
    key = scrambled_keys(torch.arange(40_000))
    found = exponential(key, 3, 1, 1).double()
    assert found.mean().item() == pytest.approx(1.0, abs=4 / 40_000**0.5)
    assert found.var().item() == pytest.approx(1.0, abs=4 * (8 / 40_000) ** 0.5)
    assert exponential(key, 3, 1, 1).isfinite().all()
    for mean in (0.4, 3.0):
        counts = poisson(key, 3, mean, 1).double()
        assert counts.mean().item() == pytest.approx(mean, abs=4 * (mean / 40_000) ** 0.5)
        assert (counts == 0).double().mean().item() == pytest.approx(math.exp(-mean), abs=0.01)
        assert counts.var().item() == pytest.approx(mean, rel=0.05)


def test_a_row_draws_the_same_beside_any_others() -> None:
    key = scrambled_keys(torch.arange(6))
    all_rows = uniform(key, torch.full((6,), 9), 3, 1)
    assert torch.equal(uniform(key[2:4], torch.full((2,), 9), 3, 1), all_rows[2:4])
    assert torch.equal(uniform(key, 9, 3, 1), all_rows)


def test_a_key_is_of_a_start(float64: None) -> None:
    draws = uniform(scrambled_keys(torch.arange(3)), 0, 2, 0)
    assert draws.dtype == torch.float64
    assert torch.equal(draws, (draws * 2**24).round() / 2**24)

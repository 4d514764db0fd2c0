"""CMA-ES on functions whose minima are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from polopt.optim.cma_es import cma_es


def global_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002


def searched(objective, start, generations=30, seed=0, population=8):
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cma_es(objective, start, std=0.5, population=population, generations=generations, generator=generator)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_finds_minima_inside_the_box_and_at_its_corners(size: int) -> None:
    for goal in (torch.linspace(-0.3, 0.6, size), torch.ones(size), 2.0 * torch.ones(size)):
        points, values = searched(lambda x, goal=goal: (x - goal).square().sum(-1), torch.zeros(size))
        assert points.shape == (240, size)
        assert values.shape == (240,)
        assert points.abs().max() <= 1
        torch.testing.assert_close(values, (points - goal).square().sum(-1).double())
        best = points[values.argmin()]
        torch.testing.assert_close(best, goal.clamp(-1, 1), atol=0.03, rtol=0)


def test_it_learns_the_shape_of_a_valley() -> None:
    """A narrow one along the diagonal, down to its end: an isotropic search of this length stays far behind."""

    def valley(x: torch.Tensor) -> torch.Tensor:
        return 1e4 * (x[:, 0] - x[:, 1]).square() + (x.sum(-1) - 1.2).square()

    _, values = searched(valley, torch.zeros(2), generations=60)
    assert values.min() < 1e-4


def test_its_luck_is_that_of_the_generator_and_nobody_elses() -> None:
    before = global_state()
    one, two, other = (searched(lambda x: x.square().sum(-1), torch.zeros(2), 3, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert (global_state() == before).all()


def test_a_flat_function_is_searched_without_complaint() -> None:
    _, values = searched(lambda x: torch.ones(len(x)), torch.zeros(2), 5)
    assert (values == 1).all()

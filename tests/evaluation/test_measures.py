"""Measures beside numbers worked out by hand and beside scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polopt.evaluation.measures import (
    conditional_value_at_risk,
    correlation,
    entropy,
    mode_shares,
    modes_held,
    neighbor_distance,
    rank_correlation,
    roughness,
    sliced_wasserstein,
    value_at_risk,
)

NUMBERS = st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=12)


def test_shares_of_modes_by_hand():
    modes = [[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]]
    points = torch.tensor([[0.1, 0.0], [1.9, 0.0], [2.1, 0.0], [4.0, 1.0]], requires_grad=True)
    assert mode_shares(points, modes).tolist() == [0.5, 0.5, 0.0]
    near = mode_shares(points, modes, radius=1.0)  # the second and the third are near none, the fourth just is
    assert near.tolist() == [0.25, 0.25, 0.0]
    assert modes_held(near, 0.25) == 2
    assert modes_held(near, 0.3) == 0
    assert modes_held(near, 0.0) == 3
    for wrong in ([], [1.0, 2.0]):
        with pytest.raises(ValueError, match="points must be"):
            mode_shares(np.array(wrong), modes)


def test_entropy_of_modes():
    assert entropy([0.25, 0.25, 0.25, 0.25]) == pytest.approx(math.log(4))
    assert entropy(torch.tensor([0.3, 0.0, 0.1])) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert entropy([0.0, 0.7]) == entropy([0.0, 0.0]) == 0.0


@given(NUMBERS, NUMBERS)
def test_in_one_dimension_it_is_the_wasserstein_distance(one, other):
    found = sliced_wasserstein(np.array(one)[:, None], np.array(other)[:, None], power=1.0)
    assert found == pytest.approx(stats.wasserstein_distance(one, other))


def test_the_sliced_distance_by_hand():
    """{0, 2} to {1}: half of the mass moves by 1 each way; {0, 6} to {0, 3, 6}: a sixth moves by 3 on both sides."""
    assert sliced_wasserstein([[0.0], [2.0]], [[1.0]]) == pytest.approx(1.0)
    assert sliced_wasserstein([[0.0], [6.0]], [[0.0], [3.0], [6.0]]) == pytest.approx(math.sqrt(9 / 3))
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 0.0, 4.0])
    assert sliced_wasserstein(points, points) == 0.0
    moved = sliced_wasserstein(points, points + shift, directions=20_000)
    assert moved == pytest.approx(5 / math.sqrt(3), rel=0.02)  # E[(shift . u)^2] = |shift|^2 / d over directions
    assert moved == sliced_wasserstein(points, points + shift, directions=20_000)
    assert moved != sliced_wasserstein(points, points + shift, directions=20_000, seed=1)
    with pytest.raises(ValueError, match=r"3 dimensions .* of 2"):
        sliced_wasserstein(points, points[:, :2])


def test_distance_to_neighbors():
    data = [[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]
    assert neighbor_distance([[0.0, 0.0], [3.0, 0.0]], data).tolist() == [0.0, 3.0]
    assert neighbor_distance([[0.0, 0.0], [3.0, 0.0]], data, k=2).tolist() == [5.0, 4.0]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"neighbor number {k} of 3"):
            neighbor_distance(data, data, k=k)


def test_tails_by_hand():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert value_at_risk(values, 0.2) == 1
    assert value_at_risk(values, 0.21) == 2
    assert value_at_risk(values, 1.0) == 5
    assert conditional_value_at_risk(values, 0.2) == 1
    assert conditional_value_at_risk(values, 0.3) == pytest.approx((1 + 0.5 * 2) / 1.5)  # the second counts by half
    assert conditional_value_at_risk(values, 0.01) == 1
    assert conditional_value_at_risk(values, 1.0) == pytest.approx(3)
    normal = np.random.default_rng(0).normal(size=100_000)
    expected = -stats.norm.pdf(stats.norm.ppf(0.1)) / 0.1
    assert conditional_value_at_risk(normal) == pytest.approx(expected, abs=0.02)
    for wrong in ((values, 0.0), (values, 1.1), ([], 0.5)):
        with pytest.raises(ValueError, match="does not exist"):
            conditional_value_at_risk(*wrong)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_correlations_are_those_of_scipy(pairs):
    one, other = np.array(pairs, dtype=float).T
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert correlation(one, other) == rank_correlation(one, other) == 0.0
        return
    assert correlation(one, other) == pytest.approx(stats.pearsonr(one, other).statistic)
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


def test_ranks_do_not_see_the_scale():
    x = torch.linspace(0, 5, 20)
    assert rank_correlation(x, x.exp()) == pytest.approx(1)
    assert correlation(x, x.exp()) < 0.9
    with pytest.raises(ValueError, match="20 and 19"):
        rank_correlation(x, x[1:])


def test_roughness_by_hand():
    path = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [6.0, 8.0]]])
    assert roughness(path) == pytest.approx((5 + 5 + 0) / 3)
    assert roughness(path, 2) == pytest.approx((0 + 5) / 2)
    assert roughness(path, 3) == pytest.approx(5)
    time = torch.arange(6.0)
    assert roughness(torch.stack([time**3, time], -1), 3) == pytest.approx(6)  # the third derivative of t^3


def test_only_what_the_mask_says_is_a_path():
    path = torch.tensor([[[0.0], [1.0], [9.0]], [[0.0], [2.0], [5.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert roughness(path, mask=mask) == pytest.approx((1 + 2 + 3) / 3)
    assert roughness(path, 2, mask) == pytest.approx(1)
    for wrong, order in ((mask[:1], 2), (mask, 3)):
        with pytest.raises(ValueError, match=f"the {order + 1} places" if order == 3 else "does not fit"):
            roughness(path, order, wrong)

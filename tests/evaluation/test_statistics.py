import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polopt.evaluation.statistics import (
    aggregate_curves,
    bootstrap,
    interquartile_mean,
    lower_bound,
    mean,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


def test_interquartile_mean_by_hand():
    assert interquartile_mean([1, 2, 3, 4, 100]) == 3  # 5 // 4 = 1 is cut at each end
    assert interquartile_mean([1, 2, 6]) == 3  # nothing is cut below four
    assert interquartile_mean([8, 1, 2, 3, 4, 5, 6, 7]) == 4.5
    assert np.array_equal(interquartile_mean([[0, 1, 3, 50], [4, 4, 4, 4]]), [2, 4])


@given(VALUES)
def test_interquartile_mean_is_the_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-6)


@given(VALUES, VALUES)
def test_probability_of_improvement_counts_pairs(x, y):
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y])
    assert probability_of_improvement(x, y, paired=False, resamples=10).estimate == pytest.approx(expected)


def test_probability_of_improvement_resamples_seeds_together():
    x = np.arange(5.0)
    apart = probability_of_improvement(x + 100, x)
    assert (apart.estimate, apart.low, apart.high) == (1, 1, 1)
    same = probability_of_improvement(x, x)
    assert same.estimate == same.low == same.high == 0.5  # paired: both sides are the same draw, every time
    loose = probability_of_improvement(x, x, paired=False)
    assert loose.low < 0.5 < loose.high
    with pytest.raises(ValueError, match="5 and 4"):
        probability_of_improvement(x, x[:4])


def test_one_seed_has_no_interval_and_says_so():
    for interval in (bootstrap([3.0]), paired_difference([3.0], [0.0]), stratified_bootstrap([[3.0], [3.0]])):
        assert (interval.estimate, interval.low, interval.high) == (3, None, None)
        assert str(interval) == "3 (one seed: no interval)"
    assert str(bootstrap([])) == str(bootstrap([math.nan])) == "no data"
    assert lower_bound([5.0]) == -math.inf


def test_bootstrap_is_reproducible_and_leaves_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    values = np.random.default_rng(1).normal(size=8)
    assert bootstrap(values) == bootstrap(values)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_bootstrap_against_all_resamples():
    values = np.array([0.0, 1.0, 5.0])
    draws = [np.mean([a, b, c]) for a in values for b in values for c in values]
    interval = bootstrap(values, mean, resamples=20_000)
    assert interval.estimate == 2
    assert interval.low == pytest.approx(np.quantile(draws, 0.025, method="inverted_cdf"), abs=0.35)
    assert interval.high == pytest.approx(np.quantile(draws, 0.975, method="inverted_cdf"), abs=0.35)
    assert bootstrap([1.0, 2.0, math.nan]).n == 2


def test_stratified_bootstrap_resamples_within_tasks():
    interval = stratified_bootstrap({"a": [0.0, 0.0, 0.0], "b": [10.0, 10.0]}, mean)
    assert (interval.estimate, interval.low, interval.high) == (4, 4, 4)  # tasks keep their weight in every draw


def test_paired_difference_is_the_t_interval():
    a, b = np.array([3.0, 5.0, 4.0, 9.0]), np.array([1.0, 4.0, 4.0, 5.0])
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = paired_difference(a, b)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    one_sided = stats.ttest_1samp(a - b, 0, alternative="greater")
    assert lower_bound(a - b) == pytest.approx(one_sided.confidence_interval(0.95).low)


def test_lower_bound_wants_finite_numbers():
    assert lower_bound([1.0, math.nan, 3.0]) == -math.inf
    assert lower_bound([2.0, 2.0, 2.0]) == 2


def test_curves_on_equal_steps_keep_them():
    curve = aggregate_curves([([0, 10, 20], [0, 1, 2]), ([0, 10, 20], [2, 3, 4])], mean)
    assert np.array_equal(curve.steps, [0, 10, 20])
    assert np.array_equal(curve.center, [1, 2, 3])
    assert (curve.low <= curve.center).all()
    assert (curve.center <= curve.high).all()


def test_curves_are_never_extrapolated():
    curve = aggregate_curves([([0, 10, 20], [0, 10, 20]), ([5, 15], [5, 15])], mean, points=11)
    assert (curve.steps[0], curve.steps[-1], curve.n) == (5, 15, 2)
    assert np.allclose(curve.center, curve.steps)


def test_curves_of_one_seed_or_none():
    one = aggregate_curves([([0, 1, 2], [0.0, math.nan, 2.0])])
    assert np.array_equal(one.steps, [0, 2])
    assert one.n == 1
    assert np.isnan(one.low).all()
    assert aggregate_curves([([], []), ([1], [math.nan])]).n == 0

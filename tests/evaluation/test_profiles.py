import numpy as np
import pytest

from polopt.evaluation.profiles import improvement_over_tasks, optimality_gap, performance_profile, thresholds_of
from polopt.evaluation.statistics import interquartile_mean, probability_of_improvement, stratified_bootstrap


def test_a_profile_counts_runs_above_each_threshold():
    profile = performance_profile([[1.0, 2.0, 3.0, np.nan]], [0.5, 1.0, 2.5, 3.0])
    assert np.allclose(profile.share, [1, 2 / 3, 1 / 3, 0])  # more than the threshold; no number, no run
    two = performance_profile([[1.0, 2.0, 3.0], [10.0]], [2.5])
    assert two.share == pytest.approx((1 / 3 + 1) / 2)  # tasks count alike, however many seeds they have
    assert np.isnan(two.low).all()  # one of them has one seed
    assert np.isnan(performance_profile([[np.nan], []], [0.0]).share).all()


def test_the_band_of_a_profile_is_that_of_resampled_seeds():
    tasks = [[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 5.0, 5.0]]
    profile = performance_profile(tasks, [1.5, 9.0], resamples=20_000)
    rng = np.random.default_rng(5)
    draws = np.array([[np.mean(rng.choice(task, 5) > 1.5) for task in tasks] for _ in range(20_000)]).mean(axis=1)
    assert profile.low[0] == pytest.approx(np.quantile(draws, 0.025), abs=0.051)
    assert profile.high[0] == pytest.approx(np.quantile(draws, 0.975), abs=0.051)
    assert profile.low[0] < profile.share[0] < profile.high[0]
    assert profile.share[1] == profile.low[1] == profile.high[1] == 0


def test_thresholds_hold_every_score():
    at = thresholds_of([3.0, np.nan, -1.0])
    assert at[0] < -1 < 3 < at[-1]
    assert np.allclose(np.diff(at), at[1] - at[0])
    for scores in ([2.0, 2.0], [0.0], [], [np.nan]):
        assert (np.diff(thresholds_of(scores)) > 0).all()


def test_the_optimality_gap_is_what_is_missing():
    gap = optimality_gap(1.0)
    assert gap([0.0, 0.5, 7.0]) == pytest.approx(0.5)  # 7 does not make up for 0
    assert np.allclose(gap([[1.0, 2.0], [-1.0, 1.0]]), [0, 1])
    assert stratified_bootstrap([[0.0, 0.5], [7.0, 7.0]], gap).estimate == pytest.approx(0.375)


def test_improvement_over_one_task_is_that_of_the_task():
    x, y = [1.0, 4.0, 2.0, 8.0], [3.0, 1.0, 2.0, 2.0]
    one, whole = probability_of_improvement(x, y), improvement_over_tasks([(x, y)])
    assert (one.estimate, one.low, one.high, one.n) == (whole.estimate, whole.low, whole.high, whole.n)


def test_improvement_over_tasks_is_their_mean():
    sure, even = ([5.0, 6.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    found = improvement_over_tasks([sure, even])
    assert found.estimate == found.low == found.high == 0.75  # paired: neither task depends on the draw
    assert found.n == 2
    lost = improvement_over_tasks([([5.0, np.nan, 6.0], [1.0, 0.0, 2.0]), ([np.nan], [1.0])])
    assert (lost.estimate, lost.n) == (1, 2)
    assert improvement_over_tasks([sure, ([1.0], [0.0])]).low is None
    assert str(improvement_over_tasks([])) == "no data"
    with pytest.raises(ValueError, match="3 and 2"):
        improvement_over_tasks([([1.0, 2.0, 3.0], [1.0, 2.0])])


def test_one_task_may_not_outweigh_another_in_the_interquartile_mean():
    pooled = stratified_bootstrap([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], interquartile_mean)
    assert (pooled.estimate, pooled.low, pooled.high) == (0.5, 0.5, 0.5)  # resampled within tasks: always four of each

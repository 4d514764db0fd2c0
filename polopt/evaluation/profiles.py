"""Measures of Agarwal et al. 2021 (arXiv 2108.13264) beside those of `statistics`: performance profiles, optimality
gap, and the probability of improvement over several tasks.

Scores of several tasks stand apart, one array of seeds for each, so that seeds are resampled within their task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from polopt.evaluation.statistics import LEVEL, RESAMPLES, Array, Interval, Statistic, finite, wins_of

POINTS = 61


@dataclass(frozen=True)
class Profile:
    """The share of runs above each threshold: arrays [points]; `low` and `high` are NaN where a task has one seed."""

    thresholds: Array
    share: Array
    low: Array
    high: Array


def thresholds_of(scores: ArrayLike, points: int = POINTS) -> Array:
    """Where to look at profiles of these scores: `points` equal steps over their range, and a little beyond."""
    kept = finite(scores)
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (0.0, 1.0)
    beyond = 0.04 * (high - low) or 0.5 * max(abs(low), 1.0)
    return np.linspace(low - beyond, high + beyond, points)


def performance_profile(
    tasks: Sequence[ArrayLike],
    thresholds: ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Profile:
    """The share of runs that score more than each threshold [points]: its mean over tasks, which count alike.

    `tasks` holds the scores [seeds] of each; those that are not finite are left out, and so are tasks without any. The
    band is a pointwise percentile bootstrap over seeds within tasks.
    """
    at = np.asarray(thresholds, dtype=np.float64)
    kept = [scores for scores in map(finite, tasks) if len(scores)]
    blank = np.full(len(at), np.nan)
    if not kept:
        return Profile(at, blank, blank, blank)
    above = [(scores[:, None] > at).astype(np.float64) for scores in kept]  # [seeds, points] each
    share = np.mean([each.mean(axis=0) for each in above], axis=0)
    if min(map(len, kept)) == 1:
        return Profile(at, share, blank, blank)
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=resamples) for each in above]
    draws = np.mean([count @ each / len(each) for count, each in zip(counts, above)], axis=0)  # [resamples, points]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Profile(at, share, low, high)


def optimality_gap(threshold: float) -> Statistic:
    """The statistic "how much is missing to the threshold, on average": what is above it does not make up for it."""

    def gap(values: ArrayLike, axis: int = -1) -> Array:
        return np.asarray(np.mean(threshold - np.minimum(np.asarray(values, dtype=np.float64), threshold), axis=axis))

    return gap


def improvement_over_tasks(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """P(X > Y), the mean over tasks: `pairs` holds the scores (x, y) of each task, [seeds] both, paired by seed.

    One draw of seeds serves both sides, within each task. A seed that is not finite on one side is left out; `n` is
    the smallest number of seeds of a task.
    """
    wins = []
    for x, y in pairs:
        left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if left.shape != right.shape:
            raise ValueError(f"paired seeds need equal counts, not {len(left)} and {len(right)}")
        both = np.isfinite(left) & np.isfinite(right)
        if both.any():
            wins.append(wins_of(left[both], right[both]))
    if not wins:
        return Interval(float("nan"), None, None, 0, level)
    n = min(map(len, wins))
    estimate = float(np.mean([each.mean() for each in wins]))
    if n == 1:
        return Interval(estimate, None, None, 1, level)
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for each in wins:
        rows = rng.integers(len(each), size=(resamples, len(each)))
        draws += each[rows[:, :, None], rows[:, None, :]].mean(axis=(1, 2)) / len(wins)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n, level)

"""Statistics over seeds: what a set of runs says, and how surely.

The unit of resampling is the seed (one training run), never the episode: evaluation episodes of one run share its
policy, and counting them as independent makes intervals far too narrow. Nothing here draws from a global random
generator; every bootstrap has its own, with a fixed seed, so a table printed twice is the same table.

Sources: interquartile mean, stratified bootstrap and probability of improvement follow Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (2021, arXiv 2108.13264); here resampling is paired
by seed. A percentile bootstrap over a few seeds is too narrow (at five seeds it misses 11 to 14 per cent where it
should miss 5), so claims are judged by `lower_bound` alone and bootstrap intervals are for display.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. `low` and `high` are None when `n` seeds give no interval (n < 2)."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    level: float = LEVEL

    def __str__(self) -> str:
        if self.n == 0 or not np.isfinite(self.estimate):
            return "no data"
        if self.low is None or self.high is None:
            return f"{self.estimate:.4g} (one seed: no interval)"
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Curve:
    """Learning curves of several seeds on one grid: arrays of shape [points]; `low` and `high` are NaN for one seed."""

    steps: Array
    center: Array
    low: Array
    high: Array
    n: int


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Array:
    """The mean of the middle half: floor(n / 4) values are cut at each end, so it is the mean for n < 4."""
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    count = ordered.shape[axis]
    if count == 0:
        return np.full(np.delete(np.array(ordered.shape), axis), np.nan)
    cut = count // 4
    return np.asarray(np.take(ordered, np.arange(cut, count - cut), axis=axis).mean(axis=axis))


def median(values: ArrayLike, axis: int = -1) -> Array:
    return np.asarray(np.median(np.asarray(values, dtype=np.float64), axis=axis))


def mean(values: ArrayLike, axis: int = -1) -> Array:
    return np.asarray(np.mean(np.asarray(values, dtype=np.float64), axis=axis))


def finite(values: ArrayLike) -> Array:
    """The finite values, flat. Callers show how many were left out: a seed without a number is not a seed with none."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    return flat[np.isfinite(flat)]


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic` over the seeds in `values` [n]; non-finite values are left out.

    `statistic(values, axis=-1)`-like functions reduce the last dimension. For display, not for verdicts.
    """
    kept = finite(values)
    n = len(kept)
    if n == 0:
        return Interval(float("nan"), None, None, 0, level)
    estimate = float(statistic(kept))
    if n == 1:
        return Interval(estimate, None, None, 1, level)
    draws = kept[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    return _percentiles(estimate, statistic(draws), n, level)


def stratified_bootstrap(
    values: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    statistic: Statistic = interquartile_mean,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """One statistic over several tasks: seeds are resampled within each task, and the scores pooled.

    `values` holds one array [seeds] of normalized scores per task. `n` is the smallest number of seeds of a task.
    """
    tasks = [finite(task) for task in (values.values() if isinstance(values, Mapping) else values)]
    tasks = [task for task in tasks if len(task)]
    if not tasks:
        return Interval(float("nan"), None, None, 0, level)
    n = min(len(task) for task in tasks)
    estimate = float(statistic(np.concatenate(tasks)))
    if n == 1:
        return Interval(estimate, None, None, 1, level)
    rng = np.random.default_rng(seed)
    draws = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in tasks]
    return _percentiles(estimate, statistic(np.concatenate(draws, axis=-1)), n, level)


def student_t(count: int, level: float) -> float:
    """The quantile at `level` of Student's t for the mean of `count` values, in standard errors."""
    from scipy.special import stdtrit  # 12 MB that training can do without

    return float(stdtrit(count - 1, level))


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Mean of a - b over paired seeds [n] with the two-sided Student-t interval."""
    difference = _paired(a, b)
    n = len(difference)
    if n == 0:
        return Interval(float("nan"), None, None, 0, level)
    center = float(difference.mean())
    if n == 1:
        return Interval(center, None, None, 1, level)
    half = student_t(n, 0.5 + level / 2) * float(difference.std(ddof=1)) / np.sqrt(n)
    return Interval(center, center - half, center + half, n, level)


def lower_bound(contrasts: ArrayLike, level: float = LEVEL) -> float:
    """Lower end of the one-sided Student-t interval for the mean of per-seed `contrasts` [n].

    -inf for fewer than two seeds or when a contrast is not finite: no evidence is not weak evidence.
    """
    return expected_bound(contrasts, np.size(contrasts), level)


def expected_bound(contrasts: ArrayLike, n: int, level: float = LEVEL) -> float:
    """What `lower_bound` is with `n` seeds, if they have the mean and the deviation of these `contrasts`."""
    values = np.asarray(contrasts, dtype=np.float64).reshape(-1)
    if n < 2 or len(values) < 2 or not np.isfinite(values).all():
        return float("-inf")
    return float(values.mean() - student_t(n, level) * values.std(ddof=1) / np.sqrt(n))


def seeds_needed(contrasts: ArrayLike, least: int = 3, most: int = 100, level: float = LEVEL) -> int | None:
    """The smallest number of seeds, from `least` on, that makes `expected_bound` positive; None beyond `most`."""
    return next((n for n in range(least, most + 1) if expected_bound(contrasts, n, level) > 0), None)


def probability_of_improvement(
    x: ArrayLike,
    y: ArrayLike,
    *,
    paired: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """P(X > Y): the share of pairs (run of x, run of y) in which x is larger; ties count one half.

    With `paired`, x[i] and y[i] have the same seed and one draw of seeds serves both sides; a seed that is not finite
    on one side is left out of both. Otherwise the sides are resampled apart.
    """
    left, right = np.asarray(x, dtype=np.float64).reshape(-1), np.asarray(y, dtype=np.float64).reshape(-1)
    if paired:
        if len(left) != len(right):
            raise ValueError(f"paired seeds need equal counts, not {len(left)} and {len(right)}")
        both = np.isfinite(left) & np.isfinite(right)
        left, right = left[both], right[both]
    else:
        left, right = finite(left), finite(right)
    n = min(len(left), len(right))
    if n == 0:
        return Interval(float("nan"), None, None, 0, level)
    wins = wins_of(left, right)
    estimate = float(wins.mean())
    if n == 1:
        return Interval(estimate, None, None, 1, level)
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(left), size=(resamples, len(left)))
    columns = rows if paired else rng.integers(len(right), size=(resamples, len(right)))
    draws = wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    return _percentiles(estimate, draws, n, level)


def wins_of(x: Array, y: Array) -> Array:
    """[n, m]: 1 where x[i] > y[j], one half where they are equal, else 0."""
    return np.asarray((x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :]))


def aggregate_curves(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    statistic: Statistic = interquartile_mean,
    *,
    points: int = 200,
    level: float = LEVEL,
    resamples: int = 500,
    seed: int = 0,
) -> Curve:
    """Learning curves (steps, values) of one seed each, on a common grid, with a bootstrap interval over seeds.

    The grid is the shared steps when all seeds were evaluated at the same ones, else `points` steps between the latest
    start and the earliest end, where every seed has data (linear interpolation, never extrapolation).
    """
    clean = [_finite_curve(steps, values) for steps, values in curves]
    clean = [(steps, values) for steps, values in clean if len(steps)]
    if not clean:
        empty = np.empty(0)
        return Curve(empty, empty, empty, empty, 0)
    first = clean[0][0]
    if all(np.array_equal(steps, first) for steps, _ in clean):
        grid = first
    else:
        start, end = max(steps[0] for steps, _ in clean), min(steps[-1] for steps, _ in clean)
        grid = np.linspace(start, end, points) if end > start else np.array([max(start, end)])
    table = np.stack([np.interp(grid, steps, values) for steps, values in clean])  # [seeds, points]
    center = statistic(table.T)
    n = len(clean)
    if n == 1:
        blank = np.full(len(grid), np.nan)
        return Curve(grid, center, blank, blank, 1)
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    draws = np.stack([statistic(table[row].T) for row in rows])  # [resamples, points]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Curve(grid, center, low, high, n)


def _finite_curve(steps: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    at, value = np.asarray(steps, dtype=np.float64).reshape(-1), np.asarray(values, dtype=np.float64).reshape(-1)
    keep = np.isfinite(at) & np.isfinite(value)
    at, value = at[keep], value[keep]
    order = np.argsort(at, kind="stable")
    return at[order], value[order]


def _paired(a: ArrayLike, b: ArrayLike) -> Array:
    left, right = np.asarray(a, dtype=np.float64).reshape(-1), np.asarray(b, dtype=np.float64).reshape(-1)
    if len(left) != len(right):
        raise ValueError(f"paired seeds need equal counts, not {len(left)} and {len(right)}")
    return finite(left - right)


def _percentiles(estimate: float, draws: Array, n: int, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n, level)

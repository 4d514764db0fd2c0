"""Measures of what policies and samplers make: modes, distances of sets, tails, ranks, smoothness.

Each takes arrays or tensors, wherever they are and with or without gradient, computes in double precision, and returns
floats or NumPy arrays. They are for evaluations and claims; none is a loss. Points are [n, d], one a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]
Numbers = ArrayLike | Tensor


def mode_shares(points: Numbers, modes: Numbers, radius: float = np.inf) -> Array:
    """The share of the points [n, d] at each of the modes [M, d]: nearest to it, and no farther than `radius`.

    The shares [M] sum to 1, less what is near no mode. Raises ValueError where there is no point or no mode.
    """
    modes = _points(modes, "modes")
    distance, nearest = _tree(modes).query(_points(points, "points"))
    return np.bincount(nearest[distance <= radius], minlength=len(modes)) / len(distance)


def modes_held(shares: Numbers, least: float) -> int:
    """How many of the shares [M] are at least `least`."""
    return int((_array(shares) >= least).sum())


def entropy(shares: Numbers) -> float:
    """In nats, of shares [M] that are scaled to sum to 1: 0 where one has everything (or none has any), log M where all
    have the same. Points that are near no mode are left out by the scaling."""
    from scipy.special import entr

    shares = _array(shares)
    total = shares.sum()
    return float(entr(shares / total).sum()) if total > 0 else 0.0


def sliced_wasserstein(
    points: Numbers, others: Numbers, *, power: float = 2.0, directions: int = 128, seed: int = 0
) -> float:
    """Sliced Wasserstein distance of sets [n, d] and [m, d]: of their projections on random `directions`, the same at
    every call, averaged in its `power` before the root is taken.

    In one dimension it is the Wasserstein distance itself; a set that is shifted as a whole is, up to the luck of the
    directions, at 1 / sqrt(d) of the shift (power 2). Two samples of one distribution do not have distance 0: compute
    this floor as well. Rabin et al. 2011, "Wasserstein Barycenter and its Application to Texture Mixing".

    Raises ValueError where a set is empty or the dimensions differ.
    """
    points, others = _points(points, "points"), _points(others, "others")
    if points.shape[1] != others.shape[1]:
        raise ValueError(f"points of {points.shape[1]} dimensions have no distance to others of {others.shape[1]}")
    axes = np.ones((1, 1))
    if points.shape[1] > 1:
        axes = np.random.default_rng(seed).normal(size=(points.shape[1], directions))
        axes /= np.linalg.norm(axes, axis=0)
    # Both quantile functions are constant between the levels i / n and j / m.
    n, m = len(points), len(others)
    levels = np.union1d(np.arange(1, n) * m, np.arange(1, m) * n)  # times n m, which is exact
    widths = np.diff(levels, prepend=0, append=n * m) / (n * m)
    below = np.concatenate([[0], levels])
    gap = np.sort(points @ axes, 0)[below // m] - np.sort(others @ axes, 0)[below // n]
    return float((widths @ np.abs(gap) ** power).mean() ** (1 / power))


def neighbor_distance(points: Numbers, data: Numbers, k: int = 1) -> Array:
    """The Euclidean distance [n] of each of the points [n, d] to its k-th nearest among the data [m, d].

    Columns of different units are to be scaled before. Raises ValueError where there are fewer than `k` data.
    """
    data = _points(data, "data")
    if not 1 <= k <= len(data):
        raise ValueError(f"the neighbor number {k} of {len(data)} points does not exist")
    return _tree(data).query(_points(points, "points"), k=[k])[0][:, 0]


def value_at_risk(values: Numbers, level: float = 0.1) -> float:
    """The smallest of the values, returns for example, such that at least the share `level` is not above it."""
    return float(np.quantile(_values(values, level), level, method="inverted_cdf"))


def conditional_value_at_risk(values: Numbers, level: float = 0.1) -> float:
    """CVaR: the mean of the worst share `level` of the values; at level 1 the mean of all.

    Where level * n is no whole number the last value counts in part (Acerbi and Tasche 2002, "On the coherence of
    expected shortfall").
    """
    ordered = np.sort(_values(values, level))
    mass = level * len(ordered)
    return float(np.clip(mass - np.arange(len(ordered)), 0.0, 1.0) @ ordered / mass)


def correlation(one: Numbers, other: Numbers) -> float:
    """Pearson's, of two sequences of equal length; 0 where one of them is constant, which says nothing of the other."""
    one, other = _array(one).reshape(-1), _array(other).reshape(-1)
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(f"a correlation needs two or more pairs, not {len(one)} and {len(other)} numbers")
    if (one == one[0]).all() or (other == other[0]).all():
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def rank_correlation(one: Numbers, other: Numbers) -> float:
    """Spearman's: `correlation` of the ranks, of which ties share the mean."""
    from scipy.stats import rankdata

    return correlation(rankdata(_array(one)), rankdata(_array(other)))


def roughness(path: Numbers, order: int = 1, mask: Numbers | None = None) -> float:
    """Mean length of the `order`-th difference along paths [..., T, d], per step to that power; 0 of smooth ones.

    Of actions, order 1 says how much they change between decisions. The jerk, third derivative of the place, is order 3
    of places, 2 of actions that are velocities, and 1 of actions that are forces.

    Args:
        mask: bool [..., T], where a path exists; a difference counts where all of its places do.

    Raises ValueError where no path is long enough.
    """
    path = _array(path)
    there = np.ones(path.shape[:-1], bool) if mask is None else _array(mask).astype(bool)
    if there.shape != path.shape[:-1]:
        raise ValueError(f"a mask {there.shape} does not fit paths {path.shape}")
    steps = path.shape[-2] - order
    whole = np.ones((*path.shape[:-2], max(steps, 0)), bool)
    for start in range(order + 1):
        whole &= there[..., start : start + max(steps, 0)]
    if not whole.any():
        raise ValueError(f"no path has the {order + 1} places that a difference of order {order} needs")
    return float(np.linalg.norm(np.diff(path, order, axis=-2), axis=-1)[whole].mean())


def _array(values: Numbers) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _points(values: Numbers, name: str) -> Array:
    points = _array(values)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"{name} must be [n, d] with at least one row, not {list(points.shape)}")
    return points


def _values(values: Numbers, level: float) -> Array:
    values = _array(values).reshape(-1)
    if not len(values) or not 0 < level <= 1:
        raise ValueError(f"a share of {level} of {len(values)} values does not exist")
    return values


def _tree(points: Array) -> Any:
    from scipy.spatial import KDTree  # 10 MB that training can do without

    return KDTree(points)

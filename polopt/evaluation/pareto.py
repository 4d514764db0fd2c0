"""Fronts of policies for several objectives: what is on them, how much they cover, and an archive of what is.

Points are returns [n, m] of n policies in m objectives, of which more is always better; arrays or tensors, computed in
double precision. One policy dominates another if it is no worse in any objective and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polopt.core.snapshot import Archive, take
from polopt.evaluation.figures import Figure, Points

Array = NDArray[np.float64]


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points [n] no other one dominates; of equal points the first."""
    points = _points(points)
    if not len(points):
        return np.zeros(0, bool)
    from moocore import is_nondominated  # a second that training without fronts can do without

    return np.asarray(is_nondominated(points, maximise=True), bool)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume of what the points dominate above the point `reference` [m]; those that are below it in an objective
    add nothing. Exact; the time grows with the number of objectives (200 points in 6 of them: 50 ms).

    Zitzler and Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms".
    """
    points, reference = _points(points), np.asarray(reference, float)
    above = points[(points > reference).all(1)]
    if not len(above):
        return 0.0
    from moocore import hypervolume as volume

    return float(volume(above, ref=reference, maximise=True))


def expected_utility(points: ArrayLike, weights: ArrayLike) -> float:
    """The best weighted sum that a point has, averaged over the rows of `weights` [W, m].

    Zintgraf et al. 2015, "Quality Assessment of MORL Algorithms: A Utility-Based Approach".
    """
    return float((np.asarray(weights, float) @ _points(points).T).max(1).mean())


def sparsity(points: ArrayLike) -> float:
    """sum over objectives and neighbors in them of the squared gap, over n - 1; 0 of a single point.

    Less is denser, but not better by itself: a front with a corner only is as dense as can be. Xu et al. 2020,
    "Prediction-Guided Multi-Objective Reinforcement Learning for Continuous Robot Control", equation 4.
    """
    points = np.sort(_points(points), 0)
    return float(np.square(np.diff(points, axis=0)).sum() / max(len(points) - 1, 1))


def crowding_distance(points: ArrayLike) -> Array:
    """How much room each point [n] has: the gap between its neighbors in each objective, over the range of all, summed
    over the objectives; infinite for those that are first or last in one.

    Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II". Where all are equal in an objective
    it adds nothing between them.
    """
    points = _points(points)
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        gap = np.full(len(points), np.inf)
        gap[1:-1] = (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0] or 1.0)
        distance[order] += gap
    return distance


def weight_grid(objectives: int, parts: int) -> Array:
    """All weights [W, m] that are whole multiples of 1 / parts and sum to 1."""

    def rows(left: int, count: int) -> list[list[int]]:
        if count == 1:
            return [[left]]
        return [[first, *rest] for first in range(left + 1) for rest in rows(left - first, count - 1)]

    return np.array(rows(parts, objectives), float) / parts


def dense_grid(objectives: int) -> Array:
    """About a thousand weights [W, m] for an expected utility."""
    return weight_grid(objectives, {1: 1, 2: 100, 3: 40, 4: 15, 5: 9, 6: 7}.get(objectives, 4))


def front_scores(points: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """What policies with returns `points` [n, m] are worth together, those that others dominate left out:
    `hypervolume` above `reference` [m], `expected_utility` over a dense grid of weights, and `sparsity`."""
    points = _points(points)
    points = points[nondominated(points)]
    return {
        "hypervolume": hypervolume(points, reference),
        "expected_utility": expected_utility(points, dense_grid(points.shape[1])),
        "sparsity": sparsity(points),
    }


def front_figures(points: ArrayLike, names: Sequence[str]) -> dict[str, Figure]:
    """The points [n, m] in the first two of the objectives `names`; nothing without points, or of one objective."""
    points = _points(points)
    if not len(points) or len(names) < 2:
        return {}
    x, y, *_ = points.T
    return {"Pareto front": Points(x, y, x_label=names[0], y_label=names[1], front=len(names) == 2)}


class Front(Archive):
    """Snapshots of the policies that no other one dominates, at most `capacity`, each with its returns.

    Those that reach `reference` [m] in every objective are kept; as long as none does, any. Above the capacity the one
    that is most crowded goes. The note of an entry has "returns", m floats, and what else it was offered with.
    """

    def __init__(self, reference: Sequence[float], capacity: int = 200) -> None:
        super().__init__()
        self._reference = np.asarray(reference, float)
        self.capacity = capacity

    @property
    def returns(self) -> Array:
        """[n, m], of the entries in their order."""
        return np.array([entry.note["returns"] for entry in self], float).reshape(-1, len(self._reference))

    def offer(self, learner: object, returns: ArrayLike, **note: object) -> bool:
        """Takes in what `learner` knows by now, whose policy has these returns [m], if it is on the front.

        Returns whether it was. Of policies with equal returns the older one stays.
        """
        points = np.vstack([self.returns, np.asarray(returns, float)])
        on = nondominated(points)
        reached = on & (points >= self._reference).all(1)
        on = reached if reached.any() else on
        if not on[-1]:
            return False
        self.keep(np.flatnonzero(on[:-1]).tolist())
        self.add(take(learner), {**note, "returns": points[-1].tolist()})
        if len(self) > self.capacity:
            most = int(crowding_distance(self.returns).argmin())
            self.keep(index for index in range(len(self)) if index != most)
        return True

    def best(self, weights: ArrayLike) -> int:
        """The number of the entry whose weighted sum of returns is largest."""
        return int((self.returns @ np.asarray(weights, float)).argmax())


def _points(points: ArrayLike) -> Array:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"points are [n, m], a row for each policy, not {list(points.shape)}")
    return points

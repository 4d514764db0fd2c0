"""How good an actor is when it is asked less often: returns by decision interval, and their average over a range.

Patel and Siegelmann 2024, arXiv 2410.08979: the frequency-averaged score (FAS) is the area under the curve of a
rescaled return over the interval, by trapezoids, divided by the width of the range. Their released notebook divides by
the last interval, 30, in place of the width, 29, and lets scores leave [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from polopt.core.errors import UsageError
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.base import Actor
from polopt.policies.sequence import Infrequent
from polopt.tasks.base import Task


def returns_by_interval(
    actor: Actor, task: Task, intervals: Sequence[int], episodes: int = 10, *, greedy: bool = True
) -> dict[int, float]:
    """The mean return of an actor that is asked every j-th decision only, for each j of `intervals`.

    Between, a policy of sequences goes on by itself and the action of any other one is held (`Infrequent`). All meet
    the same starts. Raises UsageError as that does.
    """
    return {
        interval: evaluate_returns(Infrequent(actor, interval), task, episodes, greedy=greedy)["return"]
        for interval in intervals
    }


def interval_mean(values: Mapping[int, float]) -> float:
    """The mean of a number over the range of the decision interval that it is given for, linear between its points.

    With a single interval it is the number there. Raises UsageError without any.
    """
    points = sorted(values.items())
    if not points:
        raise UsageError("a mean over decision intervals needs one interval or more")
    if len(points) == 1:
        return points[0][1]
    area = sum((after - before) * (one + other) / 2 for (before, one), (after, other) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def frequency_averaged_score(returns: Mapping[int, float], low: float, high: float) -> float:
    """FAS in [0, 1]: `interval_mean` of returns rescaled so that `low` is 0 and `high` is 1, and clipped there.

    Raises UsageError unless `low` is below `high`.
    """
    if not low < high:
        raise UsageError(f"returns are rescaled between a low and a high one, not {low:g} and {high:g}")
    return interval_mean({j: min(max((value - low) / (high - low), 0.0), 1.0) for j, value in returns.items()})

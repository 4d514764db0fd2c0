"""Judges a claim on the numbers of its arms. Torch-free.

A part of an expectation holds when the lower end of the one-sided 95 % paired Student-t interval of its contrasts is
above 0; an expectation holds when all its parts do (an intersection-union test, so no correction for their number).
There is no bootstrap and no random number here: with no effect a part passes 5 % of the time at 3, 5 or 10 seeds, where
a percentile bootstrap passes 8 to 20 %. Neither is safe when a rare seed collapses, so the worst seed is always shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polopt.claims.claim import Claim, Metrics
from polopt.core.errors import UsageError, nearest
from polopt.evaluation.statistics import Array, lower_bound

Table = Mapping[str, Mapping[int, Metrics]]  # arm -> seed -> metrics
VerdictName = Literal["reproduced", "partly", "not reproduced"]


@dataclass(frozen=True)
class Part:
    """One contrast of one expectation: mean over `n` seeds, lower bound, worst seed; it holds when `low` > 0.

    `values` are those of the seeds, in order.
    """

    text: str
    mean: float
    low: float
    worst: float
    worst_seed: int
    n: int
    holds: bool
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Check:
    """One expectation, judged."""

    text: str
    control: bool
    holds: bool
    parts: tuple[Part, ...]

    @property
    def weakest(self) -> Part:
        """The part that decides."""
        return min(self.parts, key=lambda part: part.low)


@dataclass(frozen=True)
class Verdict:
    """`name` is None when there is no verdict, and `reason` says why."""

    name: VerdictName | None
    checks: tuple[Check, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return self.name or f"no verdict: {self.reason}"


def judge(claim: Claim, table: Table, failed: Mapping[tuple[str, int], str] | None = None) -> Verdict:
    """Judges a claim on `table[arm][seed] = metrics`.

    reproduced: every expectation holds. partly: all controls hold, and some but not all of the others.
    not reproduced: a control fails, or none of the others holds. No verdict while runs are missing or have failed.
    """
    jobs = claim.jobs()
    broken = {arm for arm, seed in (failed or {}) if (arm, seed) in jobs}
    if broken:
        count = f"{len(broken)} arm{'s' if len(broken) > 1 else ''} failed"
        return Verdict(None, reason=f"{count} ({', '.join(sorted(broken))})")
    missing = [(arm, seed) for arm, seed in jobs if seed not in table.get(arm, {})]
    if missing:
        return Verdict(None, reason=f"{len(jobs) - len(missing)} of {len(jobs)} runs recorded")
    checks = tuple(check(claim, expectation, table, claim.recorded_seeds) for expectation in claim.expect)
    essential = [item.holds for item in checks if not item.control]
    name: VerdictName
    if not all(item.holds for item in checks if item.control) or not any(essential):
        name = "not reproduced"
    else:
        name = "reproduced" if all(essential) else "partly"
    return Verdict(name, checks)


def check(claim: Claim, expectation: Any, table: Table, seeds: Iterable[int]) -> Check:
    """One expectation on the given seeds; a deterministic arm gives its one value for every seed."""
    chosen = list(seeds)
    single = claim.single()

    def value(arm: str) -> Array:
        used = [chosen[0]] * len(chosen) if arm in single else chosen
        return np.array([_number(table[arm][seed], expectation.metric, arm) for seed in used])

    parts = []
    for text, values in expectation.contrasts(tuple(claim.arms), value):
        low = lower_bound(values)
        if len(values) == 1 and set(expectation.arms(tuple(claim.arms))) <= set(single):
            low = float(values[0])  # nothing varies: there is nothing to be uncertain about
        worst = int(np.argmin(np.where(np.isfinite(values), values, -np.inf)))
        mean, each = float(values.mean()), tuple(map(float, values))
        parts.append(Part(text, mean, low, float(values[worst]), chosen[worst], len(values), bool(low > 0), each))
    return Check(expectation.text(), expectation.control, all(part.holds for part in parts), tuple(parts))


def _number(metrics: Metrics, name: str, arm: str) -> float:
    if name not in metrics:
        raise UsageError(f"the arm '{arm}' gives no '{name}'{nearest(name, metrics)}")
    value = metrics[name]
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple, str, dict)):
        raise UsageError(f"'{name}' of the arm '{arm}' is not a number, so nothing can be expected of it")
    return float(value)

"""What a paper claims, stated before it is tested, and the one function that judges it.

    CLAIM = Claim(
        method="sac",
        statement="a learned temperature makes the return insensitive to the reward scale",
        budget={"env_steps": 12_000}, seeds=5, minutes=40,
        arms={"learned@10": train_arm("sac", "Pendulum-v1", reward_scale=10), ...},
        expect=(Greater("return", "learned@10", "fixed@10", by=200), Within("return", "learned@*", spread=150)),
    )

An arm is any callable `(seed, budget) -> {metric: number or list}`. Every expectation is a list of *parts*; a part is
one contrast per seed, paired across arms, that must be above 0. A part holds when the lower end of the one-sided 95 %
paired Student-t interval of its contrasts is above 0; an expectation holds when all its parts do (an
intersection-union test, so no correction for their number). There is no bootstrap and no random number in the judge:
with no effect it passes 5 % of the time at 3, 5 or 10 seeds, where a percentile bootstrap passes 8 to 20 %.
Neither is safe when a rare seed collapses, so the worst seed is always shown.

This module imports neither torch nor the training loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import pairwise, permutations
from typing import Any, ClassVar, Literal

import numpy as np

from polopt.core.errors import UsageError, nearest
from polopt.evaluation.statistics import Array, lower_bound

Metrics = Mapping[str, Any]
Budget = Mapping[str, int]
Arm = Callable[[int, dict[str, int]], Metrics]
Table = Mapping[str, Mapping[int, Metrics]]  # arm -> seed -> metrics
VerdictName = Literal["reproduced", "partly", "not reproduced"]

ARM_NAME = re.compile(r"[a-z0-9@.,=_-]+")
MINIMUM_SEEDS = 3
Value = Callable[[str], Array]  # arm -> its metric [seeds]
Contrast = tuple[str, Array]  # text, per-seed values [seeds]


@dataclass(frozen=True)
class Expectation:
    """Base of the expectations. `control=True` marks a check without which the claim was not tested at all."""

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        """The arms that this expectation reads."""
        raise NotImplementedError  # abstract

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        """Its parts: a text and per-seed contrasts [seeds] whose mean must be above 0."""
        raise NotImplementedError  # abstract

    def text(self) -> str:
        raise NotImplementedError  # abstract

    metric: str


@dataclass(frozen=True)
class Greater(Expectation):
    """`a` exceeds `b` by more than `by`, or is more than `ratio` times `b`. Patterns: every `a` against every `b`."""

    metric: str
    a: str
    b: str
    by: float = 0.0
    ratio: float = 1.0
    control: bool = False

    def __post_init__(self) -> None:
        if self.by != 0 and self.ratio != 1:
            raise UsageError("Greater takes by= or ratio=, not both")

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        return (*matching(self.a, names), *matching(self.b, names))

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        pairs = [(a, b) for a in matching(self.a, names) for b in matching(self.b, names) if a != b]
        return [(f"{a} > {self._right(b)}", value(a) - self.ratio * value(b) - self.by) for a, b in pairs]

    def text(self) -> str:
        return f"{self.metric}: {self.a} > {self._right(self.b)}"

    def _right(self, b: str) -> str:
        if self.ratio != 1:
            return f"{self.ratio:g} x {b}"
        return b if self.by == 0 else f"{b} {'+' if self.by > 0 else '-'} {abs(self.by):g}"


@dataclass(frozen=True)
class Below(Expectation):
    """Every arm of the pattern lies below `limit`."""

    metric: str
    pattern: str
    limit: float
    control: bool = False

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        return matching(self.pattern, names)

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        return [(f"{a} < {self.limit:g}", self.limit - value(a)) for a in self.arms(names)]

    def text(self) -> str:
        return f"{self.metric}: {self.pattern} < {self.limit:g}"


@dataclass(frozen=True)
class Above(Expectation):
    """Every arm of the pattern lies above `limit`."""

    metric: str
    pattern: str
    limit: float
    control: bool = False

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        return matching(self.pattern, names)

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        return [(f"{a} > {self.limit:g}", value(a) - self.limit) for a in self.arms(names)]

    def text(self) -> str:
        return f"{self.metric}: {self.pattern} > {self.limit:g}"


@dataclass(frozen=True)
class Within(Expectation):
    """Every two arms of the pattern differ by less than `spread` (an equivalence test: each pair, both directions).

    Write a spread of at least three standard deviations of a seed: five seeds cannot show equality more finely.
    """

    metric: str
    pattern: str
    spread: float
    control: bool = False

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        found = matching(self.pattern, names)
        if len(found) < 2:
            raise UsageError(f"Within needs two arms or more, and '{self.pattern}' matches only {found[0]}")
        return found

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        return [
            (f"{a} - {b} < {self.spread:g}", self.spread - (value(a) - value(b)))
            for a, b in permutations(self.arms(names), 2)
        ]

    def text(self) -> str:
        return f"{self.metric}: {self.pattern} within {self.spread:g} of each other"


@dataclass(frozen=True)
class Narrower(Expectation):
    """Over the arms of `a`, the metric varies (largest minus smallest, seed by seed) by less than `ratio` times as
    much as over the arms of `b`."""

    metric: str
    a: str
    b: str
    ratio: float = 1.0
    control: bool = False

    def __post_init__(self) -> None:
        if not self.ratio > 0:
            raise UsageError("the ratio of Narrower must be above 0")

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        for pattern in (self.a, self.b):
            if len(matching(pattern, names)) < 2:
                raise UsageError(f"Narrower needs two arms or more on each side, and '{pattern}' matches one")
        return (*matching(self.a, names), *matching(self.b, names))

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        def spread(pattern: str) -> Array:
            return np.ptp(np.stack([value(arm) for arm in matching(pattern, names)]), axis=0)

        return [(self._text(), self.ratio * spread(self.b) - spread(self.a))]

    def text(self) -> str:
        return f"{self.metric}: {self._text()}"

    def _text(self) -> str:
        factor = "" if self.ratio == 1 else f"{self.ratio:g} x "
        return f"spread of {self.a} < {factor}spread of {self.b}"


@dataclass(frozen=True)
class Ordered(Expectation):
    """From the first arm to the last the metric goes "up" (or "down"), by more than `by` from each to its neighbor."""

    metric: str
    order: tuple[str, ...]
    direction: Literal["up", "down"] = "up"
    by: float = 0.0
    control: bool = False

    def __post_init__(self) -> None:
        _check_order(self)

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_known(arm, names) for arm in self.order)

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        sign = 1.0 if self.direction == "up" else -1.0
        arms = self.arms(names)
        return [
            (f"{a} {'<' if sign > 0 else '>'} {b}", sign * (value(b) - value(a)) - self.by) for a, b in pairwise(arms)
        ]

    def text(self) -> str:
        by = f" by {self.by:g} each" if self.by else ""
        return f"{self.metric}: {(' < ' if self.direction == 'up' else ' > ').join(self.order)}{by}"


@dataclass(frozen=True)
class Trend(Expectation):
    """Over the arms in this order the least-squares slope points "up" (or "down") and is steeper than `by`.

    `at` places the arms on the axis (0, 1, 2 ... when empty); neighbors may be out of order.
    """

    metric: str
    order: tuple[str, ...]
    direction: Literal["up", "down"] = "up"
    at: tuple[float, ...] = ()
    by: float = 0.0
    control: bool = False

    def __post_init__(self) -> None:
        _check_order(self)
        if self.at and (len(self.at) != len(self.order) or len(set(self.at)) < 2):
            raise UsageError(f"Trend has {len(self.order)} arms and needs as many places in at=, not all equal")

    def arms(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(_known(arm, names) for arm in self.order)

    def contrasts(self, names: Sequence[str], value: Value) -> list[Contrast]:
        place = np.asarray(self.at or range(len(self.order)), dtype=np.float64)
        weight = (place - place.mean()) / np.square(place - place.mean()).sum()
        sign = 1.0 if self.direction == "up" else -1.0
        arms = self.arms(names)
        slope = sign * (weight @ np.stack([value(arm) for arm in arms])) - self.by
        return [(f"slope over {', '.join(arms)}", slope)]

    def text(self) -> str:
        by = f" by more than {self.by:g}" if self.by else ""
        return f"{self.metric}: goes {self.direction}{by} over {', '.join(self.order)}"


@dataclass(frozen=True)
class Claim:
    """One experiment of a paper, made small, with what is expected of it.

    `budget` is what each arm may spend, in Ledger units, the same for all. `minutes` documents the wall time on two
    cores for all arms and seeds. `deterministic` arms (patterns) give the same numbers for every seed and run once.
    `quick` overrides the small budget of `--quick`. Raises UsageError when it is not well formed.
    """

    method: str
    statement: str
    budget: Mapping[str, int]
    arms: Mapping[str, Arm]
    expect: tuple[Any, ...]
    seeds: int = 5
    minutes: float = 15
    deterministic: tuple[str, ...] = ()
    quick: Mapping[str, int] | None = None
    MAX_MINUTES: ClassVar[float] = 60

    def __post_init__(self) -> None:
        if not self.arms:
            raise UsageError(f"the claim of {self.method} has no arms")
        for name in self.arms:
            if not ARM_NAME.fullmatch(name):
                raise UsageError(f"the arm name '{name}' may only hold a-z 0-9 @ . , = _ -")
        for value in self.budget.values():
            if value <= 0:
                raise UsageError(f"the budget of the claim of {self.method} must be above 0, not {value}")
        single = self.single()
        if self.seeds < MINIMUM_SEEDS and len(single) < len(self.arms):
            raise UsageError(f"the claim of {self.method} has {self.seeds} seeds; {MINIMUM_SEEDS} is the least")
        if self.minutes > self.MAX_MINUTES:
            raise UsageError(f"the claim of {self.method} takes {self.minutes:g} minutes; cut it to {self.MAX_MINUTES}")
        if not any(not expectation.control for expectation in self.expect):
            raise UsageError(f"the claim of {self.method} expects nothing beyond its controls")
        for expectation in self.expect:
            expectation.arms(tuple(self.arms))
            if not expectation.contrasts(tuple(self.arms), lambda arm: np.zeros(1)):
                raise UsageError(f"'{expectation.text()}' compares an arm with itself only")

    def single(self) -> tuple[str, ...]:
        """The deterministic arms."""
        return tuple(name for name in self.arms if any(fnmatchcase(name, pattern) for pattern in self.deterministic))

    def jobs(self, seeds: Iterable[int] | None = None) -> list[tuple[str, int]]:
        """All (arm, seed) of the claim, seeds outside and arms inside: an interrupted claim stays paired."""
        single = self.single()
        chosen = list(range(self.seeds) if seeds is None else seeds)
        return [
            (arm, seed)
            for position, seed in enumerate(chosen)
            for arm in self.arms
            if position == 0 or arm not in single
        ]


@dataclass(frozen=True)
class Part:
    """One contrast of one expectation: mean over `n` seeds, lower bound, worst seed; it holds when `low` > 0."""

    text: str
    mean: float
    low: float
    worst: float
    worst_seed: int
    n: int
    holds: bool


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
    checks = tuple(check(claim, expectation, table, range(claim.seeds)) for expectation in claim.expect)
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
        parts.append(
            Part(text, float(values.mean()), low, float(values[worst]), chosen[worst], len(values), bool(low > 0))
        )
    return Check(expectation.text(), expectation.control, all(part.holds for part in parts), tuple(parts))


def matching(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """The arms that match a pattern, in their own order. Raises UsageError, naming the arms, when there is none."""
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise UsageError(f"no arm matches '{pattern}'; the arms are {', '.join(names)}{_hint(pattern, names)}")
    return found


def describe(expectation: Any) -> dict[str, Any]:
    """The expectation as JSON: its kind and its fields."""
    values = {item.name: getattr(expectation, item.name) for item in fields(expectation)}
    return {"kind": type(expectation).__name__, **values}


def _hint(name: str, names: Sequence[str]) -> str:
    hint = nearest(name, names)
    return hint if hint.startswith("; did") else ""


def _known(arm: str, names: Sequence[str]) -> str:
    if arm not in names:
        raise UsageError(f"no arm is called '{arm}'; the arms are {', '.join(names)}{_hint(arm, names)}")
    return arm


def _check_order(expectation: Ordered | Trend) -> None:
    kind = type(expectation).__name__
    if isinstance(expectation.order, str) or len(expectation.order) < 2:
        raise UsageError(f"{kind} needs a tuple of two arms or more")
    if expectation.direction not in ("up", "down"):
        raise UsageError(f"{kind} goes 'up' or 'down', not '{expectation.direction}'")


def _number(metrics: Metrics, name: str, arm: str) -> float:
    if name not in metrics:
        raise UsageError(f"the arm '{arm}' gives no '{name}'{nearest(name, metrics)}")
    value = metrics[name]
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple, str, dict)):
        raise UsageError(f"'{name}' of the arm '{arm}' is not a number, so nothing can be expected of it")
    return float(value)

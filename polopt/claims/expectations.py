"""What may be expected of the arms of a claim: contrasts, one a seed, whose mean must be above 0. Torch-free.

Every expectation is a list of *parts*; a part is one contrast per seed, paired across arms. How parts are judged:
`polopt.claims.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import pairwise, permutations
from typing import Any, Literal

import numpy as np

from polopt.core.errors import UsageError, nearest
from polopt.evaluation.statistics import Array

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

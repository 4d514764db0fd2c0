"""Options of tasks, from the command line or from Python: each check gives one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from polopt.core.errors import UsageError, nearest


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an integer of at least `low`, at most `high`. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bound = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"{name} must be a whole number {bound}, not {value!r}")
    return value


def number(name: str, value: Any) -> float:
    """`value` as a finite float. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise UsageError(f"{name} must be a number, not {value!r}")
    return float(value)


def share(name: str, value: Any) -> float:
    """`value` as a probability. Raises UsageError."""
    if not 0.0 <= number(name, value) <= 1.0:
        raise UsageError(f"{name} is a probability, from 0 to 1, not {value!r}")
    return float(value)


def choice(name: str, value: Any, values: Sequence[str]) -> str:
    """`value` if it is one of `values`. Raises UsageError."""
    if value not in values:
        raise UsageError(f"{name} is one of {', '.join(values)}, not {value!r}")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """`value` as true or false. Raises UsageError."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {value!r}")
    return value


def levels_of(name: str, value: Any, bounds: tuple[int, int]) -> tuple[int, int]:
    """(low, high) from a pair, one number, or a text like "1-4" or "1,4". Raises UsageError."""
    parts = value
    if isinstance(value, str):
        parts = [int(part) if part.strip().isdecimal() else part for part in value.replace("-", ",").split(",")]
    parts = [parts] if isinstance(parts, int) else parts
    if not isinstance(parts, (list, tuple)) or not 1 <= len(parts) <= 2:
        raise UsageError(f"{name} must be one whole number or two (low, high), not {value!r}")
    low, high = whole(name, parts[0], *bounds), whole(name, parts[-1], *bounds)
    if low > high:
        raise UsageError(f"{name} must be (low, high) with low <= high, not {value!r}")
    return low, high


def shares_of(name: str, value: Any, known: Iterable[str] | None = None) -> tuple[list[str], list[float]]:
    """(texts, shares) from "one*3,other" or such texts by themselves; a share is 1 if none is told. Raises UsageError
    for shares that are not above 0 and texts that are not `known`."""
    each = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(each, (list, tuple)) or not each or not all(isinstance(part, str) for part in each):
        raise UsageError(f"{name} is a list of names with shares, such as one*3,other, not {value!r}")
    texts, shares = [], []
    for part in each:
        text, star, told = part.partition("*")
        try:
            share = float(told) if star else 1.0
        except ValueError:
            share = 0.0
        if not 0.0 < share < float("inf"):
            raise UsageError(f"a share in {name} must be a number above 0, not {told!r}")
        if known is not None and text not in known:
            raise UsageError(f"{name} has no '{text}'{nearest(text, list(known))}")
        texts.append(text)
        shares.append(share)
    return texts, shares

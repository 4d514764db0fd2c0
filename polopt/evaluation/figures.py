"""What a method shows besides numbers: fronts, archives, curves. Imports no torch.

`Method.figures()` gives them by name; each evaluation writes them to figures.json, and reports draw them. Numbers may
be lists, arrays or tensors; None and NaN are left out of a drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from polopt.core.errors import UsageError

Numbers = Sequence[Any] | Any  # [n]; Any: an array or a tensor


@dataclass(frozen=True)
class Curves:
    """Lines over one axis: each of `lines` has as many numbers as `x`.

    `dashed` names the lines that are not of the method: bounds, optima, what to compare with.
    """

    x: Numbers
    lines: Mapping[str, Numbers]
    x_label: str = ""
    y_label: str = ""
    dashed: Sequence[str] = ()
    log: bool = False

    def __post_init__(self) -> None:
        _same_length(self.x, *self.lines.values())


@dataclass(frozen=True)
class Paths:
    """Lines through points of two numbers in their order: `lines[name]` is (x, y), and begins at an open ring.

    `marks` are points to compare with, such as an equilibrium: (x, y) by name.
    """

    lines: Mapping[str, tuple[Numbers, Numbers]]
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    x_label: str = ""
    y_label: str = ""

    def __post_init__(self) -> None:
        for x, y in self.lines.values():
            _same_length(x, y)


@dataclass(frozen=True)
class Points:
    """Points of two numbers, with a label each where there are `labels`.

    With `front` both are objectives, more is better, and the points that no other one dominates are joined.
    """

    x: Numbers
    y: Numbers
    labels: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""
    front: bool = False

    def __post_init__(self) -> None:
        _same_length(self.x, self.y, *([self.labels] if len(self.labels) else []))


@dataclass(frozen=True)
class Heatmap:
    """A grid of numbers `values[row][column]`, the first row at the bottom; a cell without a number is empty."""

    values: Sequence[Numbers] | Any
    x_label: str = ""
    y_label: str = ""

    def __post_init__(self) -> None:
        _same_length(*self.values)


Figure = Curves | Paths | Points | Heatmap
KINDS: dict[str, type[Any]] = {"curves": Curves, "paths": Paths, "points": Points, "heatmap": Heatmap}


def to_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The figures as plain data."""
    return {
        name: {"kind": type(figure).__name__.lower()}
        | {item.name: _plain(getattr(figure, item.name)) for item in fields(figure)}
        for name, figure in figures.items()
    }


def from_json(data: Mapping[str, Any]) -> dict[str, Figure]:
    """What `to_json` gave. Raises KeyError, TypeError or UsageError for other data."""
    return {
        name: KINDS[entry["kind"]](**{key: value for key, value in entry.items() if key != "kind"})
        for name, entry in data.items()
    }


def _same_length(*columns: Any) -> None:
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        raise UsageError(f"a figure needs equally many numbers on all sides, not {', '.join(map(str, counts))}")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Which settings a sweep has: all combinations of values, or some that are drawn. Imports no torch."""

from __future__ import annotations

import itertools
import math
import random as rng
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polopt.core.errors import UsageError
from polopt.report.template import text_of

LONGEST = 60  # letters of a setting's name
DRAWS = 0  # the seed of --random: the same command draws the same settings, and more of them with a larger N


@dataclass(frozen=True)
class Between:
    """Values from `low` to `high`, to draw from: evenly over their logarithms where `low` is above 0, and whole numbers
    where both ends are."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise UsageError(f"{self.low:g}..{self.high:g}: the first number must be less than the second")

    def at(self, share: float) -> float | int:
        """The value at this share of the way, with three digits."""
        if self.low > 0:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return round(value) if whole else float(f"{value:.3g}")


Over = Mapping[str, Sequence[Any] | Between]


def read_over(words: Sequence[str]) -> dict[str, Sequence[str] | Between]:
    """`--over NAME=VALUE,VALUE` or `NAME=LOW..HIGH`, each as on the command line. Raises UsageError."""
    found: dict[str, Sequence[str] | Between] = {}
    for word in words:
        name, sign, text = word.removeprefix("--").partition("=")
        values = [value.strip() for value in text.split(",")]
        if not sign or not name or not all(values):
            raise UsageError(f"--over {word} is not of the form NAME=VALUE,VALUE or NAME=LOW..HIGH")
        name = name.replace("-", "_")
        if name in found:
            raise UsageError(f"--over {name} is given twice")
        found[name] = _between(text) or values
    return found


def settings_over(over: Over, random: int | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The values of each setting, and what they are as settings of `compare`."""
    if not over:
        raise UsageError("a sweep needs an option to vary: --over lr=1e-4,3e-4")
    for name, values in over.items():
        if not isinstance(values, Between) and len({text_of(value) for value in values}) < len(values):
            raise UsageError(f"--over {name}: a value is given twice")
    for chosen in _grid(over) if random is None else _drawn(over, random):
        words = {name: value for name, value in chosen.items() if isinstance(value, str)}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if name not in words}
        if words:
            given["argv"] = [part for name, value in words.items() for part in (f"--{name}", *value.split())]
        yield chosen, given


def _grid(over: Over) -> Iterator[dict[str, Any]]:
    lists: list[Sequence[Any]] = []
    for name, values in over.items():
        if isinstance(values, Between):
            what = f"--over {name}={values.low:g}..{values.high:g}"
            raise UsageError(f"{what} is to draw from: say how many with --random")
        lists.append(values)
    yield from (dict(zip(over, each)) for each in itertools.product(*lists))


def _drawn(over: Over, count: int) -> list[dict[str, Any]]:
    """So many settings that differ. Raises UsageError when there are not as many."""
    whole = math.prod(math.inf if isinstance(values, Between) else len(values) for values in over.values())
    if not 1 <= count <= whole:
        raise UsageError(f"--random {count}: at least 1" + (f", and here are {whole}" if whole < math.inf else ""))
    draws, tries = rng.Random(DRAWS), 0
    found: list[dict[str, Any]] = []
    while len(found) < count:
        values = {name: _draw(draws, each) for name, each in over.items()}
        tries += 1
        if values not in found:
            found.append(values)
        elif tries > 1000 * count:
            raise UsageError(f"--random {count}: there are not as many different settings")
    return found


def _draw(draws: rng.Random, values: Sequence[Any] | Between) -> Any:
    return values.at(draws.random()) if isinstance(values, Between) else values[int(draws.random() * len(values))]


def _between(text: str) -> Between | None:
    low, dots, high = text.partition("..")
    if not dots:
        return None
    try:
        return Between(*(int(end) if re.fullmatch(r"-?\d+", end) else float(end) for end in (low, high)))
    except ValueError:
        return None


def names_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each that a folder may have, unlike the others."""
    found: list[str] = []
    for values in settings:
        text = "_".join(f"{name}-{text_of(value)}" for name, value in values.items())
        base = re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-_")[:LONGEST]
        name, number = base, 2
        while name in found:
            name, number = f"{base}-{number}", number + 1
        found.append(name)
    return found

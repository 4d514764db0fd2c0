"""The number that a method is judged by. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polopt.core.errors import UsageError, nearest

BY_DATA = "-action_error"
"""What runs are judged by that have recorded data and no environment: how close they are to held-out decisions."""

NO_RETURN = "there was no environment, so no return was measured ('polopt eval RUN --ope' estimates it)"


@dataclass(frozen=True)
class Score:
    """One of the numbers that `evaluate` gives. Larger is better; "-regret" is minus the number `regret`.

    "Best" checkpoints, curves, comparisons and claims follow it; a run's config.json names it.
    """

    name: str = "return"

    @property
    def key(self) -> str:
        """Its name in what `evaluate` gives."""
        return self.name.removeprefix("-")

    @property
    def column(self) -> str:
        """Its column in metrics.csv, as it was evaluated."""
        return f"eval/{self.key}"

    @property
    def sign(self) -> float:
        return -1.0 if self.name.startswith("-") else 1.0

    @property
    def by_data(self) -> bool:
        """Whether it is of recorded decisions, of which no policy is better than its data."""
        return self.name == BY_DATA

    @property
    def text(self) -> str:
        """Its name for readers."""
        return self.name.replace("-", "minus ", 1).replace("_", " ") if self.sign < 0 else self.name.replace("_", " ")

    def of(self, scores: Mapping[str, float], by: str = "the evaluation") -> float:
        """The score among what `by` evaluated. Raises UsageError when it is not there."""
        if self.key not in scores:
            hint = nearest(self.key, scores)
            raise UsageError(f"{by} cannot be judged by '{self.name}', which it does not give{hint}")
        return self.sign * scores[self.key]


def common(scores: Iterable[tuple[str, Score]]) -> Score:
    """The one score of all, given with what has it. Raises UsageError when they differ."""
    found: dict[Score, str] = {}
    for label, score in scores:
        found.setdefault(score, label)
    if len(found) > 1:
        different = ", ".join(f"{label} by '{score.name}'" for score, label in found.items())
        raise UsageError(f"the methods are judged by different numbers ({different}): name one for all with --score")
    return next(iter(found))


def measured_apart(key: str, records: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One sentence where the number `key` is measured in other ways in one run than in another, or nothing.

    `records` are what config.json says of runs, by what each is called: `config`, the settings of its method, and
    `measured_by`, which of them that method measures a number by (`Settings.measured_by`).
    """
    for name in dict.fromkeys(name for _, record in records for name in record.get("measured_by", {}).get(key, ())):
        found: dict[Any, str] = {}
        for label, record in records:
            found.setdefault(_plain((record.get("config") or {}).get(name)), label)
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            said = f"{first} ({name} {_text(one)}) and {second} ({name} {_text(other)})"
            return f"'{key}' is not measured alike by {said}, and cannot be compared"
    return ""


def _plain(value: Any) -> Any:
    """A setting as a key; a point of zeros only is (), as which it is written where none is given."""
    return (tuple(value) if any(value) else ()) if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    return "none" if value is None else f"({', '.join(map(str, value))})" if isinstance(value, tuple) else str(value)

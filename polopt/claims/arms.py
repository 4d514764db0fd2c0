"""Arms of claims that train a method, and what is measured of a finished run. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims.keys import digest, plain
from polopt.claims.shared import run_folder
from polopt.core import files
from polopt.core.errors import CheckpointError, RunError, UsageError, nearest
from polopt.evaluation.score import Score

CHECKPOINTS = 10  # in a run: what a process that dies loses at most is a tenth of it


@dataclass(frozen=True)
class TrainArm:
    """An arm that trains a method; made by `train_arm`."""

    method: str
    task: Any
    metrics: Any = ()
    config: tuple[tuple[str, Any], ...] = ()
    unit: str | None = None

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        if self.unit is None and len(budget) != 1:
            raise UsageError(f"the budget {dict(budget)} has several units: give train_arm(..., unit=...)")
        steps = budget[self.unit] if self.unit is not None else next(iter(budget.values()))
        settings: dict[str, Any] = {"loggers": (), "threads": 1, "checkpoint_every": max(1, steps // CHECKPOINTS)}
        settings |= {**dict(self.config), "steps": steps}
        with run_folder(digest({"arm": self.describe(), "steps": steps, "seed": seed})) as place:
            run = _trained(self.method, self.task, seed, place, settings)
            if run.config["unit"] not in budget:
                raise UsageError(
                    f"{self.method} counts {run.config['unit']}, but the budget of its claim is {dict(budget)}"
                )
            return measure(run, self.metrics)

    @property
    def trains(self) -> tuple[str, ...]:
        """The methods whose behavior the numbers follow."""
        return (self.method,)

    def describe(self) -> dict[str, Any]:
        return {"train": self.method, "task": plain(self.task), "metrics": plain(self.metrics)} | {
            "config": plain(dict(self.config))
        }


def _trained(method: str, task: Any, seed: int, place: Path, settings: dict[str, Any]) -> Any:
    """The run in this folder: one that was stopped goes on, unless it is damaged, or of an earlier polopt."""
    from polopt.training.api import train

    if place.exists():
        from polopt.training.api import train_or_resume

        with suppress(UsageError, CheckpointError):
            return train_or_resume(method, task, seed, place, settings, False)
        files.remove(place)
    return train(method, task, seed=seed, out=place, **settings)


def train_arm(
    method: str,
    task: Any,
    *,
    metrics: Sequence[str] | Mapping[str, Any] = (),
    unit: str | None = None,
    **config: Any,
) -> TrainArm:
    """An arm that calls `polopt.train(method, task, steps=budget, seed=seed, **config)` and measures the run.

    Always measured, of the number that the method is judged by (`Method.score`): the mean of the last three
    evaluations under its own name, `return` for most; `area` (mean over all evaluations, the area under the learning
    curve), `best`, and `curve` (a list of [count, score]). `metrics` adds columns of the rows:
    "entropy" is the mean over the last fifth of the rows that have it, "entropy:max" (mean, min, max, last) over all
    of them; a mapping renames ({"bias": "critic/bias:last"}) or takes a module-level function `f(run) -> float`.
    `unit` chooses the budget's entry when it has several.
    """
    return TrainArm(
        method, task, metrics if isinstance(metrics, Mapping) else tuple(metrics), tuple(config.items()), unit
    )


def measure(run: Any, metrics: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, Any]:
    """The metrics of one finished run; see `train_arm`. Raises RunError when a number is not there."""
    evaluations = run.evaluations
    score: Score = run.score
    unit = run.config["unit"]
    scores = [score.sign * float(row[score.column]) for row in evaluations]
    if not scores:
        raise RunError("the run has no evaluation to measure")
    last = scores[-3:]
    found: dict[str, Any] = {
        score.name: sum(last) / len(last),
        "area": sum(scores) / len(scores),
        "best": max(scores),
        "curve": [[row[unit], value] for row, value in zip(evaluations, scores)],
    }
    for name, what in metrics.items() if isinstance(metrics, Mapping) else zip(metrics, metrics):
        found[name] = float(what(run)) if callable(what) else _column(run.rows, what)
    return found


def _column(rows: Sequence[Mapping[str, Any]], what: str) -> float:
    name, _, how = what.partition(":")
    values = [float(row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    if not values:
        raise RunError(f"the rows have no '{name}'{nearest(name, {key for row in rows for key in row})}")
    tail = values[-max(1, len(values) // 5) :]
    reductions = {"": tail, "mean": values, "min": [min(values)], "max": [max(values)], "last": values[-1:]}
    if how not in reductions:
        raise UsageError(f"'{what}' ends in ':{how}'{nearest(how, [key for key in reductions if key])}")
    return sum(reductions[how]) / len(reductions[how])

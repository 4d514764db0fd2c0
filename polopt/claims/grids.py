"""Arms made of arms: the same effort for every method, by one grid of settings. Importing this imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims.claim import Arm, Metrics
from polopt.claims.keys import describe_arm, digest
from polopt.claims.shared import shared
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.evaluation.score import Score

TUNING_SEED = 1500  # apart from the seeds of pilots, which would flatter what was tuned on them


@dataclass(frozen=True)
class Grid:
    """Arms by the value in which they differ, from the lowest to the highest."""

    arms: tuple[tuple[str, Arm], ...]

    def __post_init__(self) -> None:
        if len(self.arms) < 3:
            raise UsageError(f"a grid has three values or more, or its best cannot lie inside it; not {len(self.arms)}")

    @property
    def trains(self) -> tuple[str, ...]:
        """The methods that are trained; empty when an arm does not say."""
        return trained(arm for _, arm in self.arms)

    def described(self) -> dict[str, Any]:
        return {name: describe_arm(arm, name) for name, arm in self.arms}


@dataclass(frozen=True)
class BestOf(Grid):
    """An arm with the value of the grid that was best on tuning seeds; made by `best_of`."""

    by: str = "area"
    tuning_seeds: int = 2

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        key = f"best of {digest(self.describe())} {dict(budget)}"
        tuned = json.loads((shared(key, lambda folder: self.tune(folder, budget)) / "tuned.json").read_text())
        names = [name for name, _ in self.arms]
        place = max(range(len(names)), key=lambda index: tuned[names[index]])
        found = dict(self.arms[place][1](seed, dict(budget)))
        return found | {"chosen": names[place], "inside": float(0 < place < len(names) - 1), "tuned": tuned}

    def tune(self, folder: Path, budget: Mapping[str, int]) -> None:
        """Writes the mean score of every value over the tuning seeds."""
        score, seeds = Score(self.by), range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)
        means = {
            name: sum(score.of(arm(seed, dict(budget)), f"the arm at {name}") for seed in seeds) / self.tuning_seeds
            for name, arm in self.arms
        }
        files.write(folder / "tuned.json", json.dumps(means).encode())

    def describe(self) -> dict[str, Any]:
        return {"best_of": self.described(), "by": self.by, "tuning_seeds": self.tuning_seeds}


@dataclass(frozen=True)
class MeanOf(Grid):
    """An arm that runs every value of the grid; made by `mean_of`."""

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        runs = {name: arm(seed, dict(budget)) for name, arm in self.arms}
        first = next(iter(runs.values()))
        numbers = [name for name, value in first.items() if isinstance(value, (int, float))]
        means = {name: sum(run[name] for run in runs.values()) / len(runs) for name in numbers}
        return means | {f"{name}@{value}": run[name] for value, run in runs.items() for name in first}

    def describe(self) -> dict[str, Any]:
        return {"mean_of": self.described()}


@dataclass(frozen=True)
class Together:
    """An arm that runs all seeds at once; made by `together`."""

    function: Callable[[tuple[int, ...], dict[str, int]], Mapping[int, Metrics]]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> Metrics:
        return self.table((seed,), budget)[seed]

    def table(self, seeds: tuple[int, ...], budget: Mapping[str, int]) -> Mapping[int, Metrics]:
        found = self.function(seeds, dict(budget))
        if set(found) != set(seeds):
            raise UsageError(f"an arm of all seeds was asked for {list(seeds)} and gave {sorted(found)}")
        return found

    def describe(self) -> dict[str, Any]:
        return {"together": describe_arm(self.function)}


def best_of(make: Callable[[Any], Arm], values: Sequence[Any], *, by: str = "area", tuning_seeds: int = 2) -> BestOf:
    """An arm that trains with one of `values`, chosen once for all seeds: the one whose arm `make(value)` has the
    largest mean of the metric `by` ("-loss": the smallest `loss`) over tuning seeds.

    Its metrics are those of the chosen arm, and `chosen`, `tuned` (the means), and `inside`: 1 when the best value is
    neither the first nor the last of the grid. Raises UsageError for fewer than three values.
    """
    return BestOf(_grid(make, values), by, tuning_seeds)


def mean_of(make: Callable[[Any], Arm], values: Sequence[Any]) -> MeanOf:
    """An arm whose metrics are means over the arms `make(value)`: a comparison that needs no choice.

    Beside each `metric` stands "metric@value" of every value. Raises UsageError for fewer than three values.
    """
    return MeanOf(_grid(make, values))


def together(function: Callable[[tuple[int, ...], dict[str, int]], Mapping[int, Metrics]]) -> Together:
    """An arm that computes all its seeds as one table: `function(seeds, budget) -> {seed: metrics}`."""
    return Together(function)


def trained(arms: Any) -> tuple[str, ...]:
    """The methods that these arms say they train; empty when one does not say."""
    found = [getattr(arm, "trains", ()) for arm in arms]
    return tuple(sorted({name for names in found for name in names})) if all(found) else ()


def _grid(make: Callable[[Any], Arm], values: Sequence[Any]) -> tuple[tuple[str, Arm], ...]:
    names = [f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values]
    if len(set(names)) < len(names):
        raise UsageError(f"the values of a grid must differ: {', '.join(names)}")
    return tuple((name, make(value)) for name, value in zip(names, values))

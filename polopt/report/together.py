"""Several tasks as one: scores on one scale, and what methods reach over all of them.

The scale of a task is that of its range, 0 at the lower end and 1 at the upper one; by default from the worst to the
best run of the report. Seeds are resampled within tasks (stratified bootstrap), as in Agarwal et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from typing import Any

from polopt.core.errors import UsageError, nearest
from polopt.evaluation.profiles import improvement_over_tasks, optimality_gap, performance_profile, thresholds_of
from polopt.evaluation.statistics import Interval, finite, stratified_bootstrap
from polopt.report.runs import RunData, flatten

Ranges = Mapping[str, tuple[float, float]]


def check_ranges(tasks: Iterable[str], ranges: Ranges) -> None:
    """Raises UsageError for a range of a task that is not there, or without width."""
    known = {"", *tasks}
    for name, (low, high) in ranges.items():
        if name not in known:
            raise UsageError(f"--range {name}: there is no such task here{nearest(name, known - {''})}")
        if not low < high or not math.isfinite(high - low):
            raise UsageError(f"--range {low:g} {high:g}: the first number must be less than the second")


def ranges_for(groups: Mapping[str, Mapping[str, Sequence[RunData]]], ranges: Ranges) -> dict[str, tuple[float, float]]:
    """The range of each task that has one: by its name, with or without options, or that of all. Raises UsageError."""
    names = {task: next(iter(labeled.values()))[0].task for task, labeled in groups.items()}
    check_ranges({*groups, *names.values()}, ranges)
    found = {task: ranges.get(task) or ranges.get(names[task]) or ranges.get("") for task in groups}
    return {task: within for task, within in found.items() if within is not None}


def together(
    tasks: Mapping[str, Mapping[str, Mapping[str, Any]]], ranges: Ranges, apart: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What the methods that ran on every one of several tasks reach over all; None where there are none.

    `tasks` holds what `comparison` says of the methods of each. As there: `methods`, `improvement`, `profile`,
    `warnings`; beside them `tasks`, `score`, and `high`, 1 where all tasks have a range and so an optimality gap.
    """
    shared = [label for label in next(iter(tasks.values()), {}) if all(label in methods for methods in tasks.values())]
    if len(tasks) < 2 or not shared:
        return None
    scaled = {task: _scaled(methods, ranges.get(task)) for task, methods in tasks.items()}
    known = all(task in ranges for task in tasks)
    rows: dict[str, dict[str, Any]] = {}
    for label in shared:
        scores = [list(scaled[task][label].values()) for task in tasks]
        rows[label] = {
            "seeds": [seed for task in tasks for seed in scaled[task][label]],
            "scores": [plain(value) for each in scores for value in each],
            "iqm": as_data(stratified_bootstrap(scores)),
        }
        if known:
            rows[label]["gap"] = as_data(stratified_bootstrap(scores, optimality_gap(1.0)))
    order = best_first(rows)
    improvement = []
    for a, b in permutations(order, 2):
        pairs = []
        for each in scaled.values():
            seeds = [seed for seed in each[a] if seed in each[b]]
            pairs.append(([each[a][seed] for seed in seeds], [each[b][seed] for seed in seeds]))
        improvement.append({"a": a, "b": b, "probability": as_data(improvement_over_tasks(pairs))})
    left = sorted({label for methods in tasks.values() for label in methods} - set(shared))
    warnings = [f"Not on every task, and left out of this: {', '.join(left)}."] if left else []
    if not known:
        warnings.append("Scores are scaled from the worst to the best run here, for tasks without a --range.")
    return {
        "tasks": list(tasks),
        "score": "score between 0 and 1 of each task",
        "high": 1.0 if known else None,
        "methods": {label: rows[label] for label in order},
        "improvement": improvement,
        "profile": profiles({label: [list(each[label].values()) for each in scaled.values()] for label in order}),
        "warnings": [*warnings, *apart],
    }


def settings_apart(groups: Mapping[str, Mapping[str, Sequence[RunData]]]) -> list[str]:
    """Sentences about methods whose settings are not the same on every task."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for labeled in groups.values():
        for label, runs in labeled.items():
            config = runs[0].config
            settings = {**flatten(config.get("config", {})), "method": runs[0].method, "steps": config.get("steps")}
            seen.setdefault(label, []).append(settings)
    found = []
    for label, each in seen.items():
        names = list(dict.fromkeys(key for one in each for key in one))
        differing = [name for name in names if any(one.get(name) != each[0].get(name) for one in each)]
        if differing:
            found.append(f"{label} has other settings on other tasks: {', '.join(differing)}.")
    return found


def profiles(scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The performance profile of each method, at the same thresholds; `scores` are those of each task."""
    at = thresholds_of([value for tasks in scores.values() for task in tasks for value in task])
    found = {}
    for label, tasks in scores.items():
        profile = performance_profile(tasks, at)
        found[label] = {name: [plain(float(value)) for value in getattr(profile, name)] for name in BANDS}
    return {"thresholds": at.tolist(), "methods": found}


BANDS = ("share", "low", "high")


def _scaled(
    methods: Mapping[str, Mapping[str, Any]], within: tuple[float, float] | None
) -> dict[str, dict[Any, float]]:
    """The scores of one task by label and seed, on the scale of its range."""
    scores = {
        label: {seed: math.nan if value is None else value for seed, value in zip(row["seeds"], row["scores"])}
        for label, row in methods.items()
    }
    kept = finite([value for row in scores.values() for value in row.values()])
    low, high = within or ((float(kept.min()), float(kept.max())) if len(kept) else (0.0, 1.0))
    width = high - low or 1.0  # where all are equal, all are 0
    return {label: {seed: (value - low) / width for seed, value in row.items()} for label, row in scores.items()}


def best_first(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The labels, by their interquartile means; those without a number last."""
    means = {label: row["iqm"]["estimate"] for label, row in methods.items()}
    return sorted(methods, key=lambda label: math.inf if means[label] is None else -means[label])


def as_data(interval: Interval) -> dict[str, Any]:
    return {name: plain(value) for name, value in asdict(interval).items()} | {"text": str(interval)}


def plain(value: Any) -> Any:
    """For JSON, which has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

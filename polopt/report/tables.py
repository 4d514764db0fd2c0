"""Comparisons of methods over seeds, as data, in the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.evaluation.score import common
from polopt.evaluation.statistics import Interval, bootstrap, paired_difference, probability_of_improvement
from polopt.report.runs import LAST, RunData, labels, read_runs

if TYPE_CHECKING:
    from rich.console import Console


def comparison(runs: Iterable[Path | str | RunData], score: str | None = None) -> dict[str, Any]:
    """Compares methods task by task; plain data, ready for JSON.

    The score of a run is the mean of its last three evaluations of `score`, or else of the number that its method is
    judged by. Per task: `score`, its name; `methods` {label: seeds, scores, iqm {estimate, low, high, n, level}}, best
    first; `improvement`, for every ordered pair P(a > b) and the mean paired difference over the seeds that both have;
    `warnings`, sentences about what a reader must know.

    Raises UsageError when the methods of a task are judged by different numbers, or a run does not have `score`.
    """
    data = read_runs(runs, score)
    tasks: dict[str, list[tuple[str, RunData]]] = {}
    for label, run in zip(labels(data), data):
        tasks.setdefault(run.task, []).append((label, run))
    return {
        "score": f"mean of the last {LAST} evaluations of a run",
        "interval": "95 % percentile bootstrap over seeds",
        "tasks": {task: _compare(members) for task, members in tasks.items()},
    }


def _compare(members: Sequence[tuple[str, RunData]]) -> dict[str, Any]:
    score = common((label, run.judged_by) for label, run in members)
    groups: dict[str, list[RunData]] = {}
    for label, run in members:
        groups.setdefault(label, []).append(run)
    scores = {label: _by_seed(runs) for label, runs in groups.items()}
    methods: dict[str, dict[str, Any]] = {
        label: {
            "seeds": list(values),
            "scores": [_json(value) for value in values.values()],
            "iqm": _interval(bootstrap(list(values.values()))),
        }
        for label, values in scores.items()
    }
    ranked = sorted(methods.items(), key=lambda item: -_rank(item[1]["iqm"]["estimate"]))
    order = [label for label, _ in ranked]
    improvement = []
    for a, b in permutations(order, 2):
        shared = [seed for seed in scores[a] if seed in scores[b]]
        x, y = [scores[a][seed] for seed in shared], [scores[b][seed] for seed in shared]
        improvement.append(
            {
                "a": a,
                "b": b,
                "seeds": shared,
                "probability": _interval(probability_of_improvement(x, y)),
                "difference": _interval(paired_difference(x, y)),
            }
        )
    return {
        "score": score.text,
        "methods": dict(ranked),
        "improvement": improvement,
        "warnings": _warnings(groups, scores),
    }


def _by_seed(runs: Sequence[RunData]) -> dict[Any, float]:
    """Scores by seed; a seed that was run twice counts once, by its last folder."""
    return {run.seed: run.score for run in sorted(runs, key=lambda run: (run.seed is None, run.seed or 0))}


def _warnings(groups: dict[str, list[RunData]], scores: dict[str, dict[Any, float]]) -> list[str]:
    found = []
    for label, runs in groups.items():
        count = len(scores[label])
        if count == 1:
            found.append(f"{label}: one seed gives no interval.")
        elif count < 5:
            found.append(f"{label}: {count} seeds; a bootstrap interval over so few is too narrow.")
        if len(runs) > count:
            found.append(f"{label}: {len(runs) - count} of {len(runs)} runs repeat a seed and are left out.")
        missing = [seed for seed, value in scores[label].items() if not math.isfinite(value)]
        if missing:
            found.append(f"{label}: no evaluation for seed {', '.join(map(str, missing))}.")
        for run in runs:
            if run.damage:
                found.append(f"{label}, seed {run.seed}: {run.damage}")
            if run.cut:
                found.append(f"{label}, seed {run.seed}: {run.cut[0].lower()}{run.cut[1:]}")
            if not run.finished:
                found.append(f"{label}, seed {run.seed}: stopped at {run.spent:,.0f} of {run.config['steps']:,} steps.")
    found += {run.by_data: "" for runs in groups.values() for run in runs if run.by_data}
    budgets = {(run.unit, run.config.get("steps")) for runs in groups.values() for run in runs}
    if len(budgets) > 1:
        texts = ", ".join(sorted(f"{steps:,} {unit}" if steps else unit for unit, steps in budgets))
        found.append(f"The runs have different budgets: {texts}.")
    if len({tuple(values) for values in scores.values()}) > 1:
        found.append("The methods were not run on the same seeds: pairs use the seeds that both have.")
    return found


def _rank(value: float | None) -> float:
    return -math.inf if value is None else value


def _interval(interval: Interval) -> dict[str, Any]:
    return {name: _json(value) for name, value in asdict(interval).items()} | {"text": str(interval)}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `comparison` returned."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    for task, facts in result["tasks"].items():
        table = Table("method", "seeds", "interquartile mean [95 % interval]", "worst seed", "best seed")
        table.title = escape(f"{task}: {facts['score']}")
        for label, row in facts["methods"].items():
            kept = [value for value in row["scores"] if value is not None]
            worst, best = (f"{min(kept):.4g}", f"{max(kept):.4g}") if kept else ("-", "-")
            table.add_row(escape(label), str(len(row["seeds"])), escape(row["iqm"]["text"]), worst, best)
        console.print(table)
        order = list(facts["methods"])
        pairs = [item for item in facts["improvement"] if order.index(item["a"]) < order.index(item["b"])]
        if pairs:
            table = Table("", "probability of improvement", "paired difference (Student t)")
            for item in pairs:
                name = escape(f"{item['a']} > {item['b']}")
                table.add_row(name, escape(item["probability"]["text"]), escape(item["difference"]["text"]))
            console.print(table)
        for text in facts["warnings"]:
            console.print(f"[yellow]{escape(text)}[/yellow]")
    console.print(f"[dim]score: {result['score']}; intervals: {result['interval']}[/dim]")


def compare_table(runs: Iterable[Path | str | RunData], score: str | None = None, width: int = 110) -> str:
    """The printed comparison as plain text; see `comparison`."""
    import io

    from rich.console import Console

    text = io.StringIO()
    print_comparison(comparison(runs, score), Console(file=text, width=width))
    return text.getvalue().rstrip()

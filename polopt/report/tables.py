"""Comparisons of methods over seeds, as data, in the terminal and for the page."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.evaluation.profiles import optimality_gap
from polopt.evaluation.score import Score, common, measured_apart
from polopt.evaluation.statistics import bootstrap, paired_difference, probability_of_improvement
from polopt.report.runs import LAST, RunData, grouped, read_runs
from polopt.report.together import (
    Ranges,
    as_data,
    best_first,
    plain,
    profiles,
    ranges_for,
    settings_apart,
    together,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 110  # columns of tables that go to a file


def comparison(
    runs: Iterable[Path | str | RunData], score: str | None = None, ranges: Ranges | None = None
) -> dict[str, Any]:
    """Compares methods task by task, and over all tasks; plain data, ready for JSON.

    The score of a run is the mean of its last three evaluations of `score`, or else of the number that its method is
    judged by. Per task: `score`, its name; `methods` {label: seeds, scores, iqm {estimate, low, high, n, level}}, best
    first; `improvement`, for every ordered pair P(a > b) and the mean paired difference over the seeds that both have;
    `profile`, the share of runs above each of `thresholds`; `warnings`, sentences about what a reader must know;
    `others`, `methods` and `improvement` of every other number that the evaluations of all methods give, as it is
    (whether more of it is better only the number itself says). With a range of scores for the task, `gap` of each
    method is the optimality gap to its upper end.
    `together`, where there are several tasks, is what `polopt.report.together` says of all.

    Args:
        ranges: (low, high) of the scores of each task by name; of all tasks without a range of their own under "".

    Raises UsageError when the methods of a task are judged by different numbers, a run does not have `score`, or a
    range is of no task here.
    """
    data = read_runs(runs, score)
    groups = grouped(data)
    ranges = ranges_for(groups, ranges or {})
    tasks = {task: _compare(labeled, ranges.get(task)) for task, labeled in groups.items()}
    return {
        "score": f"mean of the last {LAST} evaluations of a run",
        "interval": "95 % percentile bootstrap over seeds",
        "tasks": tasks,
        "together": together({task: facts["methods"] for task, facts in tasks.items()}, ranges, settings_apart(groups)),
    }


def _compare(groups: dict[str, list[RunData]], within: tuple[float, float] | None) -> dict[str, Any]:
    score = common((label, run.judged_by) for label, runs in groups.items() for run in runs)
    scores = {label: _by_seed(runs, score) for label, runs in groups.items()}
    methods = _over_seeds(scores)
    if within is not None:
        for label, row in methods.items():
            row["gap"] = as_data(bootstrap(list(scores[label].values()), optimality_gap(within[1])))
    order = best_first(methods)
    others, apart = _others(groups, score, order)
    return {
        "score": score.text,
        "range": None if within is None else list(within),
        "methods": {label: methods[label] for label in order},
        "improvement": _pairs(scores, order),
        "profile": profiles({label: [list(scores[label].values())] for label in order}),
        "others": others,
        "warnings": [*apart, *_warnings(groups, scores)],
    }


def _others(
    groups: dict[str, list[RunData]], score: Score, order: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What all evaluate besides `score`, and sentences about what they do not measure alike."""
    runs = [run for theirs in groups.values() for run in theirs]
    records = [(label, run.config) for label, theirs in groups.items() for run in theirs]
    found, apart = {}, [measured_apart(score.key, records)]
    for name in runs[0].evaluated:
        if name == score.key or not all(name in run.evaluated for run in runs):
            continue
        if said := measured_apart(name, records):
            apart.append(said)
            continue
        numbers = {label: _by_seed(groups[label], Score(name)) for label in order}
        found[name] = {"methods": _over_seeds(numbers), "improvement": _pairs(numbers, order)}
    return found, [f"{said}." for said in apart if said]


def _over_seeds(numbers: dict[str, dict[Any, float]]) -> dict[str, dict[str, Any]]:
    return {
        label: {
            "seeds": list(values),
            "scores": [plain(value) for value in values.values()],
            "iqm": as_data(bootstrap(list(values.values()))),
        }
        for label, values in numbers.items()
    }


def _pairs(numbers: dict[str, dict[Any, float]], order: Sequence[str]) -> list[dict[str, Any]]:
    """Every ordered pair, over the seeds that both have."""
    found = []
    for a, b in permutations(order, 2):
        shared = [seed for seed in numbers[a] if seed in numbers[b]]
        x, y = [numbers[a][seed] for seed in shared], [numbers[b][seed] for seed in shared]
        found.append(
            {
                "a": a,
                "b": b,
                "seeds": shared,
                "probability": as_data(probability_of_improvement(x, y)),
                "difference": as_data(paired_difference(x, y)),
            }
        )
    return found


def _by_seed(runs: Sequence[RunData], score: Score) -> dict[Any, float]:
    """Final numbers by seed; a seed that was run twice counts once, by its last folder."""
    return {run.seed: run.final(score) for run in sorted(runs, key=lambda run: (run.seed is None, run.seed or 0))}


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


def print_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `comparison` returned: as wide as the terminal, or 110 columns where there is none."""
    from rich.console import Console

    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    for task, facts in result["tasks"].items():
        _print_scores(console, f"{task}: {facts['score']}", facts, facts["range"] and facts["range"][1])
        _print_pairs(console, facts)
        _print_profile(console, facts["profile"])
        _print_others(console, facts["others"])
        _print_warnings(console, facts["warnings"])
    whole = result["together"]
    if whole is not None:
        _print_scores(console, f"all {len(whole['tasks'])} tasks: {whole['score']}", whole, whole["high"])
        _print_pairs(console, whole)
        _print_profile(console, whole["profile"])
        _print_warnings(console, whole["warnings"])
    console.print(f"[dim]score: {result['score']}; intervals: {result['interval']}[/dim]")


def print_ranking(ranking: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `polopt.report.sweep.ranking` returned."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    table = _table(ranking["title"], *ranking["heads"])
    for row in ranking["rows"]:
        _add(table, *row)
    console.print(table)
    console.print(f"[dim]{escape(ranking['said'])}[/dim]")
    _print_warnings(console, ranking["errors"])


def _print_scores(console: Console, title: str, facts: dict[str, Any], high: float | None) -> None:
    heads = ["method", "seeds", "interquartile mean [95 % interval]"]
    heads += ["worst seed", "best seed"] + ([f"optimality gap to {high:.4g}"] if high is not None else [])
    table = _table(title, *heads)
    for label, row in facts["methods"].items():
        kept = [value for value in row["scores"] if value is not None]
        ends = [f"{min(kept):.4g}", f"{max(kept):.4g}"] if kept else ["-", "-"]
        gap = [row["gap"]["text"]] if "gap" in row else []
        _add(table, label, str(len(row["seeds"])), row["iqm"]["text"], *ends, *gap)
    console.print(table)


def _print_pairs(console: Console, facts: dict[str, Any]) -> None:
    order = list(facts["methods"])
    pairs = [item for item in facts["improvement"] if order.index(item["a"]) < order.index(item["b"])]
    if not pairs:
        return
    differ = "difference" in pairs[0]
    table = _table("", "", "probability of improvement", *(["paired difference (Student t)"] if differ else []))
    for item in pairs:
        more = [item["difference"]["text"]] if differ else []
        _add(table, f"{item['a']} > {item['b']}", item["probability"]["text"], *more)
    console.print(table)


def _print_profile(console: Console, profile: dict[str, Any]) -> None:
    """The profile at a few thresholds."""
    places = range(10, len(profile["thresholds"]) - 1, 10)
    table = _table("", "share of runs above", *(f"{profile['thresholds'][place]:.4g}" for place in places))
    for label, row in profile["methods"].items():
        shares = (row["share"][place] for place in places)
        _add(table, label, *("-" if share is None else f"{share:.0%}" for share in shares))
    console.print(table)


def _print_others(console: Console, others: dict[str, dict[str, Any]]) -> None:
    """Every other number of the evaluations, and how surely it is larger than that of the first method."""
    if not others:
        return
    first, *more = next(iter(others.values()))["methods"]
    heads = ["other numbers", "method", "interquartile mean [95 % interval]"]
    table = _table("", *heads, *([f"probability of more than {first}"] if more else []))
    for name, facts in others.items():
        above = {item["a"]: item["probability"]["text"] for item in facts["improvement"] if item["b"] == first}
        for label, row in facts["methods"].items():
            pair = [above.get(label, "")] if more else []
            _add(table, name if label == first else "", label, row["iqm"]["text"], *pair)
    console.print(table)


def _print_warnings(console: Console, warnings: Sequence[str]) -> None:
    from rich.markup import escape

    for text in warnings:
        console.print(f"[yellow]{escape(text)}[/yellow]")


def _table(title: str, *heads: str) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    # Long names are folded; a number is never cut.
    columns = [Column(escape(head), overflow="fold", ratio=None) for head in heads]
    return Table(*columns, title=escape(title) or None)


def _add(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*map(escape, cells))


def compare_table(
    runs: Iterable[Path | str | RunData], score: str | None = None, width: int = WIDTH, ranges: Ranges | None = None
) -> str:
    """The printed comparison as plain text; see `comparison`."""
    return as_text(comparison(runs, score, ranges), width)


def as_text(result: dict[str, Any], width: int = WIDTH) -> str:
    """What `print_comparison` prints, `width` columns wide."""
    import io

    from rich.console import Console

    text = io.StringIO()
    print_comparison(result, Console(file=text, width=width))
    return text.getvalue().rstrip()

"""Pictures of comparisons: inline for the page, and as files for papers; and their numbers as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polopt.core import files
from polopt.evaluation.statistics import aggregate_curves
from polopt.report import curves, sheets
from polopt.report.curves import canvas, count_axis, legend
from polopt.report.figures import SIZE, Drawing, drawings
from polopt.report.runs import COUNTS, RunData, grouped, labels, tasks_of

Groups = Mapping[str, Sequence[RunData]]
FORMATS = (".svg", ".pdf")
LONGEST = 80  # letters of a file name


def learning_curves(groups: Groups) -> tuple[str, str]:
    """SVG and caption of the evaluations of each label: see `draw_curves`."""
    with canvas(11.6, 4.6) as (axes, svg):
        caption = draw_curves(axes, groups, curves.SERIES, curves.INK)
    return svg[0], caption


def score_chart(facts: Mapping[str, Any]) -> str:
    """SVG of final scores: a dot and interval per label, single seeds as small marks."""
    with canvas(11.6, _height(facts)) as (axes, svg):
        draw_scores(axes, facts, curves.SERIES)
    return svg[0]


def profile_chart(facts: Mapping[str, Any]) -> str:
    """SVG of the performance profiles."""
    with canvas(11.6, 3.6) as (axes, svg):
        draw_profile(axes, facts, curves.SERIES, curves.INK)
    return svg[0]


def write_figures(result: Mapping[str, Any], runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Writes what the page of a comparison draws as SVG and PDF, and every evaluation as evaluations.csv.

    `result` is what `comparison` said of these runs. Raises RunError where it cannot be written.
    """
    found: list[Path] = []
    taken: set[str] = set()

    def save(stem: str, width: float, height: float, draw: Callable[[Any], object]) -> None:
        paths = [folder / f"{stem}{suffix}" for suffix in FORMATS]
        with sheets.sheet(paths, 1, 1, width, height) as (_, axes):
            draw(axes[0, 0])
        found.extend(paths)

    try:
        for task, labeled in grouped(runs).items():
            facts, stem = result["tasks"][task], _stem(task, taken)
            ordered = {label: labeled[label] for label in facts["methods"]}
            draw = partial(draw_curves, groups=ordered, series=sheets.SERIES, ink=sheets.INK)
            save(f"{stem}-curves", 6.4, 4.0, draw)
            _save_measures(save, stem, facts)
            for title, drawing in drawings(ordered):
                save(_stem(f"{stem}-{title}", taken), *SIZE, partial(_put, drawing))
        if result["together"] is not None:
            _save_measures(save, _stem("all", taken), result["together"])
        write_evaluations(runs, folder / "evaluations.csv")
    except OSError as error:
        raise files.refused(folder, error) from error
    return [*found, folder / "evaluations.csv"]


def _put(drawing: Drawing, axes: Any) -> None:
    drawing(axes, sheets.SERIES, sheets.INK, sheets.FAINT)


def _save_measures(save: Callable[..., None], stem: str, facts: Mapping[str, Any]) -> None:
    save(f"{stem}-scores", 6.4, _height(facts), lambda axes: draw_scores(axes, facts, sheets.SERIES))
    save(f"{stem}-profile", 6.4, 3.4, lambda axes: draw_profile(axes, facts, sheets.SERIES, sheets.INK))


def _stem(name: str, taken: set[str]) -> str:
    """A file name for a task, unlike the others."""
    base = re.sub(r"[^\w.-]+", "_", name).strip("_.")[:LONGEST] or "task"
    stem, number = base, 2
    while stem in taken:
        stem, number = f"{base}-{number}", number + 1
    taken.add(stem)
    return stem


def write_evaluations(runs: Sequence[RunData], file: Path) -> None:
    """One line for each evaluation of each run; an empty cell where an evaluation does not have that number."""
    columns = dict.fromkeys(name for run in runs for name in run.columns if name.startswith("eval/"))
    counts = [name for name in (*COUNTS, "seconds") if any(name in run.columns for run in runs)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "name", "method", "seed", "folder", "unit", "steps", *counts, *columns])
    for task, label, run in zip(tasks_of(runs), labels(runs), runs):
        about = [task, label, run.method, run.seed, run.folder.resolve().name, run.unit]
        for row in range(run.rows):
            values = [_cell(run, name, row) for name in columns]
            if any(values):
                numbers = [_cell(run, name, row) for name in (run.unit, *counts)]
                writer.writerow([*about, *numbers, *values])
    files.make_folder(file.parent)
    files.replace(file, text.getvalue().encode())


def _cell(run: RunData, name: str, row: int) -> str:
    column = run.columns.get(name)
    if column is None or np.isnan(column[row]):
        return ""
    value = float(column[row])
    return str(int(value)) if value.is_integer() else repr(value)


def draw_curves(axes: Any, groups: Groups, series: Sequence[str], ink: str) -> str:
    """Evaluations per label: interquartile mean over seeds, band, each seed as a thin line. Returns the caption.

    Where the budgets of the methods count different things, the axis is the share that is spent.
    """
    units = {run.unit for runs in groups.values() for run in runs}
    count = 0
    for index, (label, runs) in enumerate(groups.items()):
        color = series[index % len(series)]
        lines = [run.evaluations() for run in runs]
        if len(units) > 1:
            lines = [(steps / (run.config.get("steps") or run.spent), each) for run, (steps, each) in zip(runs, lines)]
        for line in lines:
            axes.plot(*line, color=color, linewidth=0.7, alpha=0.35)
        total = aggregate_curves(lines)
        count += total.n
        if total.n > 1:
            axes.fill_between(total.steps, total.low, total.high, color=color, alpha=0.16, linewidth=0)
        if total.n:
            name = f"{label} ({total.n} seed{'s' if total.n > 1 else ''})"
            axes.plot(total.steps, total.center, color=color, linewidth=2.2, label=name)
    if len(units) > 1:
        axes.set_xlabel("share of the budget")
    else:
        count_axis(axes, next(iter(units)))
    axes.set_ylabel(f"evaluation: {next(iter(groups.values()))[0].judged_by.text}")
    legend(axes, count, ink)
    if not count:
        return "No evaluation has been recorded yet."
    mixed = f" Budgets count {' or '.join(sorted(units)).replace('_', ' ')}." if len(units) > 1 else ""
    band = "band: 95 % percentile bootstrap over seeds; thin lines: single seeds."
    return f"Interquartile mean over seeds; {band}{mixed}"


def draw_scores(axes: Any, facts: Mapping[str, Any], series: Sequence[str]) -> None:
    rows = list(facts["methods"].items())
    for index, (_, row) in enumerate(rows):
        iqm, color = row["iqm"], series[index % len(series)]
        kept = [value for value in row["scores"] if value is not None]
        axes.plot(kept, [index] * len(kept), "|", color=color, markersize=11, alpha=0.55)
        if iqm["low"] is not None:
            axes.plot([iqm["low"], iqm["high"]], [index, index], color=color, linewidth=5, alpha=0.35)
        if iqm["estimate"] is not None:
            axes.plot([iqm["estimate"]], [index], "o", color=color, markersize=7)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("final score" if "tasks" not in facts else facts["score"])


def draw_profile(axes: Any, facts: Mapping[str, Any], series: Sequence[str], ink: str) -> None:
    """The share of runs above each score, with its band."""
    profile = facts["profile"]
    at = _array(profile["thresholds"])
    for index, (label, row) in enumerate(profile["methods"].items()):
        color = series[index % len(series)]
        low, high = _array(row["low"]), _array(row["high"])
        if np.isfinite(low).any():
            axes.fill_between(at, low, high, color=color, alpha=0.16, linewidth=0, step="mid")
        axes.step(at, _array(row["share"]), where="mid", color=color, linewidth=2.0, label=label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("final score" if "tasks" not in facts else facts["score"])
    axes.set_ylabel("share of runs above")
    legend(axes, len(profile["methods"]), ink)


def _height(facts: Mapping[str, Any]) -> float:
    return 0.75 + 0.42 * len(facts["methods"])


def _array(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

"""Curves as inline SVG: no script, no network, colors from the page, so that light and dark both read well."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from polopt.evaluation.score import Score
from polopt.evaluation.statistics import Array, student_t
from polopt.report.runs import RunData

# Drawn in these, and replaced by the page's variables: --ink, --faint, --grid and the series colors --c0 ... --c7.
INK, FAINT, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{index:02x}" for index in range(8))
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"} | {
    color: f"var(--c{index})" for index, color in enumerate(SERIES)
}


def learning_curve(run: RunData) -> tuple[str, str]:
    """SVG of the evaluations of one run, and a caption that says what the band is; where they are returns, with the
    returns of training episodes."""
    steps, values = run.evaluations()
    with canvas(8.2, 4.7, run.unit) as (axes, svg):
        _, training = drawn = run.series("train/return" if run.judged_by == Score() else "")
        if len(training):
            axes.plot(*drawn, color=FAINT, linewidth=1, label="training episodes")
        caption = "No evaluation has been recorded yet."
        if len(values):
            low, high, caption = _evaluation_band(run, values)
            axes.fill_between(steps, low, high, color=SERIES[0], alpha=0.18, linewidth=0)
            marker = "o" if len(values) <= 40 else None
            axes.plot(steps, values, color=SERIES[0], linewidth=2, marker=marker, markersize=4, label="evaluation")
        axes.set_ylabel(run.judged_by.text)
        _stage_lines(axes, run)
        legend(axes, len(values) + len(training))
    return svg[0], caption


def _evaluation_band(run: RunData, values: Array) -> tuple[Array, Array, str]:
    """The band around evaluations: Student t over the episodes of each evaluation. Never over seeds: there is one."""
    name = run.judged_by.column
    column = run.columns.get(f"{name}_std")
    keep = np.isfinite(run.columns[name]) & np.isfinite(run.steps)
    spread = np.nan_to_num(column[keep]) if column is not None else np.zeros(len(values))
    episodes = (run.config.get("run") or {}).get("eval_episodes")
    if column is None:
        return values, values, "The line is what each evaluation of this one run gave."
    if isinstance(episodes, int) and episodes > 1:
        half = student_t(episodes, 0.975) * spread / np.sqrt(episodes - 1)  # the recorded one divides by n
        text = f"95 % interval over the {episodes} episodes of each evaluation of this one run, not over seeds."
    else:
        half, text = spread, "± 1 standard deviation over the evaluation episodes of this one run, not over seeds."
    return values - half, values + half, f"Band: {text}"


def small_multiple(run: RunData, name: str, color: int = 0) -> str:
    """SVG of one column."""
    steps, values = run.series(name)
    with canvas(3.5, 1.9, run.unit, small=True) as (axes, svg):
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=SERIES[color % len(SERIES)], linewidth=1.4, marker=marker, markersize=4)
        if len(values) and np.ptp(values) == 0:
            axes.set_ylim(values[0] - max(abs(values[0]), 1), values[0] + max(abs(values[0]), 1))
    return svg[0]


def by_learner(run: RunData) -> dict[str, dict[str, str]]:
    """The columns "LEARNER/NAME" of methods with several learners: NAME to learner to column."""
    found: dict[str, dict[str, str]] = {}
    for column in run.columns:
        learner, slash, name = column.partition("/")
        if slash and learner not in ("eval", "train", "reward") and len(run.series(column)[1]):
            found.setdefault(name, {})[learner] = column
    return found


def learner_curves(run: RunData, columns: Mapping[str, str]) -> str:
    """SVG of one number of several learners; a learner has the same color in every picture of the run."""
    order = list(dict.fromkeys(learner for each in by_learner(run).values() for learner in each))
    with canvas(5.7, 2.9, run.unit) as (axes, svg):
        for learner, column in columns.items():
            color = SERIES[order.index(learner) % len(SERIES)]
            steps, values = run.series(column)
            axes.plot(
                steps, values, color=color, linewidth=1.6, label=learner, marker="o" if len(values) == 1 else None
            )
        legend(axes, len(columns))
    return svg[0]


def reward_parts(run: RunData) -> list[str]:
    """The names of the reward functions that a run has recorded by themselves."""
    found = (re.fullmatch(r"(?:eval/)?reward/([^/]+)", column) for column in run.columns)
    return list(dict.fromkeys(match[1] for match in found if match and len(run.series(match[0])[1])))


def reward_curves(run: RunData, name: str) -> str:
    """SVG of what one reward function gave by itself, in an axis of its own since scales differ."""
    color = SERIES[reward_parts(run).index(name) % len(SERIES)]
    training, evaluation = run.series(f"reward/{name}"), run.series(f"eval/reward/{name}")
    with canvas(5.7, 2.4, run.unit) as (axes, svg):
        if len(training[1]):
            axes.plot(*training, color=FAINT, linewidth=1, label="completions of training")
        if len(evaluation[1]):
            axes.plot(*evaluation, color=color, linewidth=2, marker="o", markersize=4, label="evaluation")
        legend(axes, len(training[1]) + len(evaluation[1]))
    return svg[0]


def _stage_lines(axes: Any, run: RunData) -> None:
    """A dashed line where a new stage begins."""
    for before, after, step in zip(run.stages[:-1], run.stages[1:], run.steps[1:]):
        if before and after != before and np.isfinite(step):
            axes.axvline(step, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                after, (step, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
                va="top", color=FAINT, fontsize=9,
            )  # fmt: skip


def legend(axes: Any, count: int, ink: str = INK) -> None:
    if count:
        axes.legend(loc="best", frameon=False, labelcolor=ink)


def axes_style(ink: str, faint: str, grid: str) -> Any:
    """Parameters of matplotlib for quiet axes: text in the first color, lines in the others."""
    return {
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "xtick.color": faint,
        "ytick.color": faint,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
    }


def count_axis(axes: Any, unit: str, most: int = 8) -> None:
    """Steps on the x axis, at most so many ticks: 0, 50k, 100k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    if unit:
        axes.set_xlabel(unit.replace("_", " "))


@contextmanager
def canvas(
    width: float, height: float, unit: str | None = None, *, small: bool = False
) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that holds the SVG afterwards. No global state of matplotlib is touched."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {"svg.fonttype": "none", "svg.hashsalt": "polopt", "font.size": 9 if small else 10.5, "path.simplify": True}
    svg: list[str] = []
    with rc_context(axes_style(INK, FAINT, GRID) | style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        if unit is not None:
            count_axis(axes, "" if small else unit, 4 if small else 8)
        if small:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
        axes.margins(x=0.01)
        yield axes, svg
        svg.append(_drawn(figure))


def _drawn(figure: Any) -> str:
    text = io.StringIO()
    none = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=none)
    return _inline(text.getvalue())


def _inline(svg: str) -> str:
    """The bare <svg> element: no prolog, no namespaces (HTML knows them), colors and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<svg\b[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.strip()

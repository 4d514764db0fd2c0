"""What methods show (`Method.figures`), drawn as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from polopt.evaluation.figures import Curves, Figure, Heatmap, Paths, Points
from polopt.evaluation.statistics import Array
from polopt.report.curves import FAINT, INK, SERIES, canvas, legend
from polopt.report.runs import RunData

SIZE = (5.7, 3.6)  # inches
MOST_LABELS = 40
Drawing = Callable[[Any, Sequence[str], str, str], str]  # axes, colors of the series, ink, faint -> caption


def shown(run: RunData) -> list[tuple[str, str, str]]:
    """Title, SVG and caption of every figure of one run."""
    return [(name, *draw(figure)) for name, figure in run.figures.items()]


def shown_together(groups: Mapping[str, Sequence[RunData]]) -> list[tuple[str, str, str]]:
    """Title, SVG and caption of those of several methods: see `drawings`."""
    found = []
    for title, draw_on in drawings(groups):
        with canvas(*SIZE) as (axes, svg):
            caption = draw_on(axes, SERIES, INK, FAINT)
        found.append((title, svg[0], caption))
    return found


def drawings(groups: Mapping[str, Sequence[RunData]]) -> list[tuple[str, Drawing]]:
    """Figures of several methods by title, each a function that draws on axes, given colors, and returns its caption.

    Points of one name share one picture; all else is shown of each method's first run, heat maps of one name on one
    scale.
    """
    found: list[tuple[str, Drawing]] = []
    names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.figures)
    for name in names:
        sets: dict[str, list[Points]] = {}
        apart: list[tuple[str, Figure]] = []
        for label, runs in groups.items():
            given = [run for run in runs if name in run.figures]
            points = [figure for run in given if isinstance(figure := run.figures[name], Points)]
            if points:
                sets[label] = points
            elif given:
                apart.append((f"{name}: {label}, seed {given[0].seed}", given[0].figures[name]))
        scale = scale_of([figure for _, figure in apart if isinstance(figure, Heatmap)])
        found += [(title, partial(_draw_one, figure=figure, scale=scale)) for title, figure in apart]
        if sets:
            found.append((name, partial(_draw_sets, sets=sets)))
    return found


def _draw_one(
    axes: Any, series: Sequence[str], ink: str, faint: str, *, figure: Figure, scale: tuple[float, float]
) -> str:
    return put(axes, figure, series, ink, faint, scale)


def _draw_sets(axes: Any, series: Sequence[str], ink: str, faint: str, *, sets: Mapping[str, Sequence[Points]]) -> str:
    """Several sets of points in one picture, a color for each label; what is dominated is pale, within its own set."""
    first = next(iter(sets.values()))[0]
    axes.set_xlabel(first.x_label)
    axes.set_ylabel(first.y_label)
    return _put_points(axes, sets, series, ink)


def draw(figure: Figure) -> tuple[str, str]:
    """SVG and caption of one figure."""
    with canvas(*SIZE) as (axes, svg):
        caption = put(axes, figure, SERIES, INK, FAINT)
    return svg[0], caption


def scale_of(maps: Sequence[Heatmap]) -> tuple[float, float]:
    """The least and the largest number in heat maps; 0 and 0 where there is none."""
    values = np.concatenate([np.empty(0), *(_array(row) for each in maps for row in each.values)])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def put(
    axes: Any,
    figure: Figure,
    series: Sequence[str],
    ink: str,
    faint: str,
    scale: tuple[float, float] | None = None,
) -> str:
    """Draws one figure on axes in these colors, and returns its caption; a heat map from pale to strong over `scale`,
    by default over its own numbers."""
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if isinstance(figure, Curves):
        return _put_curves(axes, figure, series, ink, faint)
    if isinstance(figure, Paths):
        return _put_paths(axes, figure, series, ink)
    if isinstance(figure, Heatmap):
        return _put_heatmap(axes, figure, series[0], faint, scale or scale_of([figure]))
    return _put_points(axes, {"": [figure]}, series, ink)


def _put_curves(axes: Any, figure: Curves, series: Sequence[str], ink: str, faint: str) -> str:
    own = [name for name in figure.lines if name not in figure.dashed]
    for name, values in figure.lines.items():
        color = series[own.index(name) % len(series)] if name in own else faint
        style = "-" if name in own else (0, (4, 3))
        axes.plot(_array(figure.x), _array(values), color=color, linewidth=1.8, linestyle=style, label=name)
    if figure.log:
        axes.set_yscale("log")
    legend(axes, len(figure.lines), ink)
    return ""


def _put_paths(axes: Any, figure: Paths, series: Sequence[str], ink: str) -> str:
    for index, (name, (x, y)) in enumerate(figure.lines.items()):
        color = series[index % len(series)]
        axes.plot(_array(x), _array(y), color=color, linewidth=1.2, label=name)
        axes.plot(_array(x)[:1], _array(y)[:1], "o", color=color, markerfacecolor="none", markersize=7)
        axes.plot(_array(x)[-1:], _array(y)[-1:], "o", color=color, markersize=5)
    for name, (x, y) in figure.marks.items():
        axes.plot([x], [y], "*", color=ink, markersize=11, linestyle="none", label=name)
    axes.margins(0.06)
    legend(axes, len(figure.lines) + len(figure.marks), ink)
    return "A path begins at the ring and ends at the dot."


def _put_points(axes: Any, sets: Mapping[str, Sequence[Points]], series: Sequence[str], ink: str) -> str:
    first = next(iter(sets.values()))[0]
    for index, (label, members) in enumerate(sets.items()):
        color = series[index % len(series)]
        for number, points in enumerate(members):
            x, y = _array(points.x), _array(points.y)
            best = undominated(x, y) if points.front else np.flatnonzero(np.isfinite(x + y))
            if points.front:
                axes.plot(x, y, "o", color=color, alpha=0.3, markersize=4)
                axes.step(x[best], y[best], where="pre", color=color, linewidth=1.2, alpha=0.7)
            name = label if number == 0 and label else None
            axes.plot(x[best], y[best], "o", color=color, markersize=5.5, label=name)
            for place, text in enumerate(points.labels[:MOST_LABELS]):
                at, offset = (x[place], y[place]), (5, 4)
                axes.annotate(text, at, xytext=offset, textcoords="offset points", color=ink, fontsize=9)
    axes.margins(0.12 if first.labels else 0.06)
    legend(axes, sum(map(bool, sets)), ink)
    count = sum(len(points.x) for members in sets.values() for points in members)
    seeds = max(map(len, sets.values()))
    caption = f"{count} points."
    if first.front:
        caption = "More is better on both axes; joined: what no other point dominates."
    return f"{caption} All {seeds} seeds." if seeds > 1 else caption


def _put_heatmap(axes: Any, figure: Heatmap, color: str, faint: str, scale: tuple[float, float]) -> str:
    values = np.array([_array(row) for row in figure.values])
    filled = np.isfinite(values)
    low, high = scale
    strength = np.where(filled, 0.15 + 0.85 * (np.nan_to_num(values) - low) / ((high - low) or 1.0), 0.0)
    rows, columns = values.shape
    for row, column in zip(*np.nonzero(filled)):
        axes.add_patch(_cell(row, column, color, float(strength[row, column])))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-0.5, rows - 0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.add_patch(_frame(rows, columns, faint))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return f"{filled.sum()} of {filled.size} cells, from {low:.4g} (pale) to {high:.4g} (strong)."


def undominated(x: Array, y: Array) -> Any:
    """The places of the points [n] that no other one beats in both numbers, from left to right."""
    kept, highest = [], -np.inf
    for place in np.lexsort((-y, -x)):
        if np.isfinite(x[place] + y[place]) and y[place] > highest:
            kept.append(place)
            highest = y[place]
    return np.array(kept[::-1], dtype=int)


def _cell(row: int, column: int, color: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=color, alpha=alpha, linewidth=0)


def _frame(rows: int, columns: int, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=color, linewidth=0.8)


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float64)

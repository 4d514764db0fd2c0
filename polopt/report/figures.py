"""What methods show (`Method.figures`), drawn as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polopt.evaluation.figures import Curves, Figure, Heatmap, Points
from polopt.evaluation.statistics import Array
from polopt.report.curves import FAINT, INK, SERIES, canvas, legend
from polopt.report.runs import RunData

SIZE = (5.7, 3.6)  # inches
MOST_LABELS = 40


def shown(run: RunData) -> list[tuple[str, str, str]]:
    """Title, SVG and caption of every figure of one run."""
    return [(name, *draw(figure)) for name, figure in run.figures.items()]


def shown_together(groups: Mapping[str, Sequence[RunData]]) -> list[tuple[str, str, str]]:
    """Those of several methods: points of one name share one picture, all else is shown of each method's first run."""
    found = []
    names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.figures)
    for name in names:
        sets: dict[str, list[Points]] = {}
        for label, runs in groups.items():
            given = [run for run in runs if name in run.figures]
            points = [figure for run in given if isinstance(figure := run.figures[name], Points)]
            if points:
                sets[label] = points
            elif given:
                svg, caption = draw(given[0].figures[name])
                found.append((f"{name}: {label}, seed {given[0].seed}", svg, caption))
        if sets:
            found.append((name, *draw_points(sets)))
    return found


def draw(figure: Figure) -> tuple[str, str]:
    """SVG and caption of one figure."""
    if isinstance(figure, Curves):
        return draw_curves(figure), ""
    if isinstance(figure, Heatmap):
        return draw_heatmap(figure)
    return draw_points({"": [figure]})


def draw_curves(figure: Curves) -> str:
    with canvas(*SIZE) as (axes, svg):
        for index, (name, values) in enumerate(figure.lines.items()):
            axes.plot(_array(figure.x), _array(values), color=SERIES[index % len(SERIES)], linewidth=1.8, label=name)
        _name_axes(axes, figure)
        legend(axes, len(figure.lines))
    return svg[0]


def draw_points(sets: Mapping[str, Sequence[Points]]) -> tuple[str, str]:
    """Several sets of points in one picture, a color for each label; what is dominated is pale, within its own set."""
    first = next(iter(sets.values()))[0]
    with canvas(*SIZE) as (axes, svg):
        for index, (label, members) in enumerate(sets.items()):
            color = SERIES[index % len(SERIES)]
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
                    axes.annotate(text, at, xytext=offset, textcoords="offset points", color=INK, fontsize=9)
        axes.margins(0.12 if first.labels else 0.06)
        _name_axes(axes, first)
        legend(axes, sum(map(bool, sets)))
    count = sum(len(points.x) for members in sets.values() for points in members)
    seeds = max(map(len, sets.values()))
    caption = f"{count} points."
    if first.front:
        caption = "More is better on both axes; joined: what no other point dominates."
    return svg[0], f"{caption} All {seeds} seeds." if seeds > 1 else caption


def draw_heatmap(figure: Heatmap) -> tuple[str, str]:
    values = np.array([_array(row) for row in figure.values])
    filled = np.isfinite(values)
    low, high = (values[filled].min(), values[filled].max()) if filled.any() else (0.0, 0.0)
    strength = np.where(filled, 0.15 + 0.85 * (np.nan_to_num(values) - low) / ((high - low) or 1.0), 0.0)
    with canvas(*SIZE) as (axes, svg):
        rows, columns = values.shape
        for row, column in zip(*np.nonzero(filled)):
            alpha = float(strength[row, column])
            axes.add_patch(_cell(row, column, SERIES[0], alpha))
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(-0.5, rows - 0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.add_patch(_frame(rows, columns))
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        _name_axes(axes, figure)
    return svg[0], f"{filled.sum()} of {filled.size} cells, from {low:.4g} (pale) to {high:.4g} (strong)."


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


def _frame(rows: int, columns: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=FAINT, linewidth=0.8)


def _name_axes(axes: Any, figure: Figure) -> None:
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float64)

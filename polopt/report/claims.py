"""The picture of what was found of a claim: docs/images/claims/SLUG.png, drawn from the recorded lines.

A panel for each metric that something is expected of, with a row for each arm that the expectations read: a mark for
every seed, a dot for the mean, dotted lines where limits are. Then learning curves, where arms trained a method, and
what the claim file itself wants to be seen: its function `figures(metrics)`, from the metrics of each arm by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polopt.claims.claim import Claim
from polopt.claims.expectations import Above, Below
from polopt.claims.keys import digest
from polopt.claims.results import find_place, load_claim, load_figures, read_lines, select
from polopt.evaluation.figures import Figure
from polopt.evaluation.statistics import aggregate_curves, mean
from polopt.report.curves import legend
from polopt.report.figures import put
from polopt.report.sheets import FAINT, INK, SERIES, sheet

COLUMNS, MOST_CURVES = 2, 8
SPREAD = 50  # positive numbers that are further apart than this factor are shown on a logarithmic axis
Metrics = dict[str, list[dict[str, Any]]]  # by arm, then by seed


def draw_claim(slug: str, file: Path, root: Path | None = None) -> bool:
    """Draws the picture of a claim, unless `file` shows these results already; False where nothing was recorded."""
    place = find_place(root)
    path = place.claim(slug)
    claim = load_claim(path)
    metrics = metrics_of(claim, read_lines(place.lines(slug))[0])
    if not metrics:
        return False
    key = picture_key(claim, metrics, path)
    if key_in(file) == key:
        return True
    extra = load_figures(path)
    figures = dict(extra(metrics)) if extra is not None else {}
    judged, curves = _judged(claim, metrics), _curves(metrics)
    sizes = [0.85 + 0.26 * len(arms) for arms in judged.values()] + [3.2] * (bool(curves) + len(figures))
    columns = min(COLUMNS, len(sizes))
    heights = [max(sizes[start : start + columns]) for start in range(0, len(sizes), columns)]
    look: dict[str, Any] = {"heights": heights, "notes": {"Description": key}}
    with sheet(file, len(heights), columns, 10.4, sum(heights), **look) as (_, axes):
        panels = iter(np.asarray(axes).flat)
        for (name, arms), panel in zip(judged.items(), panels):
            _draw_metric(panel, claim, name, {arm: _numbers(metrics[arm], name) for arm in arms})
        if curves:
            _draw_curves(next(panels), claim, curves)
        for title, figure in figures.items():
            _draw_figure(next(panels), title, figure)
        for panel in panels:
            panel.set_axis_off()
    return True


def metrics_of(claim: Claim, lines: Sequence[Mapping[str, Any]]) -> Metrics:
    """What counts of the recorded lines, by arm; empty while something is missing."""
    used = select(claim, map(dict, lines))
    if any("metrics" not in used.get(job, {}) for job in claim.jobs()):
        return {}
    return {arm: [line["metrics"] for (name, _), line in sorted(used.items()) if name == arm] for arm in claim.arms}


def picture_key(claim: Claim, metrics: Metrics, path: Path) -> str:
    """Hash of what a picture depends on: the numbers, the expectations, and the text of `figures`."""
    extra = path.read_text(encoding="utf-8").partition("\ndef figures(")[2] if load_figures(path) else ""
    return digest([metrics, [item.text() for item in claim.expect], extra])


def key_in(file: Path) -> str | None:
    """The key of the results that a picture shows."""
    if not file.is_file():
        return None
    from PIL import Image

    with Image.open(file) as image:
        return str(image.info.get("Description"))


def _judged(claim: Claim, metrics: Metrics) -> dict[str, list[str]]:
    """The metrics that something is expected of, each with the arms that are read for it, in their own order."""
    found: dict[str, set[str]] = {}
    for item in claim.expect:
        found.setdefault(item.metric, set()).update(item.arms(tuple(claim.arms)))
    return {name: [arm for arm in metrics if arm in arms] for name, arms in found.items()}


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(line[name]) for line in lines if isinstance(line.get(name), (int, float))]


def _draw_metric(axes: Any, claim: Claim, name: str, values: Mapping[str, Sequence[float]]) -> None:
    every = [value for found in values.values() for value in found]
    if every and min(every) > 0 and max(every) > SPREAD * min(every):
        axes.set_xscale("log")
    for index, (arm, found) in enumerate(values.items()):
        color = _color(claim, arm)
        axes.plot(found, [index] * len(found), "|", color=color, markersize=9, alpha=0.6)
        if found:
            axes.plot([sum(found) / len(found)], [index], "o", color=color, markersize=6)
    limits = {item.limit for item in claim.expect if isinstance(item, (Above, Below)) and item.metric == name}
    for limit in limits:
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (1, 3)))
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)
    axes.set_title(name)


def _color(claim: Claim, arm: str) -> str:
    """An arm has one color in all panels."""
    return SERIES[list(claim.arms).index(arm) % len(SERIES)]


def _curves(metrics: Metrics) -> dict[str, list[tuple[Any, Any]]]:
    """The learning curves `[count, score]` of the arms that have them, by seed: the first ones."""
    found = {
        arm: [
            (np.array(line["curve"], dtype=float)[:, 0], np.array(line["curve"], dtype=float)[:, 1]) for line in lines
        ]
        for arm, lines in metrics.items()
        if all(_is_curve(line.get("curve")) for line in lines)
    }
    return dict(list(found.items())[:MOST_CURVES])


def _is_curve(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) > 1 and all(isinstance(each, list) and len(each) == 2 for each in value)
    )


def _draw_curves(axes: Any, claim: Claim, curves: Mapping[str, Sequence[tuple[Any, Any]]]) -> None:
    for arm, runs in curves.items():
        total, color = aggregate_curves(runs, mean), _color(claim, arm)
        axes.fill_between(total.steps, total.low, total.high, color=color, alpha=0.16, linewidth=0)
        axes.plot(total.steps, total.center, color=color, linewidth=1.8, label=arm)
    axes.set_title("evaluations while learning: mean over seeds, 95 % interval")
    legend(axes, len(curves), INK)


def _draw_figure(axes: Any, title: str, figure: Figure) -> None:
    put(axes, figure, SERIES, INK, FAINT)
    axes.set_title(title)


def recorded(root: Path | None = None) -> list[str]:
    """The claims with results."""
    place = find_place(root)
    return [slug for slug in place.slugs() if place.lines(slug).exists()]

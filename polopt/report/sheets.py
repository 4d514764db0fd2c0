"""Pictures for pages of the documentation, as PNG in the colors of a light page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polopt.report.curves import axes_style

INK, FAINT, GRID = "#1b1f27", "#9aa2b1", "#e8ebf0"  # these, and SERIES, are those of page.html
SERIES = ("#2f5fd0", "#d8572a", "#178a63", "#8a4fc4", "#b8860b", "#0f8ba5", "#c2356e", "#6b7280")


@contextmanager
def sheet(
    file: Path,
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    heights: Sequence[float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A figure of `width` x `height` inches and its axes [rows, columns], saved at the end.

    `heights` [rows] are those of the rows, beside each other; `notes` go into the file, as its metadata. No global
    state of matplotlib is touched.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 10.5, "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titlecolor": INK}
    with rc_context(axes_style(INK, FAINT, GRID) | style):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing, drawing.subplots(rows, columns, squeeze=False, height_ratios=heights)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(file, dpi=130, metadata={"Software": None} | dict(notes or {}))

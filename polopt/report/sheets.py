"""Pictures as files, in the colors of a light page: for the documentation (PNG) and for papers (SVG, PDF)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.report.curves import axes_style

INK, FAINT, GRID = "#1b1f27", "#9aa2b1", "#e8ebf0"  # these, and SERIES, are those of page.html
SERIES = ("#2f5fd0", "#d8572a", "#178a63", "#8a4fc4", "#b8860b", "#0f8ba5", "#c2356e", "#6b7280")


NO_DATE: dict[str, dict[str, Any]] = {  # equal pictures are equal files
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def sheet(
    file: Path | Sequence[Path],
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    heights: Sequence[float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A figure of `width` x `height` inches and its axes [rows, columns], saved at the end to one file or several.

    `heights` [rows] are those of the rows, beside each other; `notes` go into the file, as its metadata. No global
    state of matplotlib is touched.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 10.5, "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titlecolor": INK}
    style |= {"svg.fonttype": "none", "svg.hashsalt": "polopt", "pdf.fonttype": 42}  # text stays text
    with rc_context(axes_style(INK, FAINT, GRID) | style):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing, drawing.subplots(rows, columns, squeeze=False, height_ratios=heights)
        for path in [file] if isinstance(file, Path) else file:
            files.make_folder(path.parent)
            files.replace(path, _drawn(drawing, path.suffix, notes or {}))


def _drawn(drawing: Any, suffix: str, notes: Mapping[str, str]) -> bytes:
    """The content of a file with this suffix."""
    content = io.BytesIO()
    drawing.savefig(content, format=suffix[1:], dpi=130, metadata=NO_DATE[suffix] | dict(notes))
    return content.getvalue()

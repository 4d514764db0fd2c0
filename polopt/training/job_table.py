"""One table of all jobs while they run. It reads the folders of their runs, so it does not matter where they run.

Imports no torch.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from polopt.core.errors import RunError
from polopt.evaluation.score import Score
from polopt.training.loggers import read_metrics

EVERY = 2.0  # seconds between two looks


@dataclass(frozen=True)
class Job:
    """A job by its name, and where its run is: in `folder` or in the folders below, of which the newest is shown."""

    name: str
    folder: Path


def shown(
    finished: Iterable[tuple[int, Any]], jobs: Sequence[Job], console: Console | None = None, *, lines: bool = True
) -> Iterator[tuple[int, Any]]:
    """Passes on what `run_jobs` gives while a table shows all jobs; elsewhere than on a terminal it prints a line for
    each that ends, if `lines`."""
    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        for number, (place, result) in enumerate(finished, 1):
            if lines:
                how = "failed" if isinstance(result, Exception) else "done"
                console.print(
                    f"{jobs[place].name}: {how} ({number} of {len(jobs)} runs)", markup=False, highlight=False
                )
            yield place, result
        return
    ended: dict[int, bool] = {}
    over = threading.Event()
    with Live(table(jobs, ended), console=console, auto_refresh=False) as live:

        def look() -> None:
            while not over.wait(EVERY):
                live.update(table(jobs, ended, console.height), refresh=True)

        watching = threading.Thread(target=look, daemon=True)
        watching.start()
        try:
            for place, result in finished:
                ended[place] = not isinstance(result, Exception)
                yield place, result
        finally:
            over.set()
            watching.join()
            live.update(table(jobs, ended, console.height), refresh=True)


def table(jobs: Sequence[Job], ended: dict[int, bool], height: int = 25) -> Table:
    """A row for each job, those that run first; what does not fit into `height` lines is counted below."""
    rows: list[tuple[int, list[str]]] = []
    for place, job in enumerate(jobs):
        cells = state(job.folder)
        if place in ended:
            _, seconds, score = cells or ("", "", "")
            rows.append((2, ["done" if ended[place] else "[red]failed[/red]", seconds, score]))
        else:
            rows.append((0, cells) if cells else (1, ["-", "", ""]))
    order = sorted(range(len(jobs)), key=lambda place: rows[place][0])
    room = max(height - 4, 1)
    found = Table("run", "progress", "seconds", "last evaluation", box=None, title_justify="left")
    for place in order[:room]:
        found.add_row(escape(jobs[place].name), *rows[place][1])
    more = f", {len(jobs) - room} not shown" if len(jobs) > room else ""
    found.caption = f"{len(ended)} of {len(jobs)} ended{more}"
    return found


def state(folder: Path) -> list[str] | None:
    """How far the newest run in a folder is, in how many seconds, and its last evaluation; None without a run."""
    with suppress(OSError, ValueError, KeyError, TypeError, RunError):
        runs = [path.parent for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}config.json")]
        run = max(runs, key=lambda path: path.stat().st_mtime, default=None)
        if run is None:
            return None
        config, rows = json.loads((run / "config.json").read_text()), read_metrics(run)
        if not rows:
            return ["begun", "", ""]
        score, unit, last = Score(config.get("score", "return")), config["unit"], rows[-1]
        scores = [row[score.column] for row in rows if score.column in row]
        share = f" ({last[unit] / config['steps']:.0%})" if config.get("steps") else ""
        value = f"{score.text} {score.sign * scores[-1]:.4g}" if scores else ""
        return [f"{last[unit]:,.0f} {unit}{share}", f"{last['seconds']:.0f}", value]
    return None

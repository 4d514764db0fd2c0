"""A live display: how far, how fast, how long still, and the metrics that matter for this method."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from polopt.training.loop import Row


def show(rows: Iterable[Row], console: Console | None = None) -> Iterator[Row]:
    """Passes rows through while showing them: a live bar on a terminal, one line an evaluation elsewhere."""
    console = console or Console(file=sys.stderr)
    yield from (_live(rows, console) if console.is_terminal else _lines(rows, console))


def _live(rows: Iterable[Row], console: Console) -> Iterator[Row]:
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )
    known: Row = {}
    task = None
    with Live(progress, console=console, refresh_per_second=4) as live:
        for row in rows:
            unit = row["method"].unit
            if task is None:
                task = progress.add_task(row["method"].slug, total=row["steps"], rate="")
            known = _merged(known, row)
            progress.update(task, completed=min(row[unit], row["steps"]), rate=f"{_rate(row, unit)} {unit}")
            table = Table.grid(expand=True)
            table.add_row(progress)
            table.add_row(f"[dim]{row['stage']}[/dim] {_metrics(known, 6)}")
            live.update(table)
            yield row


def _lines(rows: Iterable[Row], console: Console) -> Iterator[Row]:
    known: Row = {}
    for row in rows:
        known = _merged(known, row)
        if _evaluated(row):
            unit = row["method"].unit
            share = min(row[unit] / row["steps"], 1.0)
            stage = f"{row['stage']} " if row["stage"] else ""
            console.print(
                f"{row['method'].slug} {stage}{row[unit]:>9,}/{row['steps']:,} {unit} ({share:4.0%}) "
                f"{row['seconds']:6.0f} s {_rate(row, unit):>7}  {_metrics(known, 4)}",
                highlight=False,
                soft_wrap=True,
            )
        yield row


def _evaluated(row: Row) -> bool:
    return any(name.startswith("eval/") for name in row)


def _merged(known: Row, row: Row) -> Row:
    """What is known after a row: an evaluation takes the place of the one before, whatever that had said."""
    kept = {name: value for name, value in known.items() if not (name.startswith("eval/") and _evaluated(row))}
    return kept | row


def _rate(row: Row, unit: str) -> str:
    return f"{row[unit] / row['seconds']:,.0f}/s" if row["seconds"] > 0 else ""


def _metrics(row: Row, most: int) -> str:
    method = row["method"]
    names = dict.fromkeys([method.judged_by.column, "train/return", *method.headline])
    shown = [f"{name} {row[name]:.4g}" for name in names if isinstance(row.get(name), (int, float))]
    cut = [f"{row['eval/cut']:.0f} episodes cut"] if row.get("eval/cut") else []
    return "  ".join(shown[:most] + cut)

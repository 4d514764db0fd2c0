"""Where rows of numbers go. A logger is anything with `log(row, step)` and `close()`."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from polopt.core import files
from polopt.core.errors import UsageError, nearest

COUNTS = ("env_steps", "episodes", "completions", "tokens", "updates", "seconds", "stage")


class Logger(Protocol):
    def log(self, row: dict[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class CSVLogger:
    """`metrics.csv`: one line a row; a key that appears later adds a column to all lines. `keep` lines are kept."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.path = folder / "metrics.csv"
        self.rows = read_metrics(folder)[:keep]
        self.columns = [*COUNTS]
        for row in self.rows:
            self.columns += [name for name in row if name not in self.columns]
        self._rewrite()

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        files.append(self.path, self._line(row).encode())

    def _line(self, row: dict[str, Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_cell(row.get(name)) for name in self.columns])
        return text.getvalue()

    def _rewrite(self) -> None:
        head = io.StringIO()
        csv.writer(head, lineterminator="\n").writerow(self.columns)
        files.replace(self.path, (head.getvalue() + "".join(map(self._line, self.rows))).encode())

    def close(self) -> None:
        pass


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.csv`: numbers where they are numbers, absent cells left out. A torn last line is dropped."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = list(csv.reader(file))
    rows = []
    for line in lines[1:]:
        if len(line) == len(lines[0]):
            rows.append({name: _number(cell) for name, cell in zip(lines[0], line) if cell != ""})
    return rows


def _number(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


class TensorBoardLogger:
    """TensorBoard events; after a resume, events past the checkpoint are purged from view."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "tensorboard"
        with files.writing(self.path):
            self.writer = SummaryWriter(str(self.path), purge_step=purge_step)

    def log(self, row: dict[str, Any], step: int) -> None:
        with files.writing(self.path):
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in COUNTS:
                    self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        with suppress(OSError):  # a full disk was reported already; what ended the run must not be hidden
            self.writer.close()


class WandbLogger:
    """Weights & Biases, for who installed the extra `polopt[wandb]`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb  # `check_installed` has found it

        self.run = wandb.init(project="polopt", dir=str(folder), name=folder.name, config=config, resume="allow")

    def log(self, row: dict[str, Any], step: int) -> None:
        self.run.log({name: value for name, value in row.items() if not isinstance(value, str)}, step=step)

    def close(self) -> None:
        self.run.finish()


NAMES = ("csv", "tensorboard", "wandb")


def check_names(names: tuple[str, ...]) -> None:
    """Raises UsageError for a logger that does not exist."""
    for name in names:
        if name not in NAMES:
            raise UsageError(f"there is no logger '{name}'{nearest(name, NAMES)}")


def check_installed(names: tuple[str, ...]) -> None:
    """Raises UsageError for a logger whose package is not there."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise UsageError("--loggers wandb needs the package: pip install 'polopt[wandb]'")


def make_loggers(
    names: tuple[str, ...], folder: Path, config: dict[str, Any], keep: int = 0, purge_step: int | None = None
) -> list[Logger]:
    """The loggers with these names; `csv` is always first, because reports read it."""
    loggers: list[Logger] = [CSVLogger(folder, keep)]
    for name in names:
        if name == "tensorboard":
            loggers.append(TensorBoardLogger(folder, purge_step))
        elif name == "wandb":
            loggers.append(WandbLogger(folder, config))
    return loggers

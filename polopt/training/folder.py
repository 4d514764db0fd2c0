"""The run folder: what a run writes, and reading it back.

config.json   resolved config, versions, git hash, command line, seed        metrics.csv   one line a row
spaces.json   what the policy must know of its task
checkpoints/  latest two and best        tensorboard/  events        videos/        report.html
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.core.errors import RunError, UsageError
from polopt.evaluation.score import Score
from polopt.tasks.base import Task
from polopt.tasks.described import Described, describe
from polopt.training.checkpoints import Checkpoints
from polopt.training.loggers import read_metrics

SPACES = "spaces.json"
PACKAGES = ("polopt", "torch", "tensordict", "gymnasium", "mujoco", "numpy")


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises UsageError when this is not a run folder."""
        path = self.folder / "config.json"
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.folder} is not a run folder: it has no config.json") from None
        except (ValueError, OSError) as error:
            raise RunError(f"{path} cannot be read ({error})") from error
        if not isinstance(record, dict):
            raise RunError(f"{path} is damaged: it does not hold the record of a run")
        return record

    @property
    def task(self) -> Described | None:
        """The task as spaces.json describes it, to build a policy with; None in folders without one."""
        path = self.folder / SPACES
        if not path.is_file():
            return None
        try:
            return Described(json.loads(path.read_text()))
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from error

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return read_metrics(self.folder)

    @property
    def score(self) -> Score:
        """The number that the method is judged by."""
        return Score(self.config.get("score", "return"))

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows that hold an evaluation."""
        return [row for row in self.rows if self.score.column in row]

    @property
    def final(self) -> dict[str, Any]:
        """The last evaluation's row. Raises RunError when there is none."""
        rows = self.evaluations
        if not rows:
            raise RunError(f"{self.folder} has no evaluation yet")
        return rows[-1]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder)


def new_folder(out: Path | None, method: str, task: str, seed: int) -> Path:
    """The folder of a new run: `out`, or runs/METHOD-TASK-sSEED with a number when that one is taken.

    It is made when the run begins. Raises UsageError when `out` holds a run already.
    """
    if out is not None:
        check_free(out)
        files.check_folder(out)
        return out
    base = Path("runs") / f"{method}-{task.replace('/', '_').replace(':', '_')}-s{seed}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def check_free(folder: Path) -> None:
    """Raises UsageError when the folder holds a run."""
    if (folder / "config.json").exists():
        raise UsageError(
            f"{folder} holds a run already: continue it with 'polopt resume {folder}', or choose another --out"
        )


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes config.json, with what is needed to know later how the run came about."""
    record = config | {
        "versions": versions(),
        "git": git_hash(),
        "command": " ".join(sys.argv),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    files.make_folder(folder)
    files.replace(folder / "config.json", json.dumps(record, indent=2).encode())


def write_spaces(folder: Path, task: Task) -> None:
    """Writes spaces.json, unless the task says what cannot be written: such a policy is loaded with its task."""
    record = describe(task)
    if record is not None:
        files.replace(folder / SPACES, json.dumps(record, indent=1).encode())


@cache
def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_hash() -> str | None:
    """The commit of the checkout that polopt runs from, with '+' when it has changes; None outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()

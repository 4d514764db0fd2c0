"""Reads run folders for reports: forgiving where a run was cut off, strict where a folder is no run at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polopt.core.errors import RunError, UsageError, nearest
from polopt.evaluation.figures import Figure, from_json
from polopt.evaluation.score import NO_RETURN, Score
from polopt.evaluation.statistics import Array

COUNTS = ("env_steps", "episodes", "completions", "tokens", "updates")
NO_MEASURE = ("cut", "held_out")  # of evaluations, but of what they are of
LAST = 3  # the final score of a run is the mean of this many last evaluations


@dataclass(frozen=True)
class RunData:
    """One run as it stands in its folder. `columns` maps a column of metrics.csv to [rows], NaN where it is absent."""

    folder: Path
    config: dict[str, Any]
    columns: dict[str, Array]
    stages: list[str] = field(default_factory=list)
    faults: tuple[str, ...] = ()  # of metrics.csv: see `damage`
    films: Path | None = None  # where its videos are, when not in its folder

    @property
    def name(self) -> str:
        """What it is called: as it was told, or by its method."""
        return str((self.config.get("run") or {}).get("name") or self.method)

    @property
    def method(self) -> str:
        return str(self.config.get("method", "unknown method"))

    @property
    def task(self) -> str:
        return str(self.config.get("task", "unknown task"))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def unit(self) -> str:
        """The column that the budget counts."""
        unit = str(self.config.get("unit", "env_steps"))
        return unit if unit in self.columns else "env_steps"

    @property
    def rows(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    @property
    def steps(self) -> Array:
        """The x axis [rows]: the count in the method's unit."""
        return self.columns.get(self.unit, np.arange(self.rows, dtype=np.float64))

    @property
    def spent(self) -> float:
        return last(self.steps)

    @property
    def finished(self) -> bool:
        budget = self.config.get("steps")
        return budget is None or self.spent >= budget

    def series(self, name: str) -> tuple[Array, Array]:
        """Steps and values of a column where both are numbers."""
        values = self.columns.get(name)
        if values is None:
            return np.empty(0), np.empty(0)
        keep = np.isfinite(values) & np.isfinite(self.steps)
        return self.steps[keep], values[keep]

    @property
    def judged_by(self) -> Score:
        """The number that is followed: the method's own, unless another one was asked for."""
        return Score(str(self.config.get("score", "return")))

    def evaluations(self) -> tuple[Array, Array]:
        """Steps and scores: larger is better."""
        steps, values = self.series(self.judged_by.column)
        return steps, self.judged_by.sign * values

    @cached_property
    def score(self) -> float:
        """The final score: the mean of the last three evaluations; NaN without one."""
        return self.final(self.judged_by)

    def final(self, score: Score) -> float:
        """The same of any number of the evaluations."""
        values = self.series(score.column)[1][-LAST:]
        return score.sign * float(values.mean()) if len(values) else float("nan")

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its method."""
        return self.config.get("config") or {}

    @property
    def evaluated(self) -> list[str]:
        """What its evaluations give, apart from deviations over episodes and counts of these."""
        names = [name.removeprefix("eval/") for name in self.columns if name.startswith("eval/")]
        return [name for name in names if not name.endswith("_std") and name not in NO_MEASURE]

    @property
    def cut(self) -> str:
        """One sentence where episodes of evaluations were cut before their end, or nothing."""
        counts = self.series("eval/cut")[1]
        if not len(counts):
            return ""
        length = self.config.get("run", {}).get("eval_length")
        after = f" after {length:,} decisions" if length else ""
        said = f"In {len(counts)} evaluations episodes had not ended and were cut{after}"
        return f"{said} (at most {counts.max():,.0f} at once): returns are of that part."

    @property
    def by_data(self) -> str:
        """One sentence where evaluations are of recorded decisions, or nothing."""
        if not len(self.series("eval/held_out")[1]):
            return ""
        return (
            f"Evaluations compare the policy with recorded decisions that it has not seen: {NO_RETURN}, and one that "
            "is better than its data acts otherwise than they do."
        )

    @property
    def damage(self) -> str:
        """One sentence where metrics.csv cannot be what the run has written, or nothing."""
        found = list(self.faults)
        steps = self.steps[np.isfinite(self.steps)]
        if backwards := int((np.diff(steps) < 0).sum()):
            found.append(f"its count goes backwards {_times(backwards)}, as when two processes write it")
        return f"metrics.csv is damaged: {'; '.join(found)}. What is drawn here may be wrong." if found else ""

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """What the method showed at its last evaluation; nothing where the file is absent or damaged."""
        try:
            return from_json(json.loads((self.folder / "figures.json").read_text())["figures"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
            return {}

    @property
    def videos(self) -> Path:
        return self.films or self.folder / "videos"

    @cached_property
    def video(self) -> Path | None:
        """The newest video."""
        found = sorted(self.videos.glob("*.mp4"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return found[-1] if found else None


def read_run(folder: Path) -> RunData:
    """Reads config.json and metrics.csv. A missing or torn metrics.csv is a short run, not an error.

    Raises UsageError when the folder is not a run, RunError when config.json is damaged.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read ({error})") from error
    columns, stages, faults = _read_metrics(folder / "metrics.csv")
    return RunData(folder, config, columns, stages, faults)


def run_folders(folders: Iterable[Path | str]) -> list[Path]:
    """The run folders among these and, where one is no run, those in it, as in that of a comparison; each once.

    Raises UsageError for a folder without a run.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if (folder / "config.json").exists() or not folder.is_dir():
            inside = [folder]
        else:
            inside = [path for path in sorted(folder.iterdir()) if (path / "config.json").exists()]
        if not inside:
            raise UsageError(f"{folder} is not a run folder: it has no config.json, and no folder in it has one")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read_runs(runs: Iterable[Path | str | RunData], score: str | None = None) -> list[RunData]:
    """Reads the folders that are not read yet, see `run_folders`; with `score`, all are judged by that number.

    Raises UsageError when the evaluations of a run do not give it.
    """
    found: list[RunData] = []
    for run in runs:
        found += [run] if isinstance(run, RunData) else map(read_run, run_folders([run]))
    once = {run.folder.resolve(): run for run in found}
    found = list(once.values())
    return found if score is None else [_judge(run, Score(score)) for run in found]


def _judge(run: RunData, score: Score) -> RunData:
    known = [name.removeprefix("eval/") for name in run.columns if name.startswith("eval/")]
    if known and score.key not in known:
        raise UsageError(f"the evaluations of {run.folder} have no '{score.key}'{nearest(score.key, known)}")
    return replace(run, config=run.config | {"score": score.name})


def _read_metrics(path: Path) -> tuple[dict[str, Array], list[str], tuple[str, ...]]:
    """Columns, stages, and what is wrong with the lines. A torn last one is no fault: killed runs leave it."""
    if not path.is_file():
        return {}, [], ()
    text = path.read_text(errors="replace")
    lines = [line for line in csv.reader(text.replace("\0", "\ufffd").splitlines()) if line]
    if not lines:
        return {}, [], ()
    torn = not text.endswith("\n")
    head, body = lines[0], lines[1 : -1 if torn and len(lines) > 1 and len(lines[-1]) != len(lines[0]) else None]
    whole = [line for line in body if len(line) == len(head)]
    table = {name: [line[index] for line in whole] for index, name in enumerate(head) if name}
    stages = table.pop("stage", [])
    faults = (
        ["it has bytes that are no text"] if any("\ufffd" in cell for line in (head, *body) for cell in line) else []
    )
    if len(table) + ("stage" in head) != len(head):
        faults.append("its head names a column twice or not at all")
    if len(whole) != len(body):
        faults.append(
            f"{len(body) - len(whole)} of {len(body)} lines have another length than its head and are left out"
        )
    if wrong := sum(_unreadable(cell) for cells in table.values() for cell in cells):
        faults.append(f"{wrong} cells are no numbers and are left out")
    columns = {name: np.array([_number(cell) for cell in cells], dtype=np.float64) for name, cells in table.items()}
    return columns, stages, tuple(faults)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _unreadable(cell: str) -> bool:
    """Whether a cell is neither empty nor a number, "nan" and "inf" among them."""
    try:
        float(cell or 0)
    except ValueError:
        return cell not in ("True", "False")
    return False


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def last(values: Array) -> float:
    """The last finite value, NaN when there is none."""
    kept = values[np.isfinite(values)]
    return float(kept[-1]) if len(kept) else float("nan")


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict as dotted names, in order; a part's `kind` stands at the part's own name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            if "kind" in value and value["kind"] != name:
                flat[path] = value["kind"]
            flat |= flatten({key: item for key, item in value.items() if key != "kind"}, f"{path}.")
        elif name != "kind" or prefix:
            flat[path] = value
    return flat


def tasks_of(runs: Sequence[RunData]) -> list[str]:
    """The task of each run, with the options in which runs on it differ: with other options it is another task."""
    options = []
    for run in runs:
        weights = (run.config.get("run") or {}).get("objective_weights")
        options.append(
            flatten(run.config.get("task_options") or {}) | ({"objective_weights": weights} if weights else {})
        )
    return _told_apart([run.task for run in runs], [run.task for run in runs], options)


def labels(runs: Sequence[RunData]) -> list[str]:
    """A label per run: its name or method, with the settings in which runs of that name and task differ."""
    settings = [
        {"method": run.method, **flatten(run.config.get("config", {})), "steps": run.config.get("steps")}
        for run in runs
    ]
    peers = list(zip(tasks_of(runs), (run.name for run in runs)))
    return _told_apart([run.name for run in runs], peers, settings)


def grouped(runs: Sequence[RunData]) -> dict[str, dict[str, list[RunData]]]:
    """The runs by task and label, in their order."""
    found: dict[str, dict[str, list[RunData]]] = {}
    for task, label, run in zip(tasks_of(runs), labels(runs), runs):
        found.setdefault(task, {}).setdefault(label, []).append(run)
    return found


def _told_apart(names: Sequence[str], kinds: Sequence[Any], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Each name with those of its settings that differ within its kind."""
    found = []
    for name, kind, own in zip(names, kinds, settings):
        peers = [each for other, each in zip(kinds, settings) if other == kind]
        differing = [
            key
            for key in dict.fromkeys(key for peer in peers for key in peer)
            if any(peer.get(key) != peers[0].get(key) for peer in peers)
        ]
        text = ", ".join(f"{key}={own[key]}" for key in differing if key in own)
        found.append(f"{name} ({text})" if text else name)
    return found

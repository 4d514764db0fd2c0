"""One self-contained HTML page from run folders: everything is inside it, nothing is fetched."""

from __future__ import annotations

import base64
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polopt
from polopt.core import files
from polopt.core.errors import Notice, UsageError
from polopt.evaluation.score import Score
from polopt.report.compared import learning_curves, profile_chart, score_chart
from polopt.report.curves import (
    by_learner,
    learner_curves,
    learning_curve,
    reward_curves,
    reward_parts,
    small_multiple,
)
from polopt.report.figures import shown, shown_together
from polopt.report.runs import COUNTS, LAST, RunData, flatten, grouped, labels, last, read_runs, tasks_of
from polopt.report.tables import comparison
from polopt.report.template import count, duration, number, template, text_of
from polopt.report.together import Ranges

MAX_VIDEO_BYTES = 24_000_000
MAX_VIDEOS = 2


def write_report(
    run_dirs: Iterable[Path | str | RunData],
    out: Path,
    score: str | None = None,
    ranges: Ranges | None = None,
    ranking: dict[str, Any] | None = None,
) -> Path:
    """Writes the page for one run, or the comparison of several, and returns `out`; the rest as for `comparison`, and
    `ranking` is that of a sweep (`polopt.report.sweep.ranking`).

    Raises UsageError without runs or for a folder that is none, RunError when the file cannot be written.
    """
    runs = read_runs(run_dirs, score)
    if not runs:
        raise UsageError("a report needs at least one run folder")
    for run in runs:
        if run.damage:
            warnings.warn(f"{run.folder}: {run.damage}", Notice, stacklevel=2)
    page = run_page(runs[0]) if len(runs) == 1 and ranking is None else comparison_page(runs, ranges, ranking)
    out = Path(out)
    files.make_folder(out.parent)
    files.replace(out, page.encode())
    return out


def run_page(run: RunData) -> str:
    """The page of one run."""
    curve, caption = learning_curve(run)
    judged = run.judged_by
    apart = {*COUNTS, "seconds", judged.column, f"{judged.column}_std"}
    apart |= {"train/return"} if judged == Score() else set()
    learners = by_learner(run)
    apart |= {column for columns in learners.values() for column in columns.values()}
    parts = reward_parts(run)
    apart |= {f"{kind}reward/{name}" for name in parts for kind in ("", "eval/")}
    names = [name for name in run.columns if name not in apart and len(run.series(name)[1])]
    return template().render(
        title=f"{run.method} on {run.task}",
        method=run.method,
        task=run.task,
        subtitle=_subtitle(run),
        notices=_notices(run),
        tiles=_tiles(run),
        curve=curve,
        caption=caption,
        video=_video(run),
        samples=_samples([("", run)]),
        figures=shown(run),
        reward_parts=[(name, reward_curves(run, name)) for name in parts],
        learners=[(name, learner_curves(run, columns)) for name, columns in learners.items()],
        metrics=[
            (name, small_multiple(run, name, index), number(last(run.columns[name])))
            for index, name in enumerate(names)
        ],
        run_table=_run_table(run),
        config_table=_config_table(run),
        version=polopt.__version__,
    )


def comparison_page(
    runs: Sequence[RunData], ranges: Ranges | None = None, ranking: dict[str, Any] | None = None
) -> str:
    """The page of several runs: the ranking of a sweep, a section per task, and one for all."""
    result = comparison(runs, ranges=ranges)
    named = list(zip(labels(runs), tasks_of(runs), runs))
    sections = []
    for task, labeled in grouped(runs).items():
        facts = result["tasks"][task]
        ordered = {label: labeled[label] for label in facts["methods"]}
        curve, caption = learning_curves(ordered)
        seeds = sorted({seed for row in facts["methods"].values() for seed in row["seeds"] if seed is not None})
        per_seed = {
            label: dict(zip(row["seeds"], [number(value) for value in row["scores"]]))
            for label, row in facts["methods"].items()
        }
        sections.append(
            _measures(facts)
            | {"task": task, "high": facts["range"] and facts["range"][1], "curve": curve, "caption": caption}
            | {"seeds": seeds, "per_seed": per_seed, "figures": shown_together(ordered)}
            | {"videos": _videos([(label, run) for label, there, run in named if there == task])}
        )
    whole = result["together"]
    methods = list(dict.fromkeys(label for label, _, _ in named))
    return template().render(
        title=f"{' vs '.join(methods) if len(methods) <= 3 else f'{len(methods)} methods'}",
        subtitle=[f"{len(runs)} runs", ", ".join(result["tasks"])],
        notices=ranking["errors"] if ranking else [],
        ranking=ranking,
        sections=sections,
        together=None if whole is None else _measures(whole) | {"high": whole["high"]},
        score=result["score"],
        interval=result["interval"],
        run_rows=[_run_row(label, task, run) for label, task, run in named],
        samples=_samples([(label, run) for label, _, run in named]),
        version=polopt.__version__,
    )


def _measures(facts: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of one task, or of all tasks together."""
    return {
        "facts": facts,
        "order": list(facts["methods"]),
        "pairs": {(item["a"], item["b"]): item for item in facts["improvement"]},
        "chart": score_chart(facts),
        "profile": profile_chart(facts),
    }


def _subtitle(run: RunData) -> list[str]:
    unit = run.unit.replace("_", " ")
    parts = [run.name] if run.name != run.method else []
    parts += [f"seed {run.seed}", f"{count(run.spent)} {unit}"]
    if run.config.get("preset"):
        parts.append(f"preset {run.config['preset']}")
    if run.config.get("created"):
        parts.append(str(run.config["created"])[:10])
    return parts


def _notices(run: RunData) -> list[str]:
    if not run.rows and not run.damage:
        return ["metrics.csv holds no rows yet: this run has recorded nothing."]
    found = [said for said in (run.damage, run.cut, run.by_data) if said]
    if not run.finished:
        unit = run.unit.replace("_", " ")
        found.append(f"This run stopped at {count(run.spent)} of {count(run.config['steps'])} {unit}.")
    return found


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Headline numbers: label, value, remark."""
    steps, values = run.evaluations()
    unit = run.unit.replace("_", " ")
    found: list[tuple[str, str, str]] = []
    if len(values):
        best = int(values.argmax())
        spread = last(run.columns.get(f"{run.judged_by.column}_std", values * math.nan))
        remark = f"± {number(spread)} over episodes" if math.isfinite(spread) else ""
        found.append(("Last evaluation", number(values[-1]), remark))
        found.append(("Best evaluation", number(values[best]), f"at {count(steps[best])} {unit}"))
        if len(values) > 1:
            found.append(("Before training", number(values[0]), "first evaluation"))
    seconds = last(run.columns.get("seconds", run.steps * math.nan))
    if math.isfinite(seconds):
        rate = f"{count(run.spent / seconds)} {unit} a second" if seconds > 0 and math.isfinite(run.spent) else ""
        found.append(("Wall time", duration(seconds), rate))
    return found


def _video(run: RunData) -> dict[str, str]:
    """A data URI and caption, or one honest sentence."""
    path = run.video
    if path is None:
        reason = run.videos / "none.txt"
        return {"missing": reason.read_text() if reason.is_file() else "This run has no video."}
    try:
        data = path.read_bytes()
    except OSError as error:
        return {"missing": f"The video {path.name} could not be read: {error.strerror}."}
    if len(data) > MAX_VIDEO_BYTES:
        size = f"{len(data) / 1e6:.0f} MB"
        return {"missing": f"The video ({size}) is too large for this page: open {path.parent.name}/{path.name}."}
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        ending = "a whole episode" if facts["whole_episode"] else "the first steps of an episode"
        caption = f"Greedy policy, {ending}: return {number(facts['return'])} in {facts['length']} steps."
    except (OSError, ValueError, KeyError):
        caption = "The trained policy, acting greedily."
    return {"source": f"data:video/mp4;base64,{base64.b64encode(data).decode()}", "caption": caption}


def _videos(named: Sequence[tuple[str, RunData]]) -> list[dict[str, str]]:
    """The videos of the runs of one task, where there are few enough to look at."""
    if len(named) > MAX_VIDEOS:
        return []
    films = [_video(run) | {"label": f"{label}, seed {run.seed}"} for label, run in named]
    return [film for film in films if "source" in film]


def _samples(runs: Iterable[tuple[str, RunData]]) -> list[dict[str, Any]]:
    """Completions of the same prompts at several steps of each run that kept some (samples.json)."""
    found = []
    for label, run in runs:
        try:
            shown = json.loads((run.folder / "samples.json").read_text())["shown"]
            rows = list(zip(*(entry["samples"] for entry in shown)))
            title = f"{label}, seed {run.seed}" if label else ""
            unit = run.unit.replace("_", " ")
            when = [f"after {count(entry['step'])} {unit}" if entry["step"] else "before training" for entry in shown]
            found.append({"label": title, "rows": rows, "when": when})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _run_table(run: RunData) -> list[tuple[str, str]]:
    config = run.config
    rows: list[tuple[str, Any]] = [
        ("method", run.method),
        ("task", run.task),
        ("task options", text_of(config.get("task_options") or "")),
        ("seed", run.seed),
        ("budget", f"{count(config['steps'])} {run.unit.replace('_', ' ')}" if config.get("steps") else None),
    ]
    rows += [(name.replace("_", " "), count(last(run.columns[name]))) for name in COUNTS if _positive(run, name)]
    _, values = run.evaluations()
    if len(values):
        rows.append((f"{run.judged_by.text}, mean of the last {LAST} evaluations", number(run.score)))
    rows += [(name, version) for name, version in (config.get("versions") or {}).items()]
    rows += [
        ("git", config.get("git")),
        ("machine", config.get("machine")),
        ("created", config.get("created")),
        ("command", config.get("command")),
        ("folder", run.folder.resolve().name),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _positive(run: RunData, name: str) -> bool:
    return name in run.columns and last(run.columns[name]) > 0


def _config_table(run: RunData) -> list[tuple[str, str, str]]:
    """Field, value and source of every setting; sources are there when config.json has them."""
    sources = {str(key).replace("_", "-"): value for key, value in (run.config.get("sources") or {}).items()}
    rows = []
    for part in ("config", "run"):
        for name, value in flatten(run.config.get(part) or {}).items():
            if part == "config" or value not in (None, "", []):
                field = name.replace("_", "-")
                rows.append((field, text_of(value), str(sources.get(field, "run" if part == "run" else ""))))
    return rows


def _run_row(label: str, task: str, run: RunData) -> dict[str, str]:
    return {
        "method": label,
        "task": task,
        "seed": str(run.seed),
        "spent": f"{count(run.spent)} {run.unit.replace('_', ' ')}",
        "time": duration(last(run.columns.get("seconds", run.steps * math.nan))),
        "score": number(run.score),
        "git": str(run.config.get("git") or "-"),
        "folder": run.folder.resolve().name,
    }

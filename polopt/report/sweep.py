"""`sweep`: many settings of one method, ranked on some seeds and reported on others."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.core.errors import RunError, UsageError
from polopt.report.compare import Comparison
from polopt.report.compared import write_figures
from polopt.report.grid import Over, names_of, settings_over
from polopt.report.members import members, seeds_of, settings_of
from polopt.report.page import write_report
from polopt.report.runs import read_runs
from polopt.report.tables import comparison
from polopt.report.template import text_of
from polopt.report.together import Ranges, check_ranges
from polopt.report.trained import Call, about, file_name, planned, raise_first, train_all
from polopt.training.beginning import check
from polopt.training.folder import Run
from polopt.training.jobs import Engine
from polopt.training.plan import TaskLike, task_name

TUNING_SEED = 1500  # the first of those that rank; seeds that are reported lie below


@dataclass(frozen=True)
class Ranked:
    """One setting of a sweep.

    Attributes:
        name: what its folders and the report call it.
        values: of the options that differ.
        scores: of each tuning seed; None where a run failed or has no evaluation.
        error: what a run failed with, or nothing.
        iqm: of the seeds that are reported, as in `comparison`; None for settings that were not trained with them.
    """

    name: str
    values: dict[str, Any]
    scores: list[float | None]
    error: str = ""
    iqm: dict[str, Any] | None = None

    @property
    def mean(self) -> float | None:
        """What it is ranked by; None where a score is missing."""
        known = [value for value in self.scores if value is not None]
        return sum(known) / len(known) if known and len(known) == len(self.scores) else None


@dataclass(frozen=True)
class Sweep:
    """What `sweep` gives: all settings, the best first, as data and as the table of the page, and the comparison of
    those that were reported."""

    ranked: list[Ranked]
    ranking: dict[str, Any]
    comparison: Comparison

    @property
    def best(self) -> Ranked:
        return self.ranked[0]


def sweep(
    method: str,
    task: TaskLike,
    over: Over,
    *,
    seeds: int | str | Sequence[int] = 5,
    tuning_seeds: int = 2,
    random: int | None = None,
    top: int = 3,
    jobs: int | None = None,
    ray: str | None = None,
    gpus_per_job: float = 0.0,
    out: str | Path | None = None,
    score: str | None = None,
    ranges: Ranges | None = None,
    progress: bool = False,
    **settings: Any,
) -> Sweep:
    """Trains settings of a method with tuning seeds, ranks them, and trains the best with the seeds that are reported.

    No setting is ranked by a seed that it is reported on: the best of many on some seeds looks better on these than it
    is. Call it again to go on where it was stopped.

    Args:
        over: values of each option that differs, {"lr": [1e-4, 3e-4], "network.sizes": [(64,), (256,)]}: all
            combinations, or with `random` so many of them. A `Between` is for `random` only.
        seeds: that are reported; how many or which, below 1500.
        tuning_seeds: how many rank; 1500 and up.
        top: how many of the best are reported.
        jobs, ray, gpus_per_job: as for `compare`.
        out: the folder: the runs that rank in tuning/NAME-sSEED, those reported in NAME-sSEED, sweep.csv, report.html.
        score, ranges, settings: as for `compare`.

    Raises:
        UsageError: wrong names or values, found before the first run begins.
        RunError: every setting failed, or a run that is reported did. A setting that fails while it is tuned is last.
    """
    engine, numbers = Engine(jobs, ray, gpus_per_job), seeds_of(seeds)
    tuned_on = list(range(TUNING_SEED, TUNING_SEED + tuning_seeds))
    if tuning_seeds < 1 or top < 1:
        raise UsageError(f"--tuning-seeds {tuning_seeds} and --top {top}: at least 1")
    if max(numbers) >= TUNING_SEED:
        raise UsageError(f"--seeds: seeds from {TUNING_SEED} on rank the settings, and are not those to report")
    check_ranges([task_name(task)], ranges or {})
    found = list(settings_over(over, random))
    names = names_of([values for values, _ in found])
    among = members([f"{name}={method}" for name in names])
    folder = Path(out) if out is not None else Path("runs") / f"sweep-{method}-{file_name(task_name(task))}"
    files.check_folder(folder)
    tuning: list[list[Call]] = []
    reported: list[list[Call]] = []
    for member, (_, given) in zip(among, found):
        with about(member.name):
            own = settings_of(member, among, settings, {member.name: given})
            calls, new = planned(member, task, tuned_on, folder / "tuning", dict(own))
            if new:
                check(new[0], score)
            tuning.append(calls)
            reported.append(planned(member, task, numbers, folder, dict(own))[0])
    calls = [theirs[place] for place in range(len(tuned_on)) for theirs in tuning]
    failed = train_all(calls, engine, folder, progress)
    errors = {calls[place].place: str(error) for place, error in failed.items()}
    ranked = [_ranked(theirs, values, errors, score) for theirs, (values, _) in zip(tuning, found)]
    order = sorted(range(len(ranked)), key=lambda place: _last_without(ranked[place].mean))
    best = [place for place in order[:top] if ranked[place].mean is not None]
    if not best:
        raise_first(calls, failed)
        raise RunError(f"no setting of this sweep has an evaluation: see {folder / 'tuning'}")
    calls = [reported[place][number] for number in range(len(numbers)) for place in best]
    raise_first(calls, train_all(calls, engine, folder, progress))
    runs = read_runs([call.place for call in calls], score)
    facts = comparison(runs, ranges=ranges)
    rows = next(iter(facts["tasks"].values()))["methods"]
    table = [
        Ranked(each.name, each.values, each.scores, each.error, (rows.get(each.name) or {}).get("iqm"))
        for each in (ranked[place] for place in order)
    ]
    shown = ranking(table, tuned_on, numbers)
    page = write_report(runs, folder / "report.html", ranges=ranges, ranking=shown)
    _write_table(table, tuned_on, folder / "sweep.csv")
    made = Comparison([Run(call.place) for call in calls], facts, page, write_figures(facts, runs, folder / "figures"))
    return Sweep(table, shown, made)


def ranking(ranked: Sequence[Ranked], tuned_on: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """The ranked table as text: title, heads, rows, and the sentence that says which seeds are which."""
    options = list(ranked[0].values)
    rows = []
    for place, each in enumerate(ranked, 1):
        values = [text_of(each.values[name]) for name in options]
        tuned = "failed" if each.error else "-" if each.mean is None else f"{each.mean:.4g}"
        rows.append([str(place), *values, tuned, each.iqm["text"] if each.iqm else "-", each.name])
    return {
        "title": f"{len(ranked)} settings, the best first",
        "heads": ["", *options, "tuning mean", "interquartile mean [95 % interval]", "name"],
        "rows": rows,
        "said": (
            f"Ranked by the mean over the tuning seeds {_listed(tuned_on)}. The interquartile means, and all else that "
            f"is reported, are of the seeds {_listed(seeds)}, which ranked nothing."
        ),
        "errors": [f"{each.name} failed: {each.error}" for each in ranked if each.error],
    }


def _ranked(calls: Sequence[Call], values: dict[str, Any], errors: Mapping[Path, str], score: str | None) -> Ranked:
    scores: list[float | None] = []
    for call in calls:
        value = math.nan if call.place in errors else read_runs([call.place], score)[0].score
        scores.append(value if math.isfinite(value) else None)
    error = next((errors[call.place] for call in calls if call.place in errors), "")
    return Ranked(calls[0].member.name, values, scores, error)


def _last_without(value: float | None) -> float:
    return math.inf if value is None else -value


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _write_table(ranked: Sequence[Ranked], tuned_on: Sequence[int], file: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    options = list(ranked[0].values)
    seeds = [f"seed {seed}" for seed in tuned_on]
    writer.writerow(["rank", "name", *options, *seeds, "tuning mean", "iqm", "low", "high", "error"])
    for place, each in enumerate(ranked, 1):
        iqm = each.iqm or {}
        numbers = [*each.scores, each.mean, iqm.get("estimate"), iqm.get("low"), iqm.get("high")]
        cells = ["" if value is None else repr(value) for value in numbers]
        writer.writerow([place, each.name, *(text_of(each.values[name]) for name in options), *cells, each.error])
    files.make_folder(file.parent)
    files.replace(file, text.getvalue().encode())

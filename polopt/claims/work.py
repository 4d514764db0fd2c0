"""The jobs of a claim: which (arm, seed) run together, where they run, and the lines that they give. Torch-free."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims.claim import Claim
from polopt.claims.grids import Together
from polopt.claims.results import Line, load_claim
from polopt.claims.shared import keeping_runs, sharing
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.core.pool import Died
from polopt.training.job_table import Job
from polopt.training.jobs import Engine, run_jobs

Watch = Callable[[Iterator[tuple[int, Any]], Sequence[Job]], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Runs:
    """What the jobs of a claim share: its file, the budget, and folders: of what arms make together, and by arm of the
    runs that go on when their job is done again."""

    path: Path
    budget: Mapping[str, int]
    together: Path
    folders: Mapping[str, Path]

    def folder(self, arm: str, seed: int) -> Path:
        return self.folders[arm] / f"{arm}-s{seed}"


def keep_only(work: Path, folders: Iterable[Path]) -> None:
    """Removes what is left of runs with other settings or other code, and the folder when nothing is in it."""
    kept = set(folders)
    for path in work.iterdir() if work.is_dir() else ():
        if path not in kept:
            files.remove(path)
    for folder in (work, work.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            files.remove(folder)


def run_lines(
    claim: Claim, runs: Runs, todo: Sequence[tuple[str, int]], engine: Engine, watch: Watch | None
) -> Iterator[Line]:
    """Runs (arm, seed) in order and yields their lines as they finish."""
    jobs = _grouped(claim, todo)
    folders = [runs.folder(arm, seeds[0]) for arm, seeds in jobs]
    shared = str(runs.path), dict(runs.budget), runs.together
    ended = run_jobs(_work, [(*shared, *job, folder) for job, folder in zip(jobs, folders)], engine, runs.together)
    if watch is not None:
        ended = watch(ended, [Job(f"{arm} seed {seeds[0]}", folder) for (arm, seeds), folder in zip(jobs, folders)])
    for place, result in ended:
        arm, seeds = jobs[place]
        if isinstance(result, Died):
            result = [{"arm": arm, "seed": seed, "seconds": 0.0, "error": str(result)} for seed in seeds]
        yield from result


def _grouped(claim: Claim, todo: Sequence[tuple[str, int]]) -> list[tuple[str, tuple[int, ...]]]:
    """The same runs as jobs: the seeds of an arm that runs them together are one, where the first of them stood."""
    jobs: dict[tuple[str, int], tuple[int, ...]] = {}
    for arm, seed in todo:
        place = (arm, -1 if isinstance(claim.arms[arm], Together) else seed)
        jobs[place] = (*jobs.get(place, ()), seed)
    return [(arm, seeds) for (arm, _), seeds in jobs.items()]


def _work(
    path: str, budget: dict[str, int], together: Path, name: str, seeds: tuple[int, ...], folder: Path
) -> list[Line]:
    """The runs of one job. Wrong usage is raised: it concerns the claim; any other error is the result of its runs, of
    which nothing is kept then."""
    arm = load_claim(Path(path)).arms[name]
    start = time.perf_counter()
    outcomes: list[Line]
    try:
        with sharing(together), keeping_runs(folder):
            table = arm.table(seeds, budget) if isinstance(arm, Together) else {seeds[0]: arm(seeds[0], budget)}
        outcomes = [{"metrics": _json(dict(table[seed]))} for seed in seeds]
    except UsageError:
        raise
    except Exception as error:
        files.remove(folder)
        outcomes = [{"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}] * len(seeds)
    seconds = round((time.perf_counter() - start) / len(seeds), 3)
    return [{"arm": name, "seed": seed, "seconds": seconds} | outcome for seed, outcome in zip(seeds, outcomes)]


def _json(value: Any) -> Any:
    """Numbers of any library as JSON; what is not finite becomes null, which no expectation accepts."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return _json(value.tolist())
    return float(value) if math.isfinite(value) else None

"""Runs claims and keeps their results.

Seeds run outside and arms inside, so that an interrupted claim stays paired; running it again does what is missing.
Importing this module imports no torch; arms do.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polopt
from polopt.claims.claim import Claim
from polopt.claims.judge import Check, Verdict, check
from polopt.claims.keys import arm_key, code_key, expect_key
from polopt.claims.results import (
    Line,
    Place,
    appending,
    count_stale,
    entry,
    find_place,
    load_claim,
    read_lines,
    select,
    verdict,
)
from polopt.core import files
from polopt.core.errors import RunError, UsageError

PILOT_SEED = 1000
QUICK_SEED = 2000
QUICK_SHARE = 10  # --quick spends a tenth of the budget, on one seed


@dataclass(frozen=True)
class Outcome:
    """What `run_claim` did. `verdict` is None for quick and pilot runs, which are not recorded."""

    slug: str
    mode: str
    claim: Claim
    lines: tuple[Line, ...]
    ran: int
    verdict: Verdict | None = None
    checks: tuple[Check, ...] = ()
    stale: int = 0
    other: int = 0
    torn: int = 0
    changed: bool = False

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if "error" in line]


def run_claim(
    slug: str,
    *,
    quick: bool = False,
    pilot: bool = False,
    jobs: int | None = None,
    root: Path | None = None,
    report: Callable[[Line, int, int], None] | None = None,
) -> Outcome:
    """Runs what is missing of a claim, records it, and judges.

    Args:
        quick: a tenth of the budget on one seed apart: numbers, never a verdict, nothing recorded.
        pilot: the full budget on seeds 1000 and up, nothing recorded.
        jobs: processes, each with one torch thread; 2 by default where there are two cores.
        report: called with each new line, the number done and the number to do.

    Raises:
        UsageError: no such claim, or its file has changes that are not committed.
        RunError: a worker process died; lines recorded before stand.
    """
    if quick and pilot:
        raise UsageError("--quick and --pilot exclude each other")
    place = find_place(root)
    path = place.claim(slug)
    claim = load_claim(path)
    workers = min(2, _cores()) if jobs is None else jobs
    if workers < 1:
        raise UsageError(f"--jobs {workers} must be at least 1")
    if quick or pilot:
        return _unrecorded(slug, claim, path, quick, workers, report)

    commit = expectation_commit(path)
    lines, torn = read_lines(place.lines(slug))
    keys = {arm: f"{arm_key(claim, arm)}:{code_key(claim, path, arm)}" for arm in claim.arms}
    done = {(line["arm"], line["seed"], line["key"]) for line in lines if "metrics" in line}
    missing = [(arm, seed) for arm, seed in claim.jobs() if (arm, seed, keys[arm]) not in done]
    if missing:
        stamp = {"expect": expect_key(claim), "commit": commit, "polopt": polopt.__version__}
        with appending(place.lines(slug)) as append:
            for count, line in enumerate(_run(path, claim.budget, missing, workers), start=1):
                complete = line | {"key": keys[line["arm"]], "date": datetime.now(UTC).date().isoformat()} | stamp
                append(complete)
                lines.append(complete)
                if report is not None:
                    report(complete, count, len(missing))
    save_verdict(place, slug, claim, lines)
    used = select(claim, lines)
    result = verdict(claim, lines)
    return Outcome(
        slug,
        "recorded",
        claim,
        tuple(used.values()),
        len(missing),
        result,
        result.checks,
        stale=count_stale(claim, path, used.values()),
        other=len(lines) - len(used),
        torn=torn,
        changed=any(line["expect"] != expect_key(claim) for line in used.values()),
    )


def _unrecorded(
    slug: str,
    claim: Claim,
    path: Path,
    quick: bool,
    workers: int,
    report: Callable[[Line, int, int], None] | None,
) -> Outcome:
    tenth = {unit: max(1, value // QUICK_SHARE) for unit, value in claim.budget.items()}
    budget = dict(claim.quick or tenth) if quick else claim.budget
    seeds = [QUICK_SEED] if quick else [PILOT_SEED + index for index in range(claim.seeds)]
    todo = claim.jobs(seeds)
    lines: list[Line] = []
    for line in _run(path, budget, todo, workers):
        lines.append(line)
        if report is not None:
            report(line, len(lines), len(todo))
    checks: tuple[Check, ...] = ()
    if not quick and not any("error" in line for line in lines):
        table: dict[str, dict[int, Any]] = {arm: {} for arm in claim.arms}
        for line in lines:
            table[line["arm"]][line["seed"]] = line["metrics"]
        checks = tuple(check(claim, item, table, seeds) for item in claim.expect)
    return Outcome(slug, "quick" if quick else "pilot", claim, tuple(lines), len(todo), checks=checks)


def save_verdict(place: Place, slug: str, claim: Claim, lines: Iterable[Line]) -> None:
    """Writes the claim's entry of verdicts.json; the others stay as they are."""
    everything = json.loads(place.verdicts.read_text()) if place.verdicts.exists() else {}
    everything[slug] = entry(claim, lines)
    files.make_folder(place.results)
    files.replace(place.verdicts, (json.dumps(everything, indent=2, sort_keys=True) + "\n").encode())


def expectation_commit(path: Path) -> str:
    """The commit that last changed the claim file.

    Outside a git checkout the expectation is the one that was released: "polopt VERSION". Raises UsageError when the
    file has changes that are not committed: an expectation written after the numbers proves nothing.
    """
    if _git(path, "rev-parse", "--is-inside-work-tree") != "true":
        return f"polopt {polopt.__version__}"
    changes = _git(path, "status", "--porcelain", "--", path.name)
    commit = _git(path, "log", "-1", "--format=%H", "--", path.name)
    if changes or not commit:
        raise UsageError(
            f"{path} must be committed before results are recorded, so that what was expected stands before what was "
            f"found; commit it, or try it out with --quick or --pilot, which record nothing"
        )
    return commit


def _git(path: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(path.parent), *command], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _run(path: Path, budget: Mapping[str, int], todo: Sequence[tuple[str, int]], workers: int) -> Iterator[Line]:
    """Runs (arm, seed) in order and yields their lines as they finish."""
    if not todo:
        return
    workers = min(workers, len(todo))
    if workers == 1:
        for arm, seed in todo:
            yield _work(str(path), arm, seed, dict(budget))
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        futures = [pool.submit(_work, str(path), arm, seed, dict(budget)) for arm, seed in todo]
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()  # a worker may be minutes from its end, and nobody waits for it any more
        if isinstance(error, BrokenProcessPool):
            raise RunError("a worker process died (out of memory?); finished runs are kept, run it again") from None
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _work(path: str, arm: str, seed: int, budget: dict[str, int]) -> Line:
    """One run of one arm. Wrong usage is raised: it concerns the claim; any other error is the result of this run."""
    claim = load_claim(Path(path))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    start = time.perf_counter()
    try:
        outcome: Line = {"metrics": _json(dict(claim.arms[arm](seed, budget)))}
    except UsageError:
        raise
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return {"arm": arm, "seed": seed, "seconds": round(time.perf_counter() - start, 3)} | outcome


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

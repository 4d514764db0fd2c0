"""Runs claims and keeps their results.

Seeds run outside and arms inside, so that an interrupted claim stays paired; running it again does what is missing.
Importing this module imports no torch; arms do.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polopt
from polopt.claims.claim import PILOT_SEED, Claim
from polopt.claims.grids import Together
from polopt.claims.judge import Check, Verdict, check
from polopt.claims.keys import expect_key, line_key
from polopt.claims.results import (
    Line,
    Place,
    appending,
    entry,
    find_place,
    freshness,
    load_claim,
    read_lines,
    select,
    verdict,
)
from polopt.claims.shared import one_run
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.core.pool import spread

QUICK_SEED = 2000
QUICK_SHARE = 10  # --quick spends a tenth of the budget, on one seed


@dataclass(frozen=True)
class Outcome:
    """What `run_claim` did. `verdict` is None for quick and pilot runs, which are not recorded.

    `stale` and `unknown` count the earlier lines whose runs were repeated: see `polopt.claims.results`.
    """

    slug: str
    mode: str
    claim: Claim
    lines: tuple[Line, ...]
    ran: int
    verdict: Verdict | None = None
    checks: tuple[Check, ...] = ()
    stale: int = 0
    unknown: int = 0
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
    seeds: int | None = None,
    jobs: int | None = None,
    root: Path | None = None,
    report: Callable[[Line, int, int], None] | None = None,
) -> Outcome:
    """Runs what is missing of a claim, records it, and judges.

    Args:
        quick: a tenth of the budget on one seed apart: numbers, never a verdict, nothing recorded.
        pilot: the full budget on seeds 1000 and up, nothing recorded.
        seeds: how many of them; by default as many as the claim has.
        jobs: processes, each with one torch thread; 2 by default where there are two cores.
        report: called with each new line, the number done and the number to do.

    Raises:
        UsageError: no such claim, its file has changes that are not committed, or it is registered again with seeds
            that were used before.
        RunError: a worker process died; lines recorded before stand.
    """
    if quick and pilot:
        raise UsageError("--quick and --pilot exclude each other")
    if seeds is not None and (not pilot or seeds < 1):
        raise UsageError("--seeds is the number of seeds of --pilot, at least 1: a claim says itself how many it has")
    place = find_place(root)
    path = place.claim(slug)
    claim = load_claim(path)
    workers = min(2, _cores()) if jobs is None else jobs
    if workers < 1:
        raise UsageError(f"--jobs {workers} must be at least 1")
    if quick or pilot:
        return _unrecorded(slug, claim, path, seeds or claim.seeds, quick, workers, report)

    commit = expectation_commit(path)
    lines, torn = read_lines(place.lines(slug))
    _check_fresh_seeds(claim, lines)
    stale, unknown = freshness(claim, path, select(claim, lines).values())
    keys = {arm: line_key(claim, path, arm) for arm in claim.arms}
    done = {(line["arm"], line["seed"], line["key"]) for line in lines if "metrics" in line}
    missing = [(arm, seed) for arm, seed in claim.jobs() if (arm, seed, keys[arm]) not in done]
    if missing:
        stamp: Line = {"expect": expect_key(claim), "commit": commit, "polopt": polopt.__version__}
        stamp |= {} if claim.revision == 1 else {"revision": claim.revision}
        with appending(place.lines(slug)) as append:
            for count, line in enumerate(_run(path, claim, claim.budget, missing, workers), start=1):
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
        stale=stale,
        unknown=unknown,
        other=len(lines) - len(used),
        torn=torn,
        changed=any(line["expect"] != expect_key(claim) for line in used.values()),
    )


def _unrecorded(
    slug: str,
    claim: Claim,
    path: Path,
    count: int,
    quick: bool,
    workers: int,
    report: Callable[[Line, int, int], None] | None,
) -> Outcome:
    tenth = {unit: max(1, value // QUICK_SHARE) for unit, value in claim.budget.items()}
    budget = dict(claim.quick or tenth) if quick else claim.budget
    seeds = [QUICK_SEED] if quick else [PILOT_SEED + index for index in range(count)]
    todo = claim.jobs(seeds)
    lines: list[Line] = []
    for line in _run(path, claim, budget, todo, workers):
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
    everything[slug] = entry(claim, lines, everything.get(slug))
    files.make_folder(place.results)
    files.replace(place.verdicts, (json.dumps(everything, indent=2, sort_keys=True) + "\n").encode())


def _check_fresh_seeds(claim: Claim, lines: Iterable[Line]) -> None:
    """Raises UsageError when a claim that is registered again has seeds of an earlier registration."""
    used = {line["seed"] for line in lines if line.get("revision", 1) < claim.revision}
    again = used & set(claim.recorded_seeds)
    if again:
        raise UsageError(
            f"an earlier registration of the claim of {claim.method} used seed {min(again)}: "
            f"begin at first_seed={max(used) + 1} or above"
        )


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


def _run(
    path: Path, claim: Claim, budget: Mapping[str, int], todo: Sequence[tuple[str, int]], workers: int
) -> Iterator[Line]:
    """Runs (arm, seed) in order and yields their lines as they finish."""
    if not todo:
        return
    jobs = _grouped(claim, todo)
    workers = min(workers, len(jobs))
    with one_run():
        if workers == 1:
            for arm, seeds in jobs:
                yield from _work(str(path), arm, seeds, dict(budget))
            return
        for _, lines in spread(_work, [(str(path), arm, seeds, dict(budget)) for arm, seeds in jobs], workers):
            yield from lines


def _grouped(claim: Claim, todo: Sequence[tuple[str, int]]) -> list[tuple[str, tuple[int, ...]]]:
    """The same runs as jobs: the seeds of an arm that runs them together are one, where the first of them stood."""
    jobs: dict[tuple[str, int], tuple[int, ...]] = {}
    for arm, seed in todo:
        place = (arm, -1 if isinstance(claim.arms[arm], Together) else seed)
        jobs[place] = (*jobs.get(place, ()), seed)
    return [(arm, seeds) for (arm, _), seeds in jobs.items()]


def _work(path: str, name: str, seeds: tuple[int, ...], budget: dict[str, int]) -> list[Line]:
    """The runs of one job. Wrong usage is raised: it concerns the claim; any other error is the result of its runs."""
    arm = load_claim(Path(path)).arms[name]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    start = time.perf_counter()
    outcomes: list[Line]
    try:
        table = arm.table(seeds, budget) if isinstance(arm, Together) else {seeds[0]: arm(seeds[0], budget)}
        outcomes = [{"metrics": _json(dict(table[seed]))} for seed in seeds]
    except UsageError:
        raise
    except Exception as error:
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

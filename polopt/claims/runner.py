"""Runs claims and keeps their results.

Seeds run outside and arms inside, so that an interrupted claim stays paired; running it again does what is missing.
Importing this module imports no torch; arms do.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polopt
from polopt.claims.claim import PILOT_SEED, Claim
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
from polopt.claims.work import Runs, Watch, keep_only, run_lines
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.training.jobs import Engine

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
    ray: str | None = None,
    gpus_per_job: float = 0.0,
    root: Path | None = None,
    report: Callable[[Line, int, int], None] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Runs what is missing of a claim, records it, and judges.

    Args:
        quick: a tenth of the budget on one seed apart: numbers, never a verdict, nothing recorded.
        pilot: the full budget on seeds 1000 and up, nothing recorded.
        seeds: how many of them; by default as many as the claim has.
        jobs: at a time, each with one torch thread; 2 by default where there are two cores. More than one are processes
            of their own: one that dies is tried again, and a run of `train_arm` goes on from its checkpoint then.
        ray, gpus_per_job: on a Ray cluster instead: see `polopt.training.jobs.Engine`.
        report: called with each new line, the number done and the number to do.
        watch: passes on what the jobs give while it shows them (`polopt.training.job_table.shown`).

    Raises:
        UsageError: no such claim, its file has changes that are not committed, or it is registered again with seeds
            that were used before.
        RunError: the results cannot be written; lines recorded before stand.
    """
    if quick and pilot:
        raise UsageError("--quick and --pilot exclude each other")
    if seeds is not None and (not pilot or seeds < 1):
        raise UsageError("--seeds is the number of seeds of --pilot, at least 1: a claim says itself how many it has")
    place = find_place(root)
    path = place.claim(slug)
    claim = load_claim(path)
    engine = Engine(min(2, _cores()) if jobs is None and ray is None else jobs, ray, gpus_per_job)
    # Where other machines run jobs, what arms share lies beside the results, which they see.
    inside = None if ray is None else place.results
    if quick or pilot:
        return _unrecorded(slug, claim, path, seeds or claim.seeds, quick, engine, inside, report, watch)

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
        with appending(place.lines(slug)) as append, one_run(inside) as together:
            work = place.work(slug)
            folders = {arm: work / key.replace(":", "-") for arm, key in keys.items()}
            keep_only(work, folders.values())
            runs = Runs(path, claim.budget, together, folders)
            for count, line in enumerate(run_lines(claim, runs, missing, engine, watch), start=1):
                complete = line | {"key": keys[line["arm"]], "date": datetime.now(UTC).date().isoformat()} | stamp
                append(complete)
                if "metrics" in line:
                    files.remove(runs.folder(line["arm"], line["seed"]))
                lines.append(complete)
                if report is not None:
                    report(complete, count, len(missing))
            keep_only(work, [folder for folder in folders.values() if folder.is_dir() and any(folder.iterdir())])
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
    engine: Engine,
    inside: Path | None,
    report: Callable[[Line, int, int], None] | None,
    watch: Watch | None,
) -> Outcome:
    tenth = {unit: max(1, value // QUICK_SHARE) for unit, value in claim.budget.items()}
    budget = dict(claim.quick or tenth) if quick else claim.budget
    seeds = [QUICK_SEED] if quick else [PILOT_SEED + index for index in range(count)]
    todo = claim.jobs(seeds)
    lines: list[Line] = []
    with one_run(inside) as together:
        runs = Runs(path, budget, together, dict.fromkeys(claim.arms, together / "runs"))
        for line in run_lines(claim, runs, todo, engine, watch):
            lines.append(line)
            files.remove(runs.folder(line["arm"], line["seed"]))
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

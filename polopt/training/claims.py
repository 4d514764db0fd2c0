"""Runs claims and keeps their results: `claims/SLUG.py` says what is expected, one line per run says what came out.

    claims/SLUG.py                  CLAIM = Claim(...), committed before the first line is recorded
    claims/results/SLUG.jsonl       one JSON line per (arm, seed), appended and flushed as it finishes, never deleted
    claims/results/verdicts.json    recomputable from the two above (`recompute_all`)
    docs/claims.md                  the same for readers (`claim_pages`)

Seeds run outside and arms inside, so that an interrupted claim stays paired; running it again does what is missing.
A line's `key` is two hashes, "ARM:CODE". ARM covers the arm's settings and the budget: a line with another one
belongs to another experiment and is not used. CODE covers the claim file, the method's file and the polopt modules
that they import (their syntax trees, without docstrings): a line with another one still counts and is shown as stale
until the claim is run again. The `expect` hash and the `commit` of a line say what was expected when it was recorded.

Importing this module imports no torch; arms do.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import linecache
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polopt
from polopt.core.errors import RunError, UsageError, nearest
from polopt.evaluation.claims import Check, Claim, Verdict, check, judge
from polopt.training import files
from polopt.training.claim_keys import PACKAGE, arm_key, code_key, expect_key, plain

Line = dict[str, Any]

PILOT_SEED = 1000
QUICK_SEED = 2000
QUICK_SHARE = 10  # --quick spends a tenth of the budget, on one seed


# Arms


@dataclass(frozen=True)
class TrainArm:
    """An arm that trains a method; made by `train_arm`."""

    method: str
    task: Any
    metrics: Any = ()
    config: tuple[tuple[str, Any], ...] = ()
    unit: str | None = None

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.training.api import train

        if self.unit is None and len(budget) != 1:
            raise UsageError(f"the budget {dict(budget)} has several units: give train_arm(..., unit=...)")
        settings: dict[str, Any] = {"loggers": (), "threads": 1, "checkpoint_every": 2**40} | dict(self.config)
        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            steps = budget[self.unit] if self.unit is not None else next(iter(budget.values()))
            run: Any = train(self.method, self.task, steps=steps, seed=seed, out=Path(folder) / "run", **settings)
            unit = run.config.get("unit") if isinstance(getattr(run, "config", None), dict) else None
            if unit is not None and unit not in budget:
                raise UsageError(f"{self.method} counts {unit}, but the budget of its claim is {dict(budget)}")
            return measure(run, self.metrics)

    def describe(self) -> dict[str, Any]:
        return {"train": self.method, "task": plain(self.task), "metrics": plain(self.metrics)} | {
            "config": plain(dict(self.config))
        }


def train_arm(
    method: str,
    task: Any,
    *,
    metrics: Sequence[str] | Mapping[str, Any] = (),
    unit: str | None = None,
    **config: Any,
) -> TrainArm:
    """An arm that calls `polopt.train(method, task, steps=budget, seed=seed, **config)` and measures the run.

    Always measured: `return` (mean of the last three evaluations), `area` (mean over all evaluations, the area under
    the learning curve), `best`, and `curve` (a list of [count, return]). `metrics` adds columns of the rows:
    "entropy" is the mean over the last fifth of the rows that have it, "entropy:max" (mean, min, max, last) over all
    of them; a mapping renames ({"bias": "critic/bias:last"}) or takes a module-level function `f(run) -> float`.
    `unit` chooses the budget's entry when it has several.
    """
    return TrainArm(
        method, task, metrics if isinstance(metrics, Mapping) else tuple(metrics), tuple(config.items()), unit
    )


def measure(run: Any, metrics: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, Any]:
    """The metrics of one finished run; see `train_arm`. Raises RunError when a number is not there."""
    evaluations = run.evaluations
    returns = [float(row["eval/return"] if "eval/return" in row else row["return"]) for row in evaluations]
    if not returns:
        raise RunError("the run has no evaluation to measure")
    last = returns[-3:]
    found: dict[str, Any] = {
        "return": sum(last) / len(last),
        "area": sum(returns) / len(returns),
        "best": max(returns),
        "curve": [[row.get("env_steps", index), value] for index, (row, value) in enumerate(zip(evaluations, returns))],
    }
    for name, what in metrics.items() if isinstance(metrics, Mapping) else zip(metrics, metrics):
        found[name] = float(what(run)) if callable(what) else _column(run.rows, what)
    return found


def _column(rows: Sequence[Mapping[str, Any]], what: str) -> float:
    name, _, how = what.partition(":")
    values = [float(row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    if not values:
        raise RunError(f"the rows have no '{name}'{nearest(name, {key for row in rows for key in row})}")
    tail = values[-max(1, len(values) // 5) :]
    reductions = {"": tail, "mean": values, "min": [min(values)], "max": [max(values)], "last": values[-1:]}
    if how not in reductions:
        raise UsageError(f"'{what}' ends in ':{how}'{nearest(how, [key for key in reductions if key])}")
    return sum(reductions[how]) / len(reductions[how])


# Where claims live


@dataclass(frozen=True)
class Place:
    """The folder of the claims, and where their results are kept."""

    claims: Path
    results: Path

    def claim(self, slug: str) -> Path:
        return self.claims / f"{slug}.py"

    def lines(self, slug: str) -> Path:
        return self.results / f"{slug}.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.results / "verdicts.json"

    def slugs(self) -> list[str]:
        return sorted(path.stem for path in self.claims.glob("*.py") if not path.stem.startswith("_"))


def find_place(root: Path | None = None) -> Place:
    """The claims of a checkout, or those that were installed with polopt (their results then go to ./claims)."""
    folder = (PACKAGE.parent if root is None else root) / "claims"
    if root is not None or (folder.is_dir() and (PACKAGE.parent / "pyproject.toml").exists()):
        return Place(folder, folder / "results")
    return Place(PACKAGE / "_claims", Path.cwd() / "claims" / "results")


def load_claim(path: Path) -> Claim:
    """The CLAIM of a file, which is executed. Raises UsageError when there is none, or it does not hold together."""
    return _load_claim(path.resolve(), path.read_bytes()) if path.is_file() else _no_claim(path)


@functools.cache
def _load_claim(path: Path, source: bytes) -> Claim:
    name = f"polopt_claim_{path.stem.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    linecache.checkcache(str(path))  # inspect.getsource reads the file as it is now
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource and pickle look there
    try:
        exec(compile(source, path, "exec"), module.__dict__)  # not through __pycache__, which trusts time stamps
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    claim = getattr(module, "CLAIM", None)
    if not isinstance(claim, Claim):
        raise UsageError(f"{path} defines no CLAIM = Claim(...)")
    return claim


def _no_claim(path: Path) -> Claim:
    known = sorted(item.stem for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
    raise UsageError(f"there is no claim for '{path.stem}'{nearest(path.stem, known)}")


# Lines


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The lines of a result file in order, and how many are torn (a run that was killed while it wrote)."""
    lines, torn = [], 0
    if path.exists():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                line["arm"], line["seed"], line["key"]
                lines.append(line)
            except (ValueError, TypeError, KeyError):
                torn += bool(text.strip())
    return lines, torn


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[Line], None]]:
    """Appends lines, each on disk before the next run's result is taken; one writer at a time."""
    files.make_folder(path.parent)
    try:
        file = open(path, "a+b")  # noqa: SIM115  closed below; only opening it is guarded here
    except OSError as error:
        raise files.refused(path, error) from error
    with file:
        _lock(file, path)
        start = b"\n" if file.tell() and not _ends_line(file) else b""  # close a torn line, so that it harms no other

        def append(line: Line) -> None:
            nonlocal start
            try:
                file.write(start + json.dumps(line, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise files.refused(path, error) from error
            start = b""

        yield append


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs of one claim at a time are the user's own care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(f"another process is recording to {path}") from None


def select(claim: Claim, lines: Iterable[Line]) -> dict[tuple[str, int], Line]:
    """The line that counts for each (arm, seed) of the claim: of the code that recorded last, the first result.

    A result is never replaced by a repetition under the same code, only an error is. Lines of other arm settings,
    budgets or seeds are left out.
    """
    wanted = set(claim.jobs())
    keys = {arm: arm_key(claim, arm) for arm in claim.arms}
    chosen: dict[tuple[str, int], Line] = {}
    for line in lines:
        job = (line["arm"], line["seed"])
        if job not in wanted or line["key"].partition(":")[0] != keys[line["arm"]]:
            continue
        before = chosen.get(job)
        if before is None or before["key"] != line["key"] or "error" in before:
            chosen[job] = line
    return chosen


def verdict(claim: Claim, lines: Iterable[Line]) -> Verdict:
    """The verdict that raw lines give."""
    chosen = select(claim, lines)
    table: dict[str, dict[int, Any]] = {arm: {} for arm in claim.arms}
    for (arm, seed), line in chosen.items():
        if "metrics" in line:
            table[arm][seed] = line["metrics"]
    return judge(claim, table, {job: line["error"] for job, line in chosen.items() if "error" in line})


def entry(claim: Claim, lines: Iterable[Line]) -> dict[str, Any]:
    """What verdicts.json keeps of a claim: a pure function of the claim and its raw lines."""
    lines = list(lines)
    chosen = {id(line) for line in select(claim, lines).values()}
    used = [line for line in lines if id(line) in chosen]  # in the order in which they were recorded
    result = verdict(claim, lines)
    return {
        "verdict": result.name,
        "reason": result.reason,
        "commit": used[-1]["commit"] if used else None,
        "date": max((line["date"] for line in used), default=None),
        "seeds": claim.seeds,
        "expectation_changed": any(line["expect"] != expect_key(claim) for line in used),
        "expectations": [
            {
                "text": item.text,
                "control": item.control,
                "holds": item.holds,
                "weakest": item.weakest.text,
                "mean": _round(item.weakest.mean),
                "low": _round(item.weakest.low),
                "worst": _round(item.weakest.worst),
                "worst_seed": item.weakest.worst_seed,
            }
            for item in result.checks
        ],
    }


def recompute_all(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """verdicts.json as the raw lines give it, for every claim that has lines; CI compares it with the file."""
    place = find_place(root)
    return {
        slug: entry(load_claim(place.claim(slug)), read_lines(place.lines(slug))[0])
        for slug in place.slugs()
        if place.lines(slug).exists()
    }


def recorded_verdicts(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """verdicts.json as it stands; empty when nothing is recorded."""
    path = find_place(root).verdicts
    return json.loads(path.read_text()) if path.exists() else {}


def stale_lines(slug: str, root: Path | None = None) -> int:
    """How many of the lines that count were recorded by other code than today's."""
    place = find_place(root)
    claim = load_claim(place.claim(slug))
    return _stale(claim, place.claim(slug), select(claim, read_lines(place.lines(slug))[0]).values())


def _stale(claim: Claim, path: Path, used: Iterable[Line]) -> int:
    keys = {arm: code_key(claim, path, arm) for arm in claim.arms}
    return sum(line["key"].partition(":")[2] != keys[line["arm"]] for line in used)


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


# Running


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
        with _appending(place.lines(slug)) as append:
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
        stale=_stale(claim, path, used.values()),
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

"""Where claims and their results live, and what raw lines say.

    claims/SLUG.py                  CLAIM = Claim(...), committed before the first line is recorded
    claims/results/SLUG.jsonl       one JSON line per (arm, seed), appended and flushed as it finishes, never deleted
    claims/results/verdicts.json    recomputable from the two above (`recompute_all`)

A line's `key` is three hashes, "ARM:CLAIM:BEHAVIOR". ARM covers the arm's settings and the budget: a line with another
one belongs to another experiment and is not used. CLAIM covers the code of the claim file, BEHAVIOR the golden numbers
of the methods that the arm trains: a line with others is stale. It still counts, until the claim is run again; a change
of polopt that leaves those numbers as they are makes no line stale. Lines from before this rule have two hashes, of
which the second covered the text of all modules: they count like any other, and whether they are stale is unknown. The
`expect` hash and the `commit` of a line say what was expected when it was recorded, and its `revision`, when it is not
the first, in which registration of the claim.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import linecache
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt import registry
from polopt.claims.claim import Claim
from polopt.claims.judge import Verdict, judge
from polopt.claims.keys import PACKAGE, arm_key, expect_key, line_key
from polopt.config import peers
from polopt.core import files, locks
from polopt.core.errors import UsageError, nearest
from polopt.evaluation.figures import Figure

Line = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The folder of the claims, and where their results are kept."""

    claims: Path
    results: Path

    def claim(self, slug: str) -> Path:
        return self.claims / f"{slug}.py"

    def lines(self, slug: str) -> Path:
        return self.results / f"{slug}.jsonl"

    def work(self, slug: str) -> Path:
        """Of the runs that are not recorded yet."""
        return self.results / ".work" / slug

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


def load_figures(path: Path) -> Callable[[dict[str, list[Any]]], Mapping[str, Figure]] | None:
    """`figures` of a claim file: what is to be seen of the results, from the metrics of each arm by seed; or None."""
    load_claim(path)
    return getattr(sys.modules[_module_name(path)], "figures", None)


@functools.cache
def _load_claim(path: Path, source: bytes) -> Claim:
    name = _module_name(path)
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


def _module_name(path: Path) -> str:
    return f"polopt_claim_{path.stem.replace('-', '_')}"


def _no_claim(path: Path) -> Claim:
    known = sorted(item.stem for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
    raise UsageError(f"there is no claim for '{path.stem}'{_why(path.stem, known)}")


def _why(slug: str, known: list[str]) -> str:
    """Why there is none, or the nearest name that has one, as the end of a sentence."""
    rows = [row for row in registry.rows() if slug in (row.slug, *row.entries)]
    if not rows:
        hint = peers.method(slug)
        return f": {hint}" if hint else nearest(slug, known)
    owner = next((row.slug for row in rows if row.slug in known), None)
    if owner is not None:
        return f": it is tried in that of {owner}"
    if rows[0].kind != "method":
        return f": it is a {rows[0].kind}"
    if slug not in registry.locations():
        return ": it is planned, not built yet"
    return ": it is a base of others" if rows[0].base_only else ": none has been stated yet"


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
def appending(path: Path) -> Iterator[Callable[[Line], None]]:
    """Appends lines, each on disk before the next run's result is taken; one writer at a time."""
    files.make_folder(path.parent)
    with files.opened(path, "a+b") as file:
        _lock(file, path)
        start = b"\n" if file.tell() and not _ends_line(file) else b""  # close a torn line, so that it harms no other

        def append(line: Line) -> None:
            nonlocal start
            with files.writing(path):
                file.write(start + json.dumps(line, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            start = b""

        yield append


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _lock(file: Any, path: Path) -> None:
    try:
        free = locks.take(file.fileno())
    except OSError:
        return  # a file system without locks: two runs of one claim at a time are the user's own care
    if not free:
        raise UsageError(f"another process is recording to {path}")


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


def entry(claim: Claim, lines: Iterable[Line], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What verdicts.json keeps of a claim: a function of the claim, its raw lines, and, for a claim that is registered
    again, of what was kept `before`: the verdicts of its earlier registrations stay as they are."""
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
        **({} if claim.revision == 1 else {"revision": claim.revision, "earlier": _earlier(claim, before or {})}),
    }


def _earlier(claim: Claim, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of the registrations before this one, the first one first."""
    last = {"revision": 1} | {name: value for name, value in before.items() if name != "earlier"}
    found = [*before.get("earlier", ()), *([last] if before else ())]
    return [each for each in found if each["revision"] < claim.revision]


def recompute_all(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """verdicts.json as the raw lines give it, for every claim that has lines; CI compares it with the file."""
    place, recorded = find_place(root), recorded_verdicts(root)
    return {
        slug: entry(load_claim(place.claim(slug)), read_lines(place.lines(slug))[0], recorded.get(slug))
        for slug in place.slugs()
        if place.lines(slug).exists()
    }


def recorded_verdicts(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """verdicts.json as it stands; empty when nothing is recorded."""
    path = find_place(root).verdicts
    return json.loads(path.read_text()) if path.exists() else {}


def freshness(claim: Claim, path: Path, used: Iterable[Line]) -> tuple[int, int]:
    """How many of the lines that count are stale, and of how many that is unknown."""
    keys = {arm: line_key(claim, path, arm) for arm in claim.arms}
    old = [line for line in used if line["key"] != keys[line["arm"]]]
    unknown = sum(line["key"].count(":") < 2 for line in old)
    return len(old) - unknown, unknown


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None

"""Claims for readers: the table that `polopt claim` prints, and docs/claims.md."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.claims.claim import Claim
from polopt.claims.judge import Check
from polopt.claims.results import (
    Line,
    entry,
    find_place,
    load_claim,
    read_lines,
    recompute_all,
    select,
    verdict,
)
from polopt.claims.runner import PILOT_SEED, Outcome, run_claim
from polopt.core import files

if TYPE_CHECKING:
    from rich.console import Console


def run_verb(slug: str, *, quick: bool = False, pilot: bool = False, jobs: int | None = None) -> int:
    """`polopt claim`: runs, prints, and returns the exit code: 1 when an arm failed, else 0, whatever the verdict."""
    from rich.console import Console

    console = Console()
    report = functools.partial(print_line, console)
    outcome = run_claim(slug, quick=quick, pilot=pilot, jobs=jobs, report=report)
    print_outcome(outcome, console)
    return 1 if outcome.failed else 0


def print_line(console: Console, line: Line, done: int, todo: int) -> None:
    """Prints one run as it finishes."""
    from rich.markup import escape

    text = line.get("error") or ", ".join(
        f"{name} {value:.4g}" for name, value in line["metrics"].items() if isinstance(value, (int, float))
    )
    style = "red" if "error" in line else "dim"
    head = f"{done}/{todo}  {line['arm']}  seed {line['seed']}  {line['seconds']:.0f} s  "
    console.print(f"{escape(head)}[{style}]{escape(text)}[/{style}]")


def print_outcome(outcome: Outcome, console: Console | None = None) -> None:
    """Prints arms, expectations and verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    claim = outcome.claim
    console.print(f"[bold]{outcome.slug}[/bold]: {escape(claim.statement)}")
    names = _metric_names(claim)
    table = Table("arm", "seeds", *names)
    for arm in claim.arms:
        metrics = [line["metrics"] for line in outcome.lines if line["arm"] == arm and "metrics" in line]
        cells = [_spread([item.get(name) for item in metrics]) for name in names]
        table.add_row(escape(arm), str(len(metrics)), *cells)
    console.print(table)
    for item in outcome.checks:
        console.print(f"{'[green]holds[/green]' if item.holds else '[red]fails[/red]'}  {escape(check_text(item))}")
    for line in outcome.failed:
        console.print(f"[red]failed[/red] {escape(line['arm'])} seed {line['seed']}: {escape(line['error'])}")
    for text in notes(outcome):
        console.print(escape(text))


def notes(outcome: Outcome) -> list[str]:
    """The sentences under the table: the verdict, and what a reader must know beside it."""
    if outcome.mode == "quick":
        return ["Quick run: a fraction of the budget on one seed, not recorded, no verdict."]
    if outcome.mode == "pilot":
        return [f"Pilot on seeds {PILOT_SEED} and up: not recorded, no verdict."]
    found = [f"Verdict: {outcome.verdict}"]
    if outcome.stale:
        found.append(
            f"Stale: {outcome.stale} of {len(outcome.lines)} results were recorded by other code than today's."
        )
    if outcome.changed:
        found.append("The expectation was changed after results had been recorded.")
    if outcome.other:
        found.append(
            f"{outcome.other} earlier lines do not count (other settings, other code, or an error since redone)."
        )
    if outcome.torn:
        found.append(f"{outcome.torn} torn line{'s' if outcome.torn > 1 else ''} skipped.")
    return found


def check_text(item: Check) -> str:
    """One expectation in one line: its weakest part, with mean, lower bound and worst seed."""
    part = item.weakest
    which = f"; weakest: {part.text}" if len(item.parts) > 1 else ""
    return (
        f"{'control: ' if item.control else ''}{item.text}{which} "
        f"(margin {part.mean:.4g}, lower bound {part.low:.4g}, worst seed {part.worst_seed}: {part.worst:.4g})"
    )


def claims_page(root: Path | None = None) -> str:
    """docs/claims.md, from the claims and their raw lines alone."""
    place = find_place(root)
    parts = [
        "# Claims\n\n"
        "Generated from `claims/results/` by `make claims-page`; a test keeps it in date. Each claim is the small "
        "experiment of one paper, written down and committed before its first result. An expectation holds when the "
        "lower end of the one-sided 95 % paired Student-t interval of its per-seed margins is above 0; the worst seed "
        "is shown beside it.\n"
    ]
    slugs = place.slugs()
    loaded = {slug: load_claim(place.claim(slug)) for slug in slugs}
    recorded = {slug: read_lines(place.lines(slug))[0] for slug in slugs}
    parts.append("| method | claim | verdict | seeds |\n|---|---|---|---|")
    for slug, claim in loaded.items():
        parts.append(
            f"| [{slug}](#{slug}) | {_cell(claim.statement)} | {_verdict_text(claim, recorded[slug])} | {claim.seeds} |"
        )
    for slug, claim in loaded.items():
        about = ast.get_docstring(ast.parse(place.claim(slug).read_text(encoding="utf-8"))) or ""
        parts.append(_claim_section(slug, claim, recorded[slug], about))
    return "\n".join(parts).rstrip() + "\n"


def write_claims_page(root: Path | None = None) -> Path:
    """Writes docs/claims.md beside the claims folder, and verdicts.json with it."""
    place = find_place(root)
    files.make_folder(place.results)
    files.replace(place.verdicts, (json.dumps(recompute_all(root), indent=2, sort_keys=True) + "\n").encode())
    page = place.claims.parent / "docs" / "claims.md"
    files.make_folder(page.parent)
    files.replace(page, claims_page(root).encode())
    return page


def _verdict_text(claim: Claim, lines: list[Line]) -> str:
    result = verdict(claim, lines)
    return f"**{result.name}**" if result.name else f"none: {result.reason}"


def _claim_section(slug: str, claim: Claim, lines: list[Line], about: str) -> str:
    """The section of one claim; `about` is the docstring of its file."""
    used = select(claim, lines)
    facts = entry(claim, lines)
    budget = ", ".join(f"{value:,} {unit.replace('_', ' ')}" for unit, value in claim.budget.items())
    seconds = sum(line["seconds"] for line in used.values())
    text = [f"\n## {slug}\n\n{about or claim.statement}\n"]
    text.append(f"Verdict: {_verdict_text(claim, lines)}. {len(claim.arms)} arms, {claim.seeds} seeds, {budget} each.")
    if used:
        text.append(
            f"Expectation of commit `{str(facts['commit'])[:12]}`, recorded {facts['date']}, "
            f"{seconds / 60:.1f} processor minutes in all."
        )
    if facts["expectation_changed"]:
        text.append("**The expectation was changed after results had been recorded.**")
    if facts["expectations"]:
        text.append(
            "\n| expectation | holds | weakest part | margin | lower bound | worst seed |\n|---|---|---|---|---|---|"
        )
    for item in facts["expectations"]:
        kind = "control: " if item["control"] else ""
        worst = f"{_number(item['worst'])} (seed {item['worst_seed']})"
        text.append(
            f"| {kind}{_cell(item['text'])} | {'yes' if item['holds'] else 'no'} | {_cell(item['weakest'])} "
            f"| {_number(item['mean'])} | {_number(item['low'])} | {worst} |"
        )
    names = _metric_names(claim)
    if used:
        text.append(f"\n| arm | {' | '.join(map(_cell, names))} |\n|---|{'---|' * len(names)}")
    for arm in claim.arms if used else ():
        metrics = [line["metrics"] for (name, _), line in used.items() if name == arm and "metrics" in line]
        text.append(f"| `{arm}` | {' | '.join(_spread([item.get(name) for item in metrics]) for name in names)} |")
    return "\n".join(text)


def _metric_names(claim: Claim) -> list[str]:
    return list(dict.fromkeys(item.metric for item in claim.expect))


def _spread(values: Sequence[Any]) -> str:
    """Mean and the smallest and largest value over seeds."""
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if not numbers:
        return "-"
    center = f"{sum(numbers) / len(numbers):.4g}"
    return center if len(numbers) == 1 else f"{center} ({min(numbers):.4g} to {max(numbers):.4g})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")

"""Claims for readers: the table that `polopt claim` prints, and docs/claims.md."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polopt.claims.claim import MINIMUM_SEEDS, PILOT_SEED, Claim
from polopt.claims.judge import Check, Part
from polopt.claims.results import (
    Line,
    entry,
    find_place,
    load_claim,
    read_lines,
    recompute_all,
    recorded_verdicts,
    select,
)
from polopt.claims.runner import Outcome, run_claim
from polopt.core import files
from polopt.evaluation.statistics import expected_bound, seeds_needed

if TYPE_CHECKING:
    from rich.console import Console


def run_verb(slug: str, **how: Any) -> int:
    """`polopt claim`: runs, prints, and returns the exit code: 1 when an arm failed, else 0, whatever the verdict; the
    rest as for `run_claim`."""
    from rich.console import Console

    from polopt.training.job_table import shown

    console = Console()
    report = functools.partial(print_line, console)
    watch = functools.partial(shown, console=console, lines=False)
    outcome = run_claim(slug, report=report, watch=watch, **how)
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
        for part in item.parts if outcome.mode == "pilot" else ():
            console.print(f"       {escape(power_text(part, claim.seeds))}", highlight=False, soft_wrap=True)
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
        found.append(f"{outcome.stale} stale results were run again: the claim's code or a method's numbers changed.")
    if outcome.unknown:
        found.append(f"{outcome.unknown} results of before freshness followed behavior were run again.")
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


def power_text(part: Part, seeds: int) -> str:
    """What a pilot says of one part: the margin of each seed, the bound to expect with `seeds`, how many it needs."""
    values = ", ".join(f"{value:.4g}" for value in part.values)
    if len(part.values) < 2:
        return f"{part.text}: {values} (one value: no bound)"
    needed = seeds_needed(part.values, MINIMUM_SEEDS)
    needs = "no number of seeds would do" if part.mean <= 0 else f"it needs {needed or 'more than 100'} seeds"
    return f"{part.text}: {values}; bound with {seeds} seeds {expected_bound(part.values, seeds):.4g}; {needs}"


def claims_page(root: Path | None = None) -> str:
    """docs/claims.md, from the claims, their raw lines, and the verdicts of earlier registrations."""
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
    lines = {slug: read_lines(place.lines(slug))[0] for slug in slugs}
    kept = recorded_verdicts(root)
    facts = {slug: entry(claim, lines[slug], kept.get(slug)) for slug, claim in loaded.items()}
    parts.append("| method | claim | verdict | seeds |\n|---|---|---|---|")
    for slug, claim in loaded.items():
        parts.append(f"| [{slug}](#{slug}) | {_cell(claim.statement)} | {registrations(facts[slug])} | {claim.seeds} |")
    for slug, claim in loaded.items():
        about = ast.get_docstring(ast.parse(place.claim(slug).read_text(encoding="utf-8"))) or ""
        parts.append(_claim_section(slug, claim, lines[slug], facts[slug], about))
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


def registrations(facts: Mapping[str, Any]) -> str:
    """The verdict, and those of earlier registrations."""
    return f"{_verdict_text(facts)}{_before(facts)}"


def _verdict_text(facts: Mapping[str, Any]) -> str:
    return f"**{facts['verdict']}**" if facts["verdict"] else f"none: {facts['reason']}"


def _before(facts: Mapping[str, Any]) -> str:
    """The verdicts of earlier registrations, in the table."""
    return "".join(f"; registration {each['revision']}: {_verdict_text(each)}" for each in facts.get("earlier", ()))


def _claim_section(slug: str, claim: Claim, lines: list[Line], facts: Mapping[str, Any], about: str) -> str:
    """The section of one claim; `about` is the docstring of its file."""
    used = select(claim, lines)
    budget = ", ".join(f"{value:,} {unit.replace('_', ' ')}" for unit, value in claim.budget.items())
    seconds = sum(line["seconds"] for line in used.values())
    text = [f"\n## {slug}\n\n{about or claim.statement}\n"]
    text.append(f"Verdict: {_verdict_text(facts)}. {len(claim.arms)} arms, {claim.seeds} seeds, {budget} each.")
    if used:
        text.append(
            f"Expectation of commit `{str(facts['commit'])[:12]}`, recorded {facts['date']}, "
            f"{seconds / 60:.1f} processor minutes in all."
        )
    if facts["expectation_changed"]:
        text.append("**The expectation was changed after results had been recorded.**")
    if claim.revision > 1:
        text.append(f"\nRegistered again ({claim.revision}), with seeds from {claim.first_seed} on: {claim.diagnosis}")
    if facts["verdict"]:
        text.append(f"\n![What was found of {slug}](images/claims/{slug}.png)")
    text += _expectations(facts["expectations"])
    names = _metric_names(claim)
    if used:
        text.append(f"\n| arm | {' | '.join(map(_cell, names))} |\n|---|{'---|' * len(names)}")
    for arm in claim.arms if used else ():
        metrics = [line["metrics"] for (name, _), line in used.items() if name == arm and "metrics" in line]
        text.append(f"| `{arm}` | {' | '.join(_spread([item.get(name) for item in metrics]) for name in names)} |")
    for each in facts.get("earlier", ()):
        text.append(
            f"\n### Registration {each['revision']} of {slug}\n\nVerdict: {_verdict_text(each)}. "
            f"{each['seeds']} seeds, expectation of commit `{str(each['commit'])[:12]}`, recorded {each['date']}."
        )
        text += _expectations(each["expectations"])
    return "\n".join(text)


def _expectations(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of what was expected, and what was found."""
    head = "\n| expectation | holds | weakest part | margin | lower bound | worst seed |\n|---|---|---|---|---|---|"
    return [head, *map(_expectation, items)] if items else []


def _expectation(item: Mapping[str, Any]) -> str:
    kind = "control: " if item["control"] else ""
    worst = f"{_number(item['worst'])} (seed {item['worst_seed']})"
    return (
        f"| {kind}{_cell(item['text'])} | {'yes' if item['holds'] else 'no'} | {_cell(item['weakest'])} "
        f"| {_number(item['mean'])} | {_number(item['low'])} | {worst} |"
    )


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

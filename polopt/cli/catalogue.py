"""The texts of `polopt methods` and `polopt show`. Imports no torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from polopt import registry
from polopt.cli.arguments import make_parser
from polopt.cli.describe import Description, about_part, describe
from polopt.config.serialize import Field
from polopt.registry import Row

LEAST = 36  # characters that the last column of a table needs


def methods_verb(argv: list[str]) -> int:
    parser = make_parser("methods", "The catalogue of methods, and what works.")
    parser.add_argument("--family", help=", ".join(registry.FAMILIES))
    parser.add_argument("--status", help="works, partial or planned")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    args = parser.parse_args(argv)
    print(methods_text(args.family, args.status, args.json))
    return 0


def show_verb(argv: list[str]) -> int:
    parser = make_parser("show", "What a method is, its parts, options, presets, limit cases and claim.")
    parser.add_argument("method")
    print(show_text(parser.parse_args(argv).method))
    return 0


def methods_text(family: str | None = None, status: str | None = None, as_json: bool = False) -> str:
    """What `polopt methods` prints: a table, or a JSON list. Raises UsageError for unknown families and statuses."""
    chosen = registry.methods(family, status)
    if as_json:
        return json.dumps([row.as_json() for row in chosen], indent=2, ensure_ascii=False)
    cells = [
        (row.slug, row.status, row.claim or "-", row.family, str(row.year), row.arxiv_id or "-", row.title)
        for row in sorted(chosen, key=lambda row: (registry.FAMILIES.index(row.family), row.base_only))
    ]
    counts = {status: sum(row.status == status for row in chosen) for status in registry.STATUSES}
    total = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    bases = sum(row.base_only for row in chosen)
    table = _table(("method", "status", "claim", "family", "year", "arXiv", "title"), cells)
    return f"{table}\n\n{len(chosen) - bases} methods and {bases} bases or further entries" + (
        f": {total}" * bool(total)
    )


def show_text(name: str) -> str:
    """What `polopt show NAME` prints. Raises UsageError for an unknown name."""
    row = registry.find(name)
    lines = [f"{name}: {row.paper}", *_about_row(name, row), ""]
    if name not in registry.locations():
        what = f"{name} is planned, not built yet" if row.kind == "method" else f"{name} is a {row.kind}"
        if not row.part:
            return "\n".join([*lines, what])
        lines += [*about_part(row).splitlines(), "", f"{what}: its code is polopt/{row.part}"]
    else:
        lines += _about_method(describe(name))
    return "\n".join(part for line in "\n".join(lines).splitlines() for part in _fitted(line))


def _columns() -> int:
    """How wide what is printed may be: as the terminal, or as $COLUMNS says."""
    return max(shutil.get_terminal_size((160, 24)).columns, 40)


def _fitted(line: str) -> list[str]:
    """A line in as many as the terminal asks for, the further ones indented."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, _columns(), subsequent_indent=indent, break_on_hyphens=False) or [""]


def _about_row(name: str, row: Row) -> list[str]:
    pairs = {"family": row.family, "base": row.base, "status": row.status, "claim": row.claim or "no result recorded"}
    others = [entry for entry in row.entries if entry != name]
    if others:
        pairs["see also"] = ", ".join(others)
    lines = [f"  {key:<9} {value}" for key, value in pairs.items()]
    if row.choose:
        wide = min(_columns(), 108)
        lines += textwrap.wrap(row.choose, wide, initial_indent=f"  {'choose':<9} ", subsequent_indent=" " * 12)
    record = registry.verdict(name) if row.claim else {}
    details = [str(record[key]) for key in ("reason", "date") if record.get(key)]
    if record.get("seeds"):
        details.insert(0, f"{record['seeds']} seeds")
    if details:
        lines.append(f"  {'result':<9} " + "; ".join(details))
    for each in record.get("earlier", ()):
        lines.append(f"  {'':<9} registration {each['revision']}: {each['verdict'] or each['reason']}, {each['date']}")
    for each in record.get("expectations", ()):
        lines.append(f"  {'':<9} {'holds' if each.get('holds') else 'fails'}: {each.get('text')}")
    return lines


def _about_method(method: Description) -> Iterable[str]:
    yield method.about
    yield ""
    yield f"trains on {method.trains_on}"
    yield f"--steps counts {method.unit}" + (f" (default {method.steps:,})" if method.steps else "")
    yield "\nparts"
    for package, names in method.parts.items():
        yield f"  {package:<13} {', '.join(names)}"
    yield "\nconfig"
    yield from _fields([each for each in method.fields if not each.choice])
    for choice in dict.fromkeys(each.choice for each in method.fields if each.choice):
        yield f"\nonly with --{choice}"
        yield from _fields([each for each in method.fields if each.choice == choice])
    yield "\npresets"
    for name, changes in method.presets.items():
        yield f"  --preset {name}: " + (", ".join(f"--{key} {value}" for key, value in changes.items()) or "no change")
    if not method.presets:
        yield "  none"
    yield "\nmetrics"
    cells = [(name, f"{meaning}; look for: {look}" if look else meaning) for name, meaning, look in method.metrics]
    yield from ("  " + line for line in _table(("name", "meaning"), cells, cut=False).splitlines())
    yield "\nlimit cases"
    yield from (f"  {limit}" for limit in method.limits)


def _fields(fields: Sequence[Field]) -> list[str]:
    cells = [(f"--{each.name}", each.default or "''", each.unit or "-", each.source, _legal(each)) for each in fields]
    return ["  " + line for line in _table(("option", "default", "unit", "source", ""), cells, cut=False).splitlines()]


def _legal(field: Field) -> str:
    """Which values are legal, and what they mean."""
    kinds = [] if field.range.startswith("one of") else [field.type]
    return "; ".join(part for part in (", ".join([*kinds, *([field.range] * bool(field.range))]), field.help) if part)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], cut: bool = True) -> str:
    """Aligned columns; where a terminal ends, the last one is cut or else continued below. Where nothing is left for
    it, each row has lines of its own."""
    every = [head, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(head) - 1)]
    start = sum(widths) + 2 * len(widths)
    left = max(_columns() - start - 2, 20)
    if not cut and left < LEAST:
        apart = [("  ".join(row[:-1]), f"    {row[-1]}") for row in every]
        return "\n".join(line for pair in apart for line in pair if line.strip())
    short = left if sys.stdout.isatty() else 10**6  # what is read by grep is whole
    lines = []
    for row in every:
        last = [textwrap.shorten(row[-1], short, placeholder="...")] if cut else textwrap.wrap(row[-1], left) or [""]
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), last[0]]).rstrip())
        lines += [" " * start + more for more in last[1:]]
    return "\n".join(lines)

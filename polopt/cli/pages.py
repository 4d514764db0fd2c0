"""What pages say of methods, written from the method files: the README's list, docs/metrics.md, docs/methods/, and
docs/capabilities.md.

`python -m polopt.cli.pages` (`make docs`) writes the first two between the marks that these pages have, the others
whole, and draws the pictures of the claims; a test keeps all in date.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from polopt import registry
from polopt.cli import capabilities
from polopt.cli.describe import about_part, split_metric
from polopt.cli.method_pages import built, method_pages, table
from polopt.core import files
from polopt.report.claims import draw_claim, recorded

BEGIN, END = "<!-- from the method files: make docs -->", "<!-- end -->"


def method_list() -> str:
    """A row for each method file: its entries, the first sentence of its docstring, what it trains on. Studies last."""
    rows = []
    for path, names in groupby(built(), lambda name: registry.location(name).path):
        entries = list(names)
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        on = dict.fromkeys(registry.load(name).trains_on for name in entries)
        rows.append((_code(entries), _first_sentence(doc), "; ".join(on)))
    rows += [
        (_code([row.slug]), _first_sentence(about_part(row)), f"nothing: a {row.kind}") for row in registry.studies()
    ]
    return table(("method", "what it is", "trains on"), rows)


def _first_sentence(docstring: str) -> str:
    return " ".join(re.split(r"\.\s", f"{docstring.split(chr(10) * 2)[0]} ")[0].split())


def metrics_list() -> str:
    """A section for each class that explains numbers of its own: the entries that log just these, and a table."""
    users: dict[Any, list[str]] = {}
    for name in built():
        owners = _owners(registry.load(name))
        for owner in reversed(owners):
            users.setdefault(owner, [])
        users[owners[0]].append(name)
    return "\n\n".join(_section(owner, users) for owner in users)


def _owners(cls: Any) -> list[Any]:
    """The classes from `cls` upward that explain more than the one above."""
    line = [base for base in cls.__mro__ if hasattr(base, "collect")]  # `Method` is the last, and explains nothing
    return [one for one, above in pairwise(line) if one.explained() != above.explained()]


def _section(owner: Any, users: Mapping[Any, Sequence[str]]) -> str:
    others = [*_owners(owner)[1:2], *owner.metrics_of]
    known = {name: text for other in others for name, text in other.explained().items()}
    own = {name: text for name, text in owner.explained().items() if known.get(name) != text}
    rows = [(f"`{name}`", *split_metric(text)) for name, text in own.items()]
    names = [f"`{users[other][0] if users.get(other) else other.__name__}`" for other in others]
    without = f" without {_code(owner.metrics_without)}" if "metrics_without" in vars(owner) else ""
    intro = [f"As {' and '.join(names)}{without}, and"] if names else []
    title = ", ".join(users[owner]) or owner.__name__
    return "\n\n".join([f"## {title}", *intro, table(("name", "meaning", "look for"), rows)])


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def pages(root: Path) -> dict[Path, str]:
    """What the pages under `root` should be."""
    made = {}
    for name, text_of in (("README.md", method_list), ("docs/metrics.md", metrics_list)):
        text = (root / name).read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{name} has no place for what is written from the method files")
        made[root / name] = f"{before}{BEGIN}\n\n{text_of()}\n\n{END}{after}"
    return made | {root / "docs" / "methods" / name: text for name, text in method_pages().items()}


def write(root: Path) -> list[Path]:
    """Writes all pages and pictures under `root`, removes those that nothing stands behind, and returns their paths."""
    written = pages(root) | {root / "docs" / "capabilities.md": capabilities.page()}  # which builds every method
    for path, text in written.items():
        files.make_folder(path.parent)
        files.replace(path, text.encode())
    images = [root / "docs" / "images" / "claims" / f"{slug}.png" for slug in recorded()]
    images = [path for path in images if draw_claim(path.stem, path)]
    for folder, kept in (("methods", set(written)), ("images/claims", set(images))):
        for path in set((root / "docs" / folder).glob("*.*")) - kept:
            files.remove(path)
    return [*written, *images]


if __name__ == "__main__":
    print(*write(Path(__file__).parents[2]), sep="\n")

"""Which methods there are: the rows of the catalogue, and the method files found beside it. Imports no torch."""

from __future__ import annotations

import functools
import importlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polopt.config import peers
from polopt.core.errors import UsageError, nearest

FAMILIES = ("control", "offline", "language", "generative", "multiagent", "theory")
STATUSES = ("works", "partial", "planned")
VERDICTS = ("reproduced", "partly", "not reproduced")
PACKAGE = Path(__file__).parent
RESULTS = "results/verdicts.json"


@dataclass(frozen=True)
class Row:
    """One object of the catalogue, as `polopt methods --json` prints it.

    `status` is "planned" without a method file, "works" once the claim has a verdict (any), "partial" between the two.
    An entry of a row that is an object of its own shares the row's claim. `choose` says of what is built when a user
    would. A study or survey has no method file; `part` is the file of the package that has its code, "" where there is
    none yet.
    """

    slug: str
    title: str
    year: int
    arxiv_id: str
    family: str
    base: str
    kind: str
    base_only: bool
    status: str
    claim: str | None
    entries: tuple[str, ...]
    clashes: bool = False
    choose: str = ""
    part: str = ""

    def as_json(self) -> dict[str, Any]:
        """The keys that `polopt methods --json` promises."""
        data = asdict(self) | {"entries": list(self.entries)}
        del data["clashes"], data["choose"], data["part"]
        return data

    @property
    def label(self) -> str:
        """How the method is named in tables and reports: with title and arXiv id where the slug alone misleads."""
        return f"{self.slug} ({self.paper})" if self.clashes else self.slug

    @property
    def paper(self) -> str:
        return f"{self.title}, {self.year}" + (f", arXiv {self.arxiv_id}" if self.arxiv_id else "")


@dataclass(frozen=True)
class Location:
    """Where a method is: module name, class name, and the file that holds it."""

    module: str
    name: str
    path: Path


def rows() -> list[Row]:
    """Every row of the catalogue with its status; the 116 first, then bases and further entries."""
    found, verdicts, owner = locations(), _verdicts(), _owner()
    result = []
    for row in _catalogue():
        slug = row["slug"]
        entries = tuple(row.get("entries", (slug,)))
        record = verdicts.get(slug) or verdicts.get(owner.get(slug, slug)) or {}
        claim = _verdict_of(record)
        built = slug in found or "part" in row
        result.append(
            Row(
                slug=slug,
                title=row["title"],
                year=row["year"],
                arxiv_id=row["arxiv_id"],
                family=row["family"],
                base=row["base"],
                kind=row.get("kind", "method"),
                base_only=row.get("base_only", False),
                status=("works" if claim else "partial") if built else "planned",
                claim=claim if built else None,
                entries=entries,
                clashes=row.get("clashes", False),
                choose=row.get("choose", ""),
                part=row.get("part", ""),
            )
        )
    return result


def studies() -> list[Row]:
    """The rows that are no methods and have code: it stands in their `part`."""
    return [row for row in rows() if row.part]


def methods(family: str | None = None, status: str | None = None) -> list[Row]:
    """The rows of one family and one status; raises UsageError for unknown names of either."""
    for name, value, known in (("family", family, FAMILIES), ("status", status, STATUSES)):
        if value is not None and value not in known:
            raise UsageError(f"there is no {name} '{value}'{nearest(value, known)}")
    return [row for row in rows() if family in (None, row.family) and status in (None, row.status)]


def find(name: str) -> Row:
    """The row of a slug or entry; raises UsageError with the nearest name."""
    every = rows()
    for row in every:
        if row.slug == name:
            return row
    for row in every:
        if name in row.entries:
            return row
    hint = peers.method(name)
    hint = f": {hint}" if hint else nearest(name.lower().replace("_", "-"), names())
    raise UsageError(f"there is no method '{name}'{hint}")


def names() -> list[str]:
    """Every slug and entry, sorted."""
    return sorted({name for row in _catalogue() for name in (row["slug"], *row.get("entries", ()))} | set(locations()))


def entries() -> list[str]:
    """The methods that are built, sorted: what `polopt train` takes."""
    return sorted(locations())


def location(name: str) -> Location:
    """Where a built method is; raises UsageError for unknown names, planned methods, studies and surveys."""
    if name in locations():
        return locations()[name]
    row = find(name)
    if row.kind != "method":
        raise UsageError(f"{name} is a {row.kind}, not a method that can be trained")
    others = [entry for entry in row.entries if entry in locations()]
    if others:
        raise UsageError(f"{name} is planned, not built yet; of the same paper there is {', '.join(others)}")
    raise UsageError(f"{name} is planned, not built yet")


def load(name: str) -> Any:
    """The class of a method; imports torch. Raises UsageError as `location` does."""
    where = location(name)
    return getattr(importlib.import_module(where.module), where.name)


@functools.cache
def locations() -> dict[str, Location]:
    """Every entry with its place, read from the text of the method files: see `slugs_in`.

    Raises TypeError when two classes have the same slug.
    """
    found: dict[str, Location] = {}
    for path in sorted((PACKAGE / "methods").glob("*/*.py")):
        module = ".".join(("polopt", *path.relative_to(PACKAGE).with_suffix("").parts))
        for entry, name in slugs_in(path.read_text(encoding="utf-8")):
            if entry in found:
                raise TypeError(f"{found[entry].path} and {path} both have the slug '{entry}'")
            found[entry] = Location(module, name, path)
    return found


def slugs_in(source: str) -> list[tuple[str, str]]:
    """The (slug, class name) pairs of the entries in a method file: classes that say a slug, and no `entry = False`."""
    pattern = (
        r'^(?P<top>\w+) *(?P<name>\w*)|^    slug(?:: [^=]+)? = ["\'](?P<slug>[\w-]+)["\']'
        r"|^    (?P<no>entry)(?:: [^=]+)? = False\b"
    )
    slugs: dict[str, str] = {}
    helpers, name = set(), ""
    for match in re.finditer(pattern, source, re.MULTILINE):
        if match["top"]:
            name = match["name"] if match["top"] == "class" else ""
        elif name and match["no"]:
            helpers.add(name)
        elif name:
            slugs[name] = match["slug"]
    return [(slug, name) for name, slug in slugs.items() if name not in helpers]


def verdict(name: str) -> dict[str, Any]:
    """What is recorded of the claim of a method, or of the row whose entry it is; {} when nothing is."""
    verdicts = _verdicts()
    return verdicts.get(name) or verdicts.get(_owner().get(name, name)) or {}


def _verdict_of(record: dict[str, Any]) -> str | None:
    """The latest verdict; while a claim that is registered again has none, that of the registration before."""
    verdicts = [each.get("verdict") for each in (record, *reversed(record.get("earlier", ())))]
    return next((name for name in verdicts if name in VERDICTS), None)  # "no verdict" is none


def claims_folder() -> Path | None:
    """The claims and their results: inside an installed package, or at the root of the repository."""
    for folder in (PACKAGE / "_claims", PACKAGE.parent / "claims"):
        if folder.is_dir():
            return folder
    return None


def _verdicts() -> dict[str, Any]:
    folder = claims_folder()
    if folder is None or not (folder / RESULTS).is_file():
        return {}
    data: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return data


def _owner() -> dict[str, str]:
    """Entry -> the row that offers it."""
    return {entry: row["slug"] for row in _catalogue() for entry in row.get("entries", ())}


@functools.cache
def _catalogue() -> list[dict[str, Any]]:
    with open(PACKAGE / "catalogue.toml", "rb") as file:
        catalogue: list[dict[str, Any]] = tomllib.load(file)["row"]
    return catalogue

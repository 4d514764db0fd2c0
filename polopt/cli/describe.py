"""What can be said of a method without training it. Imports no torch, unless it is imported already."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from polopt import registry
from polopt.config import Config, apply, fields_of, parse_many
from polopt.config.params import spell
from polopt.config.serialize import Field
from polopt.config.stubs import stubbed
from polopt.registry import Row

PART_PACKAGES = ("methods", "policies", "data", "values", "losses", "regularizers", "models", "networks")


@dataclass(frozen=True)
class Description:
    """A method in plain values: `polopt show` prints it.

    Attributes:
        about: the docstring of its file.
        trains_on: in a few words.
        unit: what `--steps` counts; `steps` is how many of them are the default, None when there is none.
        parts: names that its file imports from each package of parts.
        fields: every field of its config, those of the choices not taken at the end of each part.
        presets: for each preset, the fields that it changes and their values, as on the command line, and the task and
            the budget of its study.
        metrics: each number that it logs: its name, what it means, and what to look for (or "").
        limits: the cases in which it is another method, one sentence each; or the one reason why there is none.
    """

    name: str
    about: str
    trains_on: str
    unit: str
    steps: int | None
    parts: dict[str, tuple[str, ...]]
    fields: tuple[Field, ...]
    presets: dict[str, dict[str, str]]
    metrics: tuple[tuple[str, str, str], ...]
    limits: tuple[str, ...]


def describe(name: str) -> Description:
    """Returns what the file of a built method says; raises UsageError for names that are unknown or planned."""
    registry.location(name)
    with _reading():
        return _describe(name)


def about_part(row: Row) -> str:
    """The docstring of the file in which the code of a study or survey stands."""
    source = (registry.PACKAGE / row.part).read_text(encoding="utf-8")
    return inspect.cleandoc(ast.get_docstring(ast.parse(source)) or "")


def print_help(name: str, run: type[Config], argv: Sequence[str], prog: str) -> NoReturn:
    """Prints the options of a method and of a run, as `--help` does after the choices in `argv`, and exits with 0.

    Raises UsageError for names that are unknown or planned.
    """
    registry.location(name)
    with _reading():
        cls = registry.load(name)
        parse_many({"run": run, "method": cls.Config}, [*argv, "--help"], cls.presets, prog)
    raise AssertionError("--help exits")


@contextmanager
def _reading() -> Iterator[None]:
    """Within it, method files are imported for what they say: with stubs, unless torch is there anyway."""
    if "torch" in sys.modules:
        yield
    else:
        with stubbed():
            yield


def _describe(name: str) -> Description:
    cls, where = registry.load(name), registry.location(name)
    tree = ast.parse(where.path.read_text(encoding="utf-8"))
    usual = cls.Config()
    limits = tuple(_limit(limit) for limit in cls.limits) or (f"none: {cls.no_limit}",)
    return Description(
        name=name,
        about=inspect.cleandoc(ast.get_docstring(tree) or ""),
        trains_on=cls.trains_on,
        unit=cls.unit,
        steps=getattr(cls, "default_steps", None),
        parts=_parts(tree),
        fields=tuple(fields_of(cls.Config)),
        presets={key: _changes(usual, apply(cls.Config, over)) | _study(cls, key) for key, over in cls.presets.items()},
        metrics=tuple((name, *split_metric(text)) for name, text in cls.explained().items()),
        limits=limits,
    )


def _study(cls: Any, preset: str) -> dict[str, str]:
    study = cls.studies.get(preset)
    if study is None:
        return {}
    options = {f"task.{key.replace('_', '-')}": spell(value) for key, value in study.task_options.items()}
    return {"task": study.task} | options | ({"steps": str(study.steps)} if study.steps else {})


def split_metric(text: str) -> tuple[str, str]:
    """(what a number means, what to look for) from an entry of `Settings.metrics`."""
    meaning, _, look = text.partition(" | ")
    return meaning, look


def _parts(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    names: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polopt."):
            package = str(node.module).split(".")[1]
            if package in PART_PACKAGES and not str(node.module).endswith("_settings"):
                names.setdefault(package, []).extend(alias.name for alias in node.names)
    return {package: tuple(sorted(names[package])) for package in PART_PACKAGES if package in names}


def _changes(before: Config, after: Config, prefix: str = "") -> dict[str, str]:
    """The options that lead from one config to another of the same class."""
    changes: dict[str, str] = {}
    for item in dataclasses.fields(after):
        old, new, name = getattr(before, item.name), getattr(after, item.name), prefix + item.name.replace("_", "-")
        if old == new:
            continue
        if not isinstance(new, Config) or spell(new) in type(new).named:
            changes[name] = spell(new)
            continue
        if type(old) is not type(new):
            changes[name], old = spell(new), type(new)()
        changes |= _changes(old, new, f"{name}.")
    return changes


def _limit(limit: Any) -> str:
    at = " ".join(f"--{key.replace('_', '-')} {spell(value)}" for key, value in limit.at.items())
    base = " ".join(f"--{key.replace('_', '-')} {spell(value)}" for key, value in limit.base_at.items())
    return f"{at or 'as it is'}: {limit.base}{f' with {base}' if base else ''}, because {limit.because}"

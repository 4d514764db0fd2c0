"""Who takes part in a comparison: names, seeds and the settings of each. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polopt import registry
from polopt.core.errors import UsageError, nearest

Settings = Mapping[str, Any]
RESERVED = {
    "seed": "a comparison trains the seeds that --seeds names: it takes no --seed",
    "name": "names of a comparison are given as NAME=METHOD: it takes no --name",
    "task": "a comparison has one --task for all",
    "task_options": "a comparison has one task, with its options, for all",
    "out": "a comparison has one --out for all",
}


@dataclass(frozen=True)
class Member:
    """One of the settings that are compared: its name, which is that of the method unless it has one of its own."""

    name: str
    method: str


def members(methods: Sequence[str]) -> list[Member]:
    """From METHOD or NAME=METHOD, each. Raises UsageError for what does not exist, or could not be told apart."""
    if isinstance(methods, str) or not methods:
        raise UsageError("a comparison needs a list of one method or more")
    found: dict[str, Member] = {}
    for spec in methods:
        name, named, method = spec.partition("=")
        member = Member(name, method if named else name)
        registry.location(member.method)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UsageError(f"'{spec}': a name has letters, digits, - and _")
        if name != member.method and name in registry.locations():
            raise UsageError(f"'{spec}': {name} is a method itself: choose another name")
        if _key(name) in found:
            raise UsageError(f"{name} is given twice: settings of one method need names, as in fast={member.method}")
        found[_key(name)] = member
    return list(found.values())


def seeds_of(seeds: int | str | Sequence[int]) -> list[int]:
    """5 is 0, 1, 2, 3, 4; "0,1,7", or a list, are those. Raises UsageError for none, or one that is given twice."""
    try:
        if isinstance(seeds, str):
            found = [int(word) for word in seeds.removesuffix(",").split(",")]
            found = found if "," in seeds else list(range(found[0]))
        else:
            found = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    except (TypeError, ValueError):
        raise UsageError(f"--seeds {seeds}: say how many, or which, as in 0,1,7") from None
    twice = next((seed for seed in found if found.count(seed) > 1), None)
    if twice is not None:
        raise UsageError(f"--seeds {seeds}: seed {twice} is given twice")
    if not found or min(found) < 0:
        raise UsageError(f"--seeds {seeds}: at least one, and none is negative")
    return found


def meant(head: str, among: Sequence[Member]) -> list[Member]:
    """Those whose settings begin with `head`: the one of that name, or else all of that method."""
    named = [member for member in among if _key(member.name) == _key(head)]
    return named or [member for member in among if _key(member.method) == _key(head)]


def settings_of(member: Member, among: Sequence[Member], common: Settings, each: Mapping[str, Settings]) -> Settings:
    """The settings of one: what is given for all, in their place what is for its method, in their place its own.

    `each` has them by name or by method. "argv" are words of the command line. Raises UsageError for a name that
    nobody has and for settings that a comparison makes itself.
    """
    for head in each:
        if not meant(head, among):
            names = {word for one in among for word in (one.name, one.method)}
            raise UsageError(f"nobody in this comparison is called '{head}'{nearest(head, names)}")
    own = [head for head in each if member in meant(head, among)]
    own.sort(key=lambda head: _key(head) == _key(member.name))
    settings: dict[str, Any] = {}
    for level in (common, *(each[head] for head in own)):
        over = {key if key in ("argv", "task_options") else _path(key): value for key, value in level.items()}
        if "argv" in over and "argv" in settings:
            over["argv"] = _over(settings["argv"], over["argv"])
        _refuse(over.keys() - {"task_options"} if level is common else over.keys(), over.get("argv", ()))
        settings |= over
    return _with_init(settings)


def _with_init(settings: Settings) -> Settings:
    """`--init RUN` of the command line is no option of the run or the method: it is a setting of its own."""
    words = _options(settings.get("argv", ()))
    given = [each for each in words if _option(each[0]) == "init"]
    if not given:
        return settings
    value = [*given[0][0].partition("=")[2:], *given[0][1:]] if "=" in given[0][0] else given[0][1:]
    if len(given) > 1 or len(value) != 1:
        raise UsageError("--init needs one run folder")
    rest = [word for each in words if each not in given for word in each]
    return {**settings, "argv": rest, "init": value[0]}


def _refuse(names: Iterable[str], argv: Sequence[str]) -> None:
    """Raises UsageError for what a comparison sets itself."""
    typed = {_path(word[2:].partition("=")[0]) for word in argv if word.startswith("--")}
    for name, why in RESERVED.items():
        if name in typed.union(names):
            raise UsageError(why)


def _over(general: Sequence[str], special: Sequence[str]) -> list[str]:
    """Words of the command line: the general ones but for the options that the special ones give too."""
    own = {_option(words[0]) for words in _options(special)}
    return [word for words in _options(general) if _option(words[0]) not in own for word in words] + list(special)


def _options(argv: Sequence[str]) -> list[list[str]]:
    """Each option with its values."""
    found: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not found:
            found.append([])
        found[-1].append(word)
    return found


def _option(word: str) -> str:
    """What an option sets: --no-x is one for x."""
    return ".".join(part.removeprefix("no_") for part in _path(word[2:].partition("=")[0]).split("."))


def _path(name: str) -> str:
    return name.replace("-", "_")


def _key(name: str) -> str:
    return name.replace("-", "_")

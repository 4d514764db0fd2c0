"""From a command line, or from keyword arguments, to configs: one set of rules and messages for both.

A preset comes first, then choices (a member of a union or a named value: it replaces the whole part), then single
options. The order in which they are given does not matter. Every mistake raises UsageError with one sentence.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from polopt.config import peers
from polopt.config.help import help_text
from polopt.config.params import (
    MISFIT,
    Config,
    InvalidValue,
    describe_hint,
    fit,
    hints_of,
    is_callable,
    is_config,
    kind,
    members,
    spell,
    without_of,
)
from polopt.config.serialize import fields_of, import_callable
from polopt.config.words import Words, is_number, literal, read_words, strictness
from polopt.core.errors import UsageError, nearest

Presets = Mapping[str, Mapping[str, Any]]
Source = type[Config] | Config
UNSET: Any = object()
SWITCH = {"", "true"}  # values that switch on what is either there or not


def parse(
    cls: Source,
    argv: Sequence[str],
    default: Config | None = None,
    presets: Presets | None = None,
    prog: str = "polopt",
) -> tuple[Any, str | None]:
    """Returns (config, name of the preset used or None) from `--policy flow --policy.steps 7 --preset mujoco ...`.

    `--help` prints the options and raises SystemExit(0). Raises UsageError for everything that is wrong.
    """
    configs, preset = parse_many({"": default or cls}, argv, presets, prog)
    return configs[""], preset


def parse_many(
    groups: Mapping[str, Source], argv: Sequence[str], presets: Presets | None = None, prog: str = "polopt"
) -> tuple[dict[str, Any], str | None]:
    """As `parse`, for several configs that share one command line: {"run": RunConfig, "method": SAC.Config}.

    Raises TypeError when two of them have a field of the same name.
    """
    reader = _Reader(groups, presets or {}, cli=True)
    wanted = [arg for arg in argv if arg not in ("-h", "--help")]
    if len(wanted) == len(argv):
        return reader.read(_tree_of_argv(argv))
    try:
        configs, _ = reader.read(_tree_of_argv(wanted))
    except UsageError:  # help is for those who do not know yet what to type
        configs = reader.defaults
    print(help_text(configs, presets, prog))
    raise SystemExit(0)


def apply(cls: Source, overrides: Mapping[str, Any], presets: Presets | None = None) -> Any:
    """Returns the config with overrides: `{"policy": "flow", "policy.steps": 7, "network": {"sizes": [64]}}`.

    Keys are names as on the command line (dots for parts, dashes or underscores); values are Python values, nested
    dicts, configs, or the name of a choice. `"preset"` names a preset. Raises UsageError as `parse` does.
    """
    return apply_many({"": cls}, overrides, presets)[0][""]


def apply_many(
    groups: Mapping[str, Source], overrides: Mapping[str, Any], presets: Presets | None = None
) -> tuple[dict[str, Any], str | None]:
    """As `apply`, for several configs; returns (configs by group, name of the preset used or None)."""
    return _Reader(groups, presets or {}, cli=False).read(_tree_of_dict(overrides))


@dataclass
class _Node:
    """What was given for one name, and for the names below it."""

    typed: str = ""
    value: Any = UNSET
    children: dict[str, _Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], value: Any, typed: str) -> None:
        node = self
        for key in path:
            node = node.children.setdefault(key, _Node(typed))
        if node.value is not UNSET:
            raise UsageError(f"{typed} is given twice")
        node.value, node.typed = value, typed


def _path(name: str) -> list[str]:
    return name.replace("-", "_").split(".")


def _tree_of_argv(argv: Sequence[str]) -> _Node:
    root, tokens = _Node(), Words()
    given: list[tuple[str, Words]] = []
    for arg in argv:
        if arg.startswith("--") and len(arg) > 2:
            name, equals, value = arg.partition("=")
            given.append((name, tokens := Words([value] if equals else [])))
        elif arg.startswith("-") and not is_number(arg):
            raise UsageError(f"unknown option {arg}: options start with two dashes")
        elif not given:
            raise UsageError(f"unexpected '{arg}': options start with two dashes")
        else:
            tokens.append(arg)
    for name, tokens in given:
        root.add(_path(name[2:]), tokens, name)
    return root


def _tree_of_dict(overrides: Mapping[str, Any], prefix: str = "") -> _Node:
    root = _Node()
    for name, value in overrides.items():
        root.add(_path(name), value, prefix + name.replace("-", "_"))
    return root


class _Reader:
    """Turns a tree of what was given into configs."""

    def __init__(self, groups: Mapping[str, Source], presets: Presets, *, cli: bool) -> None:
        self.defaults = {group: cls() if isinstance(cls, type) else cls for group, cls in groups.items()}
        self.presets, self.cli = presets, cli
        self.owner: dict[str, str] = {}
        for group, config in self.defaults.items():
            for item in fields(config):
                if item.name in self.owner:
                    raise TypeError(f"{self.owner[item.name]} and {group} both have a field '{item.name}'")
                self.owner[item.name] = group

    def read(self, tree: _Node) -> tuple[dict[str, Any], str | None]:
        configs, preset = dict(self.defaults), None
        if "preset" in tree.children and "preset" not in self.owner:
            preset, overrides = self.preset(tree.children.pop("preset"), self.presets)
            configs = _Reader(configs, {}, cli=False).read(_tree_of_dict(overrides))[0]
        for group, config in configs.items():
            mine = {key: node for key, node in tree.children.items() if self.group(key) == group}
            configs[group] = self.part(config, mine, ())
        for key, node in tree.children.items():
            if self.group(key) is None:
                raise self.unknown(node.typed, key, (), list(self.owner))
        return configs, preset

    def group(self, key: str) -> str | None:
        return self.owner.get(key, self.owner.get(key.removeprefix("no_")) if self.cli else None)

    def spell(self, path: Sequence[str]) -> str:
        return "--" + ".".join(path).replace("_", "-") if self.cli else ".".join(path)

    def preset(self, node: _Node, presets: Presets) -> tuple[str, Mapping[str, Any]]:
        name = " ".join(node.value) if isinstance(node.value, Words) else str(node.value)
        if not presets:
            raise UsageError(f"{node.typed} {name}: there are no presets here")
        if name not in presets:
            raise UsageError(f"there is no preset '{name}'{nearest(name, presets)}")
        return name, presets[name]

    def part(
        self,
        config: Config,
        given: Mapping[str, _Node],
        path: tuple[str, ...],
        others: Sequence[Any] = (),
        without: Sequence[str] = (),
    ) -> Config:
        """The config with what was given for its fields; `others` are the classes that could stand in its place."""
        hints, given = hints_of(type(config)), dict(given)
        items = {item.name: item for item in fields(config) if item.name not in without}
        names = list(items)
        if path and "preset" in given and "preset" not in names:
            _, overrides = self.preset(given.pop("preset"), type(config).presets)
            config = _Reader({"": config}, {}, cli=False).read(_tree_of_dict(overrides))[0][""]
        changes: dict[str, Any] = {}
        for key, node in given.items():
            here = (*path, key)
            positive = key.removeprefix("no_")
            if self.cli and key not in names and positive in names and bool in members(hints[positive]):
                if node.value != [] or node.children:
                    raise UsageError(f"{node.typed} takes no value")
                if positive in given:
                    raise UsageError(f"{node.typed} contradicts {given[positive].typed}")
                changes[positive] = False
            elif key in without:
                raise UsageError(f"{_first(node)} does nothing here{self.instead(config, key)}")
            elif key not in names:
                owners = [kind(cls) for cls in others if any(item.name == key for item in fields(cls))]
                if owners:
                    raise self.belongs(node.typed, path, owners, kind(type(config)))
                raise self.unknown(_first(node), key, path, names)
            else:
                changes[key] = self.field(getattr(config, key), hints[key], node, here, without_of(items[key]))
        try:
            return dataclasses.replace(config, **changes)
        except InvalidValue as error:
            raise error.renamed(self.spell((*path, error.name))) from None

    def field(self, value: Any, hint: Any, node: _Node, path: tuple[str, ...], without: Sequence[str] = ()) -> Any:
        """The value of one field: first the choice or value given for it, then what was given for its parts."""
        options = [option for option in members(hint) if is_config(option)]
        children = dict(node.children)
        if isinstance(node.value, Mapping) and options:
            below = _tree_of_dict(node.value, f"{self.spell(path)}.").children
            if "kind" in below and not any(item.name == "kind" for item in fields(options[0])):
                value = self.convert(below.pop("kind").value, hint, path)
            for key in below.keys() & children.keys():
                raise UsageError(f"{children[key].typed} is given twice")
            children |= below
        elif node.value is not UNSET:
            value = self.tokens(node.value, hint, path) if self.cli else self.convert(node.value, hint, path)
        if not children:
            return value
        if isinstance(value, Config):
            others = [option for option in options if option is not type(value)]
            return self.part(value, children, path, others, without)
        if isinstance(value, dict):
            return value | {key: self.plain(child, (*path, key)) for key, child in children.items()}
        first, child = next(iter(children.items()))
        typed = _first(child)
        if not options:
            raise UsageError(f"unknown option {typed}: {self.spell(path)} has no parts")
        owners = [kind(option) for option in options if any(item.name == first for item in fields(option))]
        if owners:
            raise self.belongs(typed, path, owners, spell(value))
        raise self.unknown(typed, first, path, [item.name for option in options for item in fields(option)])

    def plain(self, node: _Node, path: tuple[str, ...]) -> Any:
        if node.children:
            raise UsageError(f"{_first(node)} goes too deep: {self.spell(path)} has no parts")
        return literal(" ".join(node.value)) if isinstance(node.value, Words) else node.value

    def tokens(self, tokens: Words, hint: Any, path: tuple[str, ...]) -> Any:
        """The words of the command line as the type of the field."""
        options, text = members(hint), " ".join(tokens)
        if type(None) in options and text.lower() == "none":
            return None
        if any(is_config(option) for option in options):
            return self.choice(text, hint, path)
        for option in sorted(options, key=strictness):
            value = read_words(tokens, option)
            if value is not MISFIT:
                return value
        if not tokens:
            raise UsageError(f"{self.spell(path)} needs a value: {describe_hint(hint)}")
        raise InvalidValue(self.spell(path), f"must be {describe_hint(hint)}, not '{text}'")

    def convert(self, value: Any, hint: Any, path: tuple[str, ...]) -> Any:
        """A Python value as the type of the field."""
        configs = [option for option in members(hint) if is_config(option)]
        if isinstance(value, type) and value in configs:
            return value()
        fitted = fit(value, hint)
        if fitted is not MISFIT:
            return fitted
        if isinstance(value, str):
            if configs:
                return self.choice(value, hint, path)
            if any(is_callable(option) for option in members(hint)):
                return import_callable(value)
        made = _from_value(configs, value)
        if made is not None:
            return made
        raise InvalidValue(self.spell(path), f"must be {describe_hint(hint)}, not {value!r}")

    def choice(self, name: str, hint: Any, path: tuple[str, ...]) -> Any:
        """The part that a name stands for: a member of the union, a named value, or "module:function"."""
        configs = [option for option in members(hint) if is_config(option)]
        options = {key: value for option in configs for key, value in option.named.items()}
        options |= {kind(option): option for option in configs}
        if name in options:
            return options[name]() if isinstance(options[name], type) else options[name]
        for option in members(hint):  # such as `float | Linear`
            if not is_config(option) and (value := read_words(Words([name]), option)) is not MISFIT:
                return value
        if ":" in name and (made := _from_value(configs, import_callable(name))) is not None:
            return made
        spelled = self.spell(path)
        if len(options) == 1 and type(None) in members(hint) and name.replace("-", "") in SWITCH | _plain(options):
            return configs[0]()  # --policy.lora, --policy.lora true
        if len(options) == 1 and type(None) not in members(hint):
            some = self.spell((*path, fields(configs[0])[0].name)) if fields(configs[0]) else spelled
            raise UsageError(f"{spelled} takes no value of its own: set its parts, such as {some}")
        names = sorted(options) + ["none"] * (type(None) in members(hint))
        if not name:
            raise UsageError(f"{spelled} needs a value: one of {', '.join(names)}")
        close = difflib.get_close_matches(name, names, n=1)
        raise InvalidValue(
            spelled,
            f"must be one of {', '.join(names)}, not '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
        )

    def instead(self, config: Config, key: str) -> str:
        """Where the setting is made that a part lacks: once for all, or in a part that this one is a kind of."""
        if key in self.owner:
            return f": there is one {self.spell((key,))} for all"
        for default in self.defaults.values():
            for item in fields(default):
                other = getattr(default, item.name)
                akin = isinstance(other, Config) and isinstance(config, type(other)) and hasattr(other, key)
                if akin and key not in without_of(item):
                    return f": there is only {self.spell((item.name, key))}"
        return ""

    def belongs(self, typed: str, path: tuple[str, ...], owners: Sequence[str], now: str) -> UsageError:
        join = " " if self.cli else "="
        choices = " or ".join(f"{self.spell(path)}{join}{owner}" for owner in owners)
        return UsageError(f"{typed} belongs to {choices}, but {self.spell(path)} is {now} here")

    def unknown(self, typed: str, key: str, path: tuple[str, ...], siblings: Sequence[str]) -> UsageError:
        """An option that nothing has: the nearest right name is the same one level deeper, a sibling, or any other."""
        everywhere = [
            name if self.cli else name.replace("-", "_")
            for config in self.defaults.values()
            for name in dict.fromkeys(each.name for each in fields_of(config))
        ]
        dashes = "--" if self.cli else ""
        if not path and (ours := peers.option(key, everywhere, dashes=self.cli)):
            return UsageError(f"unknown option {typed}: it is '{dashes}{ours}' here")
        bare = typed.removeprefix("--")
        word = "." + (key.replace("_", "-") if self.cli else key)
        root = self.spell((*path, "")) if path else dashes
        deeper = [name for name in everywhere if (dashes + name).startswith(root) and name.endswith(word)]
        close = difflib.get_close_matches(key, siblings, n=1)
        if len(deeper) == 1:
            hint = f"; did you mean '{dashes}{deeper[0]}'?"
        elif close:
            rest = bare.split(".")[len(path) + 1 :]
            hint = f"; did you mean '{'.'.join([self.spell((*path, close[0])), *rest])}'?"
        else:
            hint = nearest(dashes + bare, [dashes + name for name in everywhere])
        return UsageError(f"unknown option {typed}{hint}")


def _plain(names: Mapping[str, Any]) -> set[str]:
    """The names without their dashes, which some leave out."""
    return {name.replace("-", "") for name in names}


def _first(node: _Node) -> str:
    """What was typed for this name, or for the first one below it."""
    while node.value is UNSET and node.children:
        node = next(iter(node.children.values()))
    return node.typed


def _from_value(configs: Sequence[Any], value: Any) -> Config | None:
    return next((made for option in configs if (made := option.from_value(value)) is not None), None)

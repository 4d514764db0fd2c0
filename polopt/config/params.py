"""Configs are small frozen dataclasses; `param` gives each field its default, its source and its legal range."""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import types
import typing
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union

from polopt.core.errors import UsageError


@dataclass(frozen=True)
class Param:
    """What a field says about itself besides its type and default: all of it is shown by `polopt show`."""

    source: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str | None = None
    choices: tuple[Any, ...] | None = None
    help: str | None = None
    without: tuple[str, ...] = ()

    def range(self) -> str:
        """The legal values in words, e.g. "above 0 and at most 1", or "1"; "" when every value of the type is legal."""
        if self.choices is not None:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        if self.low is not None and self.low == self.high:
            return f"{self.low:g}"
        ends = (("above", self.above), ("at least", self.low), ("below", self.below), ("at most", self.high))
        return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)

    def allows(self, value: Any) -> bool:
        """Whether the value (each element of a tuple) is legal; None and values that are no numbers have no range."""
        if isinstance(value, tuple):
            return all(self.allows(each) for each in value)
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        if value != value:  # NaN compares false with everything, so it would pass every test below
            return not self.range()
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )


def param(
    default: Any,
    source: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    unit: str | None = None,
    choices: tuple[Any, ...] | None = None,
    help: str | None = None,
    without: tuple[str, ...] = (),
) -> Any:
    """Returns a dataclass field with a default and where it comes from ("table 1", "official code", "assumed").

    `low` and `high` belong to the legal range, `above` and `below` do not; on a tuple they hold for each element.
    `without` names fields of a part that whoever holds the part decides: they are no options there, and are not written
    down, and a config in which one of them is changed is refused.
    """
    if not source:
        raise TypeError("a param needs a source: where does its default come from?")
    metadata = {"param": Param(source, low, high, above, below, unit, choices, help, without)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def param_of(item: dataclasses.Field[Any]) -> Param | None:
    """The `Param` of a dataclass field, None where the field was declared without `param`."""
    return item.metadata.get("param")


def without_of(item: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The fields of the part in this field that are decided by who holds it."""
    info = param_of(item)
    return info.without if info else ()


class InvalidValue(UsageError):
    """A value outside of a field's type or range; `renamed` says the same with the name that the user typed."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"{name} {problem}")

    def renamed(self, name: str) -> InvalidValue:
        return InvalidValue(name, self.problem)


@dataclass(frozen=True)
class Config:
    """Base of every config: checks types, ranges and choices when it is made, and raises UsageError in one sentence.

    Integers given for a float field become floats and lists given for a tuple field become tuples, so that equal
    configs compare equal after a JSON round trip. A subclass with checks over several fields extends `__post_init__`
    (calling `super().__post_init__()` first) and raises UsageError.
    """

    named: ClassVar[Mapping[str, Config]] = types.MappingProxyType({})
    """Named values of this config: its keys are legal values on the command line."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = types.MappingProxyType({})
    """Named sets of overrides, for `--preset NAME`."""
    meaning: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    """What fields of parts mean here, by dotted name, where that is not what their own help says."""
    inert: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    """Fields that may change without any number changing, and why; a subclass names its own. A guard tries the rest."""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            fitted = fit(value, hints[item.name])
            if fitted is MISFIT:
                raise InvalidValue(item.name, f"must be {describe_hint(hints[item.name])}, not {value!r}")
            if fitted is not value:
                object.__setattr__(self, item.name, fitted)
            info = param_of(item)
            if info is not None and not info.allows(fitted):
                raise InvalidValue(item.name, f"must be {info.range()}, not {spell(fitted)}")
            if isinstance(fitted, Config):
                for name in without_of(item):
                    if getattr(fitted, name, None) != getattr(type(fitted)(), name, None):
                        raise InvalidValue(f"{item.name}.{name}", "does nothing here")

    def refuse(self, *names: str, because: str) -> None:
        """For `__post_init__`: raises UsageError if one of these fields is not at its default, as it has no effect.

        A dotted name is a field of a part, whose default is that of the part's class.
        """
        for path in names:
            *parts, name = path.split(".")
            config: Any = self
            for part in parts:
                config = getattr(config, part)
            usual = [_default(item) for item in fields(config) if item.name == name] if config is not None else []
            if usual and getattr(config, name) != usual[0]:
                raise InvalidValue(path, f"has no effect {because}")

    @classmethod
    def from_value(cls, value: Any) -> Config | None:
        """Makes this config from a value that is not one (a callable for a network ...); None where it cannot."""
        return None


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


MISFIT: Any = object()


_hints: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()


def hints_of(cls: type) -> dict[str, Any]:
    """The resolved annotations of a config class; raises TypeError when one does not resolve at run time."""
    if cls not in _hints:
        try:
            _hints[cls] = typing.get_type_hints(cls)
        except NameError as error:
            raise TypeError(f"annotations of {cls.__qualname__} must resolve at run time: {error}") from None
    return _hints[cls]


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union (None as `type(None)`), or the hint itself as the only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_config(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Config)


def is_callable(hint: Any) -> bool:
    return collections.abc.Callable in (hint, typing.get_origin(hint)) or hint is typing.Callable


def kind(cls: type) -> str:
    """The name of a config class on the command line and in JSON: "squashed-gaussian" for `SquashedGaussian`.

    The config of a method is named after the method: `SAC.Config` is "sac".
    """
    name = cls.__name__
    if name == "Config" and "." in cls.__qualname__:
        name = cls.__qualname__.split(".")[-2]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z][A-Za-z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return words.replace("_", "-").lower()


def spell(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return " ".join(spell(each) for each in value) or "()"
    if isinstance(value, Config):
        names = [name for name, named in type(value).named.items() if named == value]
        return names[0] if names else kind(type(value))
    if isinstance(value, dict):
        return " ".join(f"{key}={spell(each)}" for key, each in value.items()) or "{}"
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def describe_hint(hint: Any) -> str:
    """A type in words: "a number or none", "integers", "one of gaussian, flow"."""
    options = [option for option in members(hint) if option is not type(None)]
    configs = [kind(option) for option in options if is_config(option)]
    words = [_word(option) for option in options if not is_config(option)]
    if configs:
        words.insert(0, configs[0] if len(configs) == 1 else "one of " + ", ".join(configs))
    if type(None) in members(hint):
        words.append("none")
    return " or ".join(words)


def _word(hint: Any) -> str:
    simple = {int: "an integer", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(str(arg) for arg in args) if len(args) == 1 else "one of " + ", ".join(map(str, args))
    if origin is tuple:
        many = {int: "integers", float: "numbers", str: "texts"}.get(args[0], "values") if args else "values"
        return many if len(args) < 2 or args[1] is ... else f"{len(args)} {many}"
    if origin is dict or hint is dict:
        return "key=value pairs"
    if is_callable(hint):
        return "a callable"
    return "a value" if hint is Any else simple.get(hint, getattr(hint, "__name__", str(hint)))


def fit(value: Any, hint: Any) -> Any:
    """The value as the annotated type wants it (int to float, list to tuple), or MISFIT."""
    for option in sorted(members(hint), key=lambda option: option is float):  # an int stays an int where it may
        fitted = _fit(value, option)
        if fitted is not MISFIT:
            return fitted
    return MISFIT


def _fit(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None) or hint is None:
        return None if value is None else MISFIT
    if origin is Literal:
        return value if any(value == arg and type(value) is type(arg) for arg in args) else MISFIT
    if is_config(hint):
        return value if type(value) is hint else MISFIT
    if hint is Path:
        return Path(value) if isinstance(value, (str, Path)) else MISFIT
    if hint is float:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else MISFIT
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else MISFIT
    if origin is tuple or hint is tuple:
        if not isinstance(value, (tuple, list)):
            return MISFIT
        wanted = args if args and args[-1] is not ... else (args[0] if args else Any,) * len(value)
        if len(wanted) != len(value):
            return MISFIT
        fitted = tuple(fit(each, want) for each, want in zip(value, wanted))
        if any(each is MISFIT for each in fitted):
            return MISFIT
        same = isinstance(value, tuple) and all(a is b for a, b in zip(fitted, value))
        return value if same else fitted
    if is_callable(hint):
        return value if callable(value) else MISFIT
    if hint is Any or isinstance(hint, TypeVar):
        return value
    plain = origin or hint
    if isinstance(plain, type):
        return value if isinstance(value, plain) else MISFIT
    return value

"""Configs as JSON and as rows of a table."""

from __future__ import annotations

import importlib
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from polopt.config.params import (
    MISFIT,
    Config,
    InvalidValue,
    describe_hint,
    fit,
    hints_of,
    is_config,
    kind,
    members,
    param_of,
    spell,
    without_of,
)
from polopt.config.peers import code_file
from polopt.core.errors import UsageError, nearest

AGAIN = {"make": "network", "judge": "judge", "tables": "tables", "criterion": "criterion", "ask": "overseer"}
"""By the last word of a field's path: the option that says the code of one's own again that it holds."""


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as JSON values: {"kind": "squashed-gaussian", "log_std_low": -20.0, ...}.

    Infinities and NaN become the texts "inf", "-inf", "nan". A callable becomes {"callable": "module:function"}, or
    {"callable": repr} when no such name leads back to it.
    """
    return _encode(config)


def _encode(value: Any, without: tuple[str, ...] = ()) -> Any:
    if isinstance(value, Config):
        own = {
            item.name: _encode(getattr(value, item.name), without_of(item))
            for item in fields(value)
            if item.name not in without
        }
        return {"kind": kind(type(value))} | own
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_encode(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _encode(each) for key, each in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"callable": callable_name(value) or repr(value)}


def callable_name(value: Any) -> str | None:
    """Returns "module:function" if importing that gives the same object again, else None."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<none>")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        return f"{module}:{name}" if _follow(sys.modules[module], name) is value else None
    except (KeyError, AttributeError):
        return None


def import_callable(name: str) -> Any:
    """Returns what "module:function" names; this runs the module's code. Raises UsageError in one sentence."""
    if module := code_file(name):
        raise UsageError(f"'{name}' names a file: say its module, '{module}', in the folder that holds it")
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UsageError(f"'{name}' does not name a callable: write it as module:function")
    try:
        found = _follow(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UsageError(f"cannot import '{name}': there is no module '{error.name}'") from None
    except AttributeError:
        raise UsageError(f"cannot import '{name}': module '{module}' has no '{function}'") from None
    except Exception as error:
        raise UsageError(f"cannot import '{name}': {type(error).__name__}: {error}") from None
    if not callable(found):
        raise UsageError(f"'{name}' is not callable")
    return found


def _follow(module: types.ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def from_dict(cls: Any, data: Any, *, again: Mapping[str, Any] | None = None, imports: bool = False) -> Any:
    """Returns the config that `to_dict` wrote; `cls` is a config class or a union of them.

    A field that is missing takes its default. Recorded callables are code, and reading a file runs none: they must be
    passed again, by path or its last word (`again={"network.make": function}`), unless `imports` allows to import
    "module:function".
    Raises UsageError for unknown kinds and fields and for values that do not fit.
    """
    return _decode(cls, data, "", again or {}, imports)


def _decode(hint: Any, data: Any, path: str, again: Mapping[str, Any], imports: bool) -> Any:
    if path in again:
        return again[path]
    configs = [option for option in members(hint) if is_config(option)]
    if configs and isinstance(data, Mapping) and "callable" not in data:
        return _decode_config(configs, data, path, again, imports)
    if isinstance(data, Mapping) and data.keys() == {"callable"}:
        last = path.rpartition(".")[2]
        if last in again:
            return again[last]
        name = data["callable"]
        importable = isinstance(name, str) and ":" in name and " " not in name
        if importable and imports:
            return import_callable(name)
        why = "is code, which is not run from a file" if importable else "cannot be written to a file"
        hint = f": say it again with --{AGAIN[last]} {name}" if last in AGAIN and importable else ""
        raise UsageError(f"{path} was {name}, which {why}{hint or ': it must be passed again'}")
    if isinstance(data, str) and float in members(hint) and data in ("inf", "-inf", "nan"):
        return float(data)
    for option in members(hint):
        if typing.get_origin(option) is tuple and isinstance(data, list):
            args = typing.get_args(option)
            wanted = args if args[-1] is not ... else args[:1] * len(data)
            if len(wanted) == len(data):
                items = tuple(
                    _decode(want, each, f"{path}.{i}", again, imports)
                    for i, (want, each) in enumerate(zip(wanted, data))
                )
                if (fitted := fit(items, option)) is not MISFIT:
                    return fitted
    if isinstance(data, Mapping):
        return {key: _decode(Any, each, f"{path}.{key}", again, imports) for key, each in data.items()}
    if configs and fit(data, hint) is MISFIT:
        raise InvalidValue(path or "config", f"must be {describe_hint(hint)}, not {data!r}")
    return data


def _decode_config(
    configs: list[Any], data: Mapping[str, Any], path: str, again: Mapping[str, Any], imports: bool
) -> Config:
    names = {kind(option): option for option in configs}
    name = data.get("kind", next(iter(names)) if len(names) == 1 else None)
    if name not in names:
        where = f"{path}.kind" if path else "kind"
        raise InvalidValue(where, f"'{name}' is unknown{nearest(str(name), names)}")
    cls, prefix = names[name], f"{path}." if path else ""
    hints = hints_of(cls)
    known = {item.name for item in fields(cls)}
    for key in data.keys() - known - {"kind"}:
        raise UsageError(f"{kind(cls)} has no field '{prefix}{key}'{nearest(key, known)}")
    values = {}
    for key in known:
        if key in data or f"{prefix}{key}" in again:
            values[key] = _decode(hints[key], data.get(key), f"{prefix}{key}", again, imports)
    try:
        return typing.cast(Config, cls(**values))
    except InvalidValue as error:
        raise error.renamed(prefix + error.name) from None


@dataclass(frozen=True)
class Field:
    """One field of a config, as `polopt show` prints it. All texts; `default` is spelled as on the command line."""

    name: str
    """Dotted name without dashes in front: "policy.log-std-low"."""
    choice: str
    """The choice that this field belongs to ("policy flow"), "" when it is there by default."""
    type: str
    default: str
    unit: str
    range: str
    source: str
    help: str


def fields_of(cls: type[Config] | Config) -> list[Field]:
    """Returns every field of a config (class or instance), depth first, then those of the choices not taken."""
    config = cls() if isinstance(cls, type) else cls
    return list(_walk(config, "", "", "", ()))


def _walk(
    config: Config,
    prefix: str,
    choice: str,
    source: str,
    above: tuple[type, ...],
    without: tuple[str, ...] = (),
    said: Mapping[str, str] = types.MappingProxyType({}),
) -> Iterator[Field]:
    """`source` is that of the field which holds this config: a value that is not the class's own comes from there.
    `said` is what holders say that fields mean."""
    said = {prefix + name.replace("_", "-"): text for name, text in config.meaning.items()} | dict(said)
    hints, usual = hints_of(type(config)), type(config)()
    above = (*above, type(config))
    for item in fields(config):
        if item.name in without:
            continue
        name, value, info = prefix + item.name.replace("_", "-"), getattr(config, item.name), param_of(item)
        hint, options = hints[item.name], [each for each in members(hints[item.name]) if is_config(each)]
        own = info.source if info else ""
        origin = source if source and value != getattr(usual, item.name) else own
        named = [key for option in options for key in option.named]
        if named:
            none = ["none"] * (type(None) in members(hint))
            words = "one of " + ", ".join([*(kind(option) for option in options if len(options) > 1), *named, *none])
        else:
            words = "see its parts" if options == [hint] else describe_hint(hint)
        yield Field(
            name,
            choice,
            words,
            spell(value),
            (info.unit if info else "") or "",
            info.range() if info else "",
            origin,
            said.get(name) or (info.help if info else "") or "",
        )
        if isinstance(value, Config):
            yield from _walk(value, f"{name}.", choice, origin, above, without_of(item), said)
        for option in options:
            if option is not type(value) and option not in above:
                yield from _walk(option(), f"{name}.", f"{name} {kind(option)}", "", above, without_of(item), said)

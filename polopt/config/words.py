"""Words of a command line as values of a type."""

from __future__ import annotations

import ast
import typing
from pathlib import Path
from typing import Any, Literal

from polopt.config.params import MISFIT, is_callable, members
from polopt.config.serialize import import_callable


class Words(list[str]):
    """The words after an option, still to be read as the type of its field."""


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def strictness(hint: Any) -> int:
    """The order in which the members of a union are tried on a word: the strictest first."""
    order = (bool, int, float)
    return order.index(hint) if hint in order else 9 if hint in (str, Any) else 8 if hint is Path else 5


def read_words(tokens: Words, hint: Any) -> Any:
    """The words as a value of the type `hint`, or MISFIT."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple or hint is tuple:
        words = [word for token in tokens for word in token.split(",")]  # 64 64 or 64,64
        wanted = args if args and args[-1] is not ... else (args[0] if args else str,) * len(words)
        values = [read_words(Words([word]), want) for word, want in zip(words, wanted)]
        return MISFIT if len(wanted) != len(words) or MISFIT in values else tuple(values)
    if origin is dict or hint is dict:
        pairs = [token.partition("=") for token in tokens]
        return {key: literal(value) for key, _, value in pairs} if all(equals for _, equals, _ in pairs) else MISFIT
    if not tokens and bool in members(hint):
        return True
    if len(tokens) != 1:
        return MISFIT
    token = tokens[0]
    if len(members(hint)) > 1:
        tries = (read_words(tokens, each) for each in sorted(members(hint), key=strictness))
        return next((value for value in tries if value is not MISFIT), MISFIT)
    if hint is type(None):
        return None if token.lower() == "none" else MISFIT
    if hint is bool:
        return {"true": True, "false": False}.get(token.lower(), MISFIT)
    if hint is float:
        return float(token) if is_number(token) else MISFIT
    if hint is int:
        return _integer(token)
    if origin is Literal:
        return next((arg for arg in args if str(arg) == token), MISFIT)
    if is_callable(hint):
        return import_callable(token)
    if hint is Any:
        return literal(token)
    return Path(token) if hint is Path else token if hint is str else MISFIT


def _integer(token: str) -> Any:
    try:
        return int(token)
    except ValueError:  # 1e6 is how people write a million steps
        return int(float(token)) if is_number(token) and float(token).is_integer() else MISFIT


def literal(text: str) -> Any:
    """A text as the Python value that it spells, or as it is."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

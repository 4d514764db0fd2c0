"""Answers of mathematics in texts: where they stand, and whether two mean the same. Imports no torch.

`check` runs where it may hang: sympy takes for ever over 9^(9^9) and does not let other threads run meanwhile.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from polopt.core.errors import UsageError
from polopt.core.workers import Workers

BOX = re.compile(r"\\f?boxed\s*(?:\{|([^\s{}$]))")


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds whose braces close, or the sign behind a \\boxed without; None without one."""
    for match in reversed(list(BOX.finditer(text))):
        if match[1]:
            return match[1]
        depth = 1
        for place in range(match.end(), len(text)):
            if text[place] in "{}" and text[place - 1] != "\\":
                depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[match.end() : place].strip()
    return None


def after_hashes(text: str) -> str | None:
    """The line behind the last ####, without commas between digits; None without one."""
    _, hashes, rest = text.rpartition("####")
    answer = (rest.strip().splitlines() or [""])[0].strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", answer) if hashes and answer else None


def check(answer: str, text: str) -> list[Any]:
    """[what the text says that the answer is, whether it means the same as `answer`] by math-verify.

    The text's last box counts, or, without one, the last expression. A text that cannot be read says nothing.
    """
    from math_verify import verify

    text = text.rpartition("</think>")[2]
    boxed = last_boxed(text)
    said = _parsed(text if boxed is None else f"\\boxed{{{boxed}}}")
    same = boxed is not None and _words(boxed) == _words(answer)  # such as names, which are no mathematics
    same = same or bool(said and verify(_gold(answer), said, timeout_seconds=0))
    return [_written(said[0]) if said else "", same]


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> list[Any]:
    return _parsed(f"\\boxed{{{answer.strip().strip('$')}}}")


def _parsed(text: str) -> list[Any]:
    """What math-verify reads in a text: an expression of sympy and its own text; nothing where it reads none."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: the process has one
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, extraction_config=kinds, parsing_timeout=0)


def _written(said: Any) -> str:
    """An expression as one text, in which 0.5 and 1/2 are the same."""
    from sympy import Expr, nsimplify

    return str(nsimplify(said, rational=True) if isinstance(said, Expr) else said)


def _words(text: str) -> str:
    """A text without what LaTeX writes around words."""
    return re.sub(r"\\(?:text|textbf|mathrm|mbox)\b|[\s${}]", "", text)


@functools.cache
def checker() -> Workers:
    """`check` in a process of its own. Raises UsageError where math-verify is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError:
        raise UsageError('match math needs the package math-verify: pip install "polopt[math]"') from None
    return Workers([f"{__name__}:check"])

"""Numbers that a text names, exactly: so that 1,000, 1000.0 and 2000/2 are one answer."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?|\.\d+"
_SIGN = r"(?:(?<![\w.)\]}])-)?"  # behind a digit or a bracket it subtracts: in "9-7" the last number is 7
_NUMBER = re.compile(
    rf"\\[dt]?frac\{{\s*(?P<top>-?\d+)\s*\}}\{{\s*(?P<bottom>\d+)\s*\}}"
    rf"|(?P<sign>{_SIGN})(?P<digits>{_DIGITS})(?:\s*/\s*(?P<over>\d+)(?![\d.,]*\d))?"
)


def numbers_in(text: str) -> list[Fraction]:
    """The numbers of a text in order: decimals, thousands separators, exponents, fractions a/b and \\frac{a}{b}.

    They are exact: 0.333 is not 1/3. A fraction over 0 is two numbers.
    """
    found: list[Fraction] = []
    for match in _NUMBER.finditer(text.replace("−", "-")):
        if match["top"] is not None:
            top, bottom = Fraction(match["top"]), int(match["bottom"])
        else:
            top = Fraction(match["digits"].replace(",", "")) * (-1 if match["sign"] else 1)
            bottom = 1 if match["over"] is None else int(match["over"])
        found += [top / bottom] if bottom else [top, Fraction(0)]
    return found


def last_number(text: str) -> Fraction | None:
    """The last number of a text, None when it names none."""
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None

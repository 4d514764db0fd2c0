"""Which numbers a text names."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.tasks.numbers import last_number, numbers_in


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("so it is 3", [3]),
        ("3.0", [3]),
        ("0.5 or .50", [Fraction(1, 2), Fraction(1, 2)]),
        ("1,000 and 1000.0", [1000, 1000]),
        ("1,2", [1, 2]),
        ("12,3456", [12, 3456]),
        ("1/2, 3 / 4", [Fraction(1, 2), Fraction(3, 4)]),
        (r"\frac{1}{2} and \dfrac{-3}{4}", [Fraction(1, 2), Fraction(-3, 4)]),
        ("-7", [-7]),
        ("\N{MINUS SIGN}7", [-7]),
        ("9-7", [9, 7]),
        ("(9)-7", [9, 7]),
        ("x = -7.", [-7]),
        ("$1,000.00!", [1000]),
        ("2e3 apples", [2000]),
        ("4/0", [4, 0]),
        ("1/3.5", [1, Fraction(7, 2)]),
        ("none", []),
        ("", []),
    ],
)
def test_numbers(text, numbers):
    assert numbers_in(text) == numbers


def test_decimals_are_not_rounded_to_fractions():
    assert last_number("0.333") != last_number("1/3")
    assert last_number("0.5") == last_number("1/2")


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_every_spelling_of_a_number_is_that_number(value, decimals):
    number = Fraction(value, 10**decimals)
    plain, grouped = f"{float(number):.{decimals}f}", f"{float(number):,.{decimals}f}"
    spellings = [plain, grouped, f"so it is {plain}.", f"{value}/{10**decimals}"]
    assert {last_number(spelling) for spelling in spellings} == {number}

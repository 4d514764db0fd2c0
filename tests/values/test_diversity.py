"""Diversity by hand: runs of tokens that are counted, and BLEU with its smoothing and its penalty for short texts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.values.diversity import bleu, distinct, unlike


def test_distinct_by_hand():
    assert distinct(["abcd", "abce"]) == 3 / 4  # abc twice, bcd, bce
    assert distinct(["abcd", "abce"], n=1) == 5 / 8
    assert distinct(["aaaa"]) == 1 / 2
    assert distinct(["ab", "a", ""]) == 0.0
    assert distinct([]) == 0.0


@pytest.mark.parametrize(
    ("text", "references", "value"),
    [
        ("abc", ["abd"], (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)),  # no run of three matches: a tenth of one does
        ("ab", ["abcd"], math.exp(1 - 4 / 2) * 0.1 ** (1 / 3)),  # half as long, and without a run of three
        ("aaa", ["ab", "aac"], (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)),  # a counts twice: as often as in one reference
        ("abcd", ["abcdef", "ab"], 1.0),  # 2 is as near to 4 as 6, and the shorter one counts
        ("abcdx", ["abcd"], (4 / 5 * 3 / 4 * 2 / 3) ** (1 / 3)),
        ("xyz", ["abc"], 0.0),
        ("", ["abc"], 0.0),
    ],
)
def test_bleu_by_hand(text, references, value):
    assert bleu(text, references) == pytest.approx(value, rel=1e-12)


def test_unlike_by_hand():
    one, other = bleu("abc", ["abd", "abcd"]), bleu("abd", ["abc", "abcd"])
    assert unlike(["abc", "abd", "abcd"]) == pytest.approx(1 - (one + other + bleu("abcd", ["abc", "abd"])) / 3)
    assert unlike(["abcd", "abcd"]) == pytest.approx(0.0)
    assert unlike(["abc", "xyz"]) == 1.0
    assert unlike(["abc"]) == unlike([]) == 0.0


@given(st.lists(st.text("ab", max_size=6), max_size=5))
def test_any_texts_lie_between_0_and_1_in_any_order(texts):
    for measure in (distinct, unlike):
        assert 0 <= measure(texts) <= 1
        assert measure(texts) == pytest.approx(measure(texts[::-1]))

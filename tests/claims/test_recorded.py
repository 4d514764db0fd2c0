"""What the repository says of its claims is what its raw results say."""

from __future__ import annotations

import re
from pathlib import Path

from polopt.claims.pages import claims_page
from polopt.claims.results import find_place, load_claim, read_lines, recompute_all, recorded_verdicts

ROOT = Path(__file__).parents[2]


def test_verdicts_follow_from_the_raw_lines() -> None:
    assert recompute_all() == recorded_verdicts()


def test_the_page_is_in_date() -> None:
    assert (ROOT / "docs" / "claims.md").read_text() == claims_page(), "run: make claims-page"


def test_every_line_names_the_commit_of_its_expectation() -> None:
    place = find_place()
    for slug in place.slugs():
        load_claim(place.claim(slug))
        lines, torn = read_lines(place.lines(slug))
        assert not torn
        assert all(re.fullmatch(r"[0-9a-f]{40}", line["commit"]) for line in lines), slug

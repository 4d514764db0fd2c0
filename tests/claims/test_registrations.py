"""Claims that are registered again, and what pilots say before anything is registered."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from polopt import registry
from polopt.claims import pages, results, runner
from polopt.claims.judge import Part
from polopt.cli.catalogue import show_text
from polopt.core.errors import UsageError
from tests.claims.toy import SOURCE, path_of, ran, write

AGAIN = SOURCE.replace(
    'CLAIM = Claim(', 'CLAIM = Claim(revision=2, first_seed=10, diagnosis="the | limit was met by all",'
).replace('Above("score", "good", 5,', 'Above("score", "good", 15,')  # fmt: skip


def test_a_second_registration_stands_beside_the_first(root):
    runner.run_claim("toy", root=root, jobs=1)
    first = results.recorded_verdicts(root)["toy"]
    write(root, AGAIN)
    pages.write_claims_page(root)  # registered, not yet recorded
    waiting = results.recorded_verdicts(root)["toy"]
    assert (waiting["verdict"], waiting["reason"]) == (None, "0 of 8 runs recorded")
    assert waiting["earlier"] == [first | {"revision": 1}]
    assert results.recompute_all(root) == results.recorded_verdicts(root)

    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert (outcome.ran, outcome.stale, outcome.unknown, outcome.other) == (8, 0, 0, 8)
    assert ran(root)[8:10] == ["good 10 100", "poor 10 100"]
    lines = results.read_lines(path_of(root))[0]
    assert [line.get("revision") for line in lines] == [None] * 8 + [2] * 8
    entry = results.recorded_verdicts(root)["toy"]
    assert (entry["verdict"], entry["revision"]) == ("not reproduced", 2)  # 20 + seed against 1 + 2 * (10 + seed)
    assert entry["earlier"] == [first | {"revision": 1}]
    assert results.recompute_all(root) == results.recorded_verdicts(root)

    page = pages.claims_page(root)
    assert "| **not reproduced**; registration 1: **reproduced** | 4 |" in page
    assert "Registered again (2), with seeds from 10 on: the | limit was met by all" in page
    assert "### Registration 1 of toy\n\nVerdict: **reproduced**. 4 seeds, expectation of commit" in page
    assert page.count("| control: score: good > 5 | yes |") == 1
    assert page.count("| control: score: good > 15 | yes |") == 1


def test_a_third_one_keeps_both(root):
    runner.run_claim("toy", root=root, jobs=1)
    write(root, AGAIN)
    runner.run_claim("toy", root=root, jobs=1)
    write(root, AGAIN.replace("revision=2, first_seed=10", "revision=3, first_seed=20"))
    runner.run_claim("toy", root=root, jobs=1)
    earlier = results.recorded_verdicts(root)["toy"]["earlier"]
    assert [(each["revision"], each["verdict"]) for each in earlier] == [(1, "reproduced"), (2, "not reproduced")]
    assert all("earlier" not in each for each in earlier)


def test_seeds_of_an_earlier_registration_are_refused(root):
    runner.run_claim("toy", root=root, jobs=1)
    write(root, AGAIN.replace("first_seed=10", "first_seed=3"))
    with pytest.raises(UsageError, match="the claim of toy used seed 3: begin at first_seed=4"):
        runner.run_claim("toy", root=root, jobs=1)
    assert len(results.read_lines(path_of(root))[0]) == 8


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("revision=4, first_seed=9, diagnosis='x'", "revision 4 of the claim of toy: from 1 to 3"),
        ("revision=2, first_seed=9", "its diagnosis says what was wrong"),
        ("diagnosis='x'", "its diagnosis says what was wrong"),
        ("revision=2, diagnosis='x'", "first_seed= begins at seeds never used"),
        ("revision=2, diagnosis='x', first_seed=997", "lie between 0 and 999"),
    ],
)
def test_registrations_hold_together(root, given, sentence):
    write(root, SOURCE.replace("CLAIM = Claim(", f"CLAIM = Claim({given},"))
    with pytest.raises(UsageError, match=sentence):
        runner.run_claim("toy", root=root, jobs=1)


def test_a_method_works_while_its_second_registration_waits(monkeypatch):
    recorded = {"verdict": "partly", "date": "2026-01-02", "reason": "", "seeds": 5, "expectations": [], "revision": 1}
    waiting = {"verdict": None, "reason": "0 of 8 runs recorded", "date": None, "seeds": 6, "expectations": []}
    monkeypatch.setattr(registry, "_verdicts", lambda: {"sac": waiting | {"revision": 2, "earlier": [recorded]}})
    row = registry.find("sac")
    assert (row.status, row.claim) == ("works", "partly")
    assert "registration 1: partly, 2026-01-02" in show_text("sac")


def test_a_pilot_says_how_many_seeds_are_needed(root, capsys):
    with open(root / "claims" / "toy.py", "a") as file:
        file.write("# not committed: a pilot records nothing\n")
    outcome = runner.run_claim("toy", root=root, jobs=1, pilot=True, seeds=3)
    assert ran(root) == [f"{arm} {seed} 100" for seed in (1000, 1001, 1002) for arm in ("good", "poor")]
    pages.print_outcome(outcome, Console(width=200))
    printed = capsys.readouterr().out
    # margins 1010 + s - (2001 + 2 s) - 1 of s = 0, 1, 2
    assert "good > poor + 1: -992, -993, -994; bound with 4 seeds -994.2; no number of seeds would do" in printed
    # margins 1005, 1006, 1007: mean 1006, deviation 1, t(3) of 95 % 2.353, over the root of 4
    assert "good > 5: 1005, 1006, 1007; bound with 4 seeds 1005; it needs 3 seeds" in printed
    assert not path_of(root).exists()
    with pytest.raises(UsageError, match="--seeds is the number of seeds of --pilot"):
        runner.run_claim("toy", root=root, seeds=3)


def test_power_of_a_part():
    def part(*values):
        return Part("a > b", sum(values) / len(values), 0.0, 0.0, 0, len(values), False, values)

    # mean 1, deviation 2: t / sqrt(n) < 1/2 first at n = 13, where t(12) = 1.782
    assert pages.power_text(part(-1.0, 1.0, 3.0), 5) == "a > b: -1, 1, 3; bound with 5 seeds -0.9068; it needs 13 seeds"
    assert pages.power_text(part(-9.0, 0.1, 9.0), 5).endswith("it needs more than 100 seeds")
    assert pages.power_text(part(2.0), 5) == "a > b: 2 (one value: no bound)"


def test_lines_say_their_revision_only_when_it_is_not_the_first(root):
    runner.run_claim("toy", root=root, jobs=1)
    assert all("revision" not in json.loads(text) for text in path_of(root).read_text().splitlines())
    assert "revision" not in results.recorded_verdicts(root)["toy"]

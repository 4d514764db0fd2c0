import math
import subprocess
import sys

import numpy as np
import pytest

from polopt.claims.claim import Claim
from polopt.claims.expectations import Above, Below, Greater, Narrower, Ordered, Trend, Within
from polopt.claims.judge import check, judge
from polopt.core.errors import UsageError


def arm(seed, budget):
    return {"return": 0.0}


def claim(*expect, arms=("a", "b", "c@1", "c@2"), **kwargs):
    given = {"method": "sac", "statement": "s", "budget": {"env_steps": 1}, "seeds": 3} | kwargs
    return Claim(arms=dict.fromkeys(arms, arm), expect=expect, **given)


def table(**arms):
    return {name: {seed: {"return": value} for seed, value in enumerate(values)} for name, values in arms.items()}


DATA = table(a=[10, 11, 12], b=[1, 2, 3]) | table(**{"c@1": [5, 6, 7], "c@2": [6, 6, 6]})


@pytest.mark.parametrize(
    ("expectation", "holds"),
    [
        (Greater("return", "a", "b", by=8), True),
        (Greater("return", "a", "b", by=9), False),  # equal to the margin is not above it
        (Greater("return", "a", "b", ratio=2), True),
        (Greater("return", "b", "a"), False),
        (Greater("return", "a", "c@*"), True),
        (Above("return", "a", 5), True),
        (Above("return", "*", 5), False),
        (Below("return", "b", 8), True),
        (Within("return", "c@*", 10), True),
        (Within("return", "c@*", 0.5), False),
        (Ordered("return", ("b", "c@1", "a")), True),
        (Ordered("return", ("a", "c@1", "b"), "down"), True),
        (Ordered("return", ("b", "a", "c@1")), False),
        (Trend("return", ("b", "c@2", "c@1", "a")), True),
        (Trend("return", ("b", "a", "c@1"), by=5), False),
        (Trend("return", ("b", "a"), at=(0, 3), by=2.9), True),
        (Trend("return", ("b", "a"), at=(0, 3), by=3), False),
        (Narrower("return", "c@*", "[ab]", ratio=0.5), True),
        (Narrower("return", "[ab]", "c@*"), False),
    ],
)
def test_expectations(expectation, holds):
    made = claim(expectation)
    assert check(made, expectation, DATA, range(3)).holds is holds


def test_contrasts_are_paired_by_seed():
    made = claim(Greater("return", "a", "b"), arms=("a", "b"))
    paired = judge(made, table(a=[1, 101, 1001], b=[0, 100, 1000]))
    crossed = judge(made, table(a=[101, 1001, 1], b=[0, 100, 1000]))
    assert (paired.name, crossed.name) == ("reproduced", "not reproduced")
    part = crossed.checks[0].weakest
    assert (part.worst, part.worst_seed) == (-999, 2)


def test_verdicts():
    good, bad = Greater("return", "a", "b"), Greater("return", "b", "a")
    control, broken = Above("return", "a", 5, control=True), Above("return", "a", 50, control=True)
    cases = {
        (good,): "reproduced",
        (good, control): "reproduced",
        (good, bad): "partly",
        (bad,): "not reproduced",
        (bad, control): "not reproduced",
        (good, broken): "not reproduced",
    }
    for expect, name in cases.items():
        assert judge(claim(*expect), DATA).name == name


def test_no_verdict_while_runs_miss_or_fail():
    made = claim(Greater("return", "a", "b"))
    assert str(judge(made, DATA | table(a=[1, 2]))) == "no verdict: 11 of 12 runs recorded"
    failed = {("a", 0): "boom", ("a", 1): "boom", ("b", 2): "boom"}
    assert str(judge(made, DATA, failed)) == "no verdict: 2 arms failed (a, b)"


def test_not_a_number_never_holds():
    made = claim(Greater("return", "a", "b"), arms=("a", "b"))
    for value in (math.nan, None, math.inf):
        verdict = judge(made, table(a=[1, 2, value], b=[0, 0, 0]))
        assert verdict.name == "not reproduced"
    assert verdict.checks[0].weakest.worst_seed == 2


def test_deterministic_arms_run_once_and_count_for_every_seed():
    made = claim(Greater("return", "a", "b"), arms=("a", "b"), deterministic=("b",))
    assert made.jobs() == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
    assert judge(made, table(a=[5, 6, 7], b=[1])).name == "reproduced"
    alone = claim(Above("return", "*", 4), arms=("a", "b"), deterministic=("*",), seeds=1)
    assert judge(alone, table(a=[5], b=[4.5])).name == "reproduced"


def test_jobs_are_paired_when_interrupted():
    made = claim(Above("return", "a", 0), arms=("a", "b"))
    assert made.jobs() == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: claim(Greater("return", "a", "d*")), "no arm matches 'd\\*'; the arms are a, b, c@1, c@2"),
        (lambda: claim(Greater("return", "a", "C@1")), "did you mean 'c@1'"),
        (lambda: claim(Ordered("return", ("a", "c@3"))), "no arm is called 'c@3'.*did you mean"),
        (lambda: claim(Above("return", "a", 0), arms=("a[1]",)), r"the arm name 'a\[1\]'"),
        (lambda: claim(Above("return", "a", 0), seeds=2), "2 seeds; 3 is the least"),
        (lambda: claim(Above("return", "a", 0, control=True)), "beyond its controls"),
        (lambda: claim(Within("return", "a", 1)), "two arms or more"),
        (lambda: claim(Greater("return", "a", "a")), "itself only"),
        (lambda: claim(Above("return", "a", 0), minutes=90), "90 minutes"),
        (lambda: Greater("return", "a", "b", by=1, ratio=2), "not both"),
        (lambda: Trend("return", ("a", "b"), "sideways"), "'sideways'"),
        (lambda: judge(claim(Above("retrun", "a", 0)), DATA), "gives no 'retrun'; did you mean 'return'"),
    ],
)
def test_what_does_not_hold_together_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_no_effect_passes_five_percent_of_the_time():
    rng = np.random.default_rng(0)
    made = claim(Greater("return", "a", "b"), arms=("a", "b"))
    for seeds in (3, 5):
        made = claim(Greater("return", "a", "b"), arms=("a", "b"), seeds=seeds)
        passed = 0
        for _ in range(2000):
            a, b = rng.normal(size=(2, seeds))
            passed += judge(made, table(a=a, b=b)).name == "reproduced"
        assert 0.035 < passed / 2000 < 0.065  # three standard errors are 0.015


def test_a_clear_effect_is_found():
    rng = np.random.default_rng(0)
    made = claim(Greater("return", "a", "b"), arms=("a", "b"), seeds=5)
    found = [judge(made, table(a=2.8 + rng.normal(size=5), b=rng.normal(size=5))).name for _ in range(300)]
    assert found.count("reproduced") > 0.93 * 300  # two standard deviations of a difference


def test_claims_need_no_torch():
    code = "import sys, polopt.evaluation, polopt.claims; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

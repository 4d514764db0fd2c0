"""What the mutation page changes, and that it tells a seen change from an unseen one."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.mutants import ROOT, mutants

SOURCE = '''
LIMIT = 3

def loss(log_prob: int, advantage):
    """Text."""
    if advantage > 0:
        check(advantage)
    return -(log_prob * advantage.detach()) + 0.5
'''


def test_every_change_by_hand():
    changes = [mutant.change for mutant in mutants(SOURCE)]
    assert changes == [
        "advantage > 0 -> advantage <= 0",
        "0 -> 1",
        "check(advantage) -> left out",
        "-(log_prob * advantage.detach()) + 0.5 -> -(log_prob * advantage.detach()) - 0.5",
        "-(log_prob * advantage.detach()) + 0.5 -> -(log_prob * advantage.detach())",
        "-(log_prob * advantage.detach()) + 0.5 -> 0.5",
        "-(log_prob * advantage.detach()) -> log_prob * advantage.detach()",
        "log_prob * advantage.detach() -> log_prob",
        "log_prob * advantage.detach() -> advantage.detach()",
        "advantage.detach() -> advantage",
        "0.5 -> 1.0",
    ]
    for mutant in mutants(SOURCE):
        assert ast.unparse(mutant.tree) != ast.unparse(ast.parse(SOURCE))
        compile(mutant.tree, "mutant", "exec")


@pytest.mark.exhaustive
def test_a_part_that_is_tested_by_halves_has_survivors():
    """An action of probability 0 says nothing of large ratios: their tests see what this one does not."""
    part, tests = "polopt/core/numeric.py", "tests/core/test_numeric.py"
    half = f"{tests}::test_an_impossible_action_has_ratio_zero"
    ends = []
    for named in (half, tests):
        command = [sys.executable, "-m", "tests.mutants", part, named]
        ends.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines())
    assert "polopt/core/numeric.py:13: 1 -> 2" in ends[0]
    assert ends[1][-1].startswith("0 of 25 mutants survive")

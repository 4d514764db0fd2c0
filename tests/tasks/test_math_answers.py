"""Answers of mathematics: where they stand in a text, and what means the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polopt.tasks import make_task
from polopt.tasks.math_answers import after_hashes, checker, last_boxed

HANGS = r"\boxed{9^{9^{9^9}}}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\fbox{3}", None),
        (r"\fboxed{3}", "3"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", ""),
        ("7", None),
        ("", None),
    ],
)
def test_the_last_box(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 1,234,567", "1234567"),
        ("#### 7\nor so", "7"),
        ("#### 1 #### 2", "2"),
        ("#### 1,2", "1,2"),
        ("####", None),
        ("7", None),
    ],
)
def test_behind_hashes(text: str, answer: str | None) -> None:
    assert after_hashes(text) == answer


CASES: list[tuple[str, str, bool]] = [
    ("72", r"It is \boxed{72}.", True),
    ("72", "#### 72", True),
    ("72", "it is 72.", True),
    ("1,000", r"\boxed{1000}", True),
    (r"\frac{1}{2}", r"\boxed{0.5}", True),
    (r"$\frac{1}{2}$", r"so $\frac12$", True),
    ("x^2+2x+1", r"\boxed{(x+1)^2}", True),
    (r"\frac{\pi}{4}", r"\boxed{\pi/4}", True),
    (r"\{1,2\}", r"\boxed{\{2,1\}}", True),
    ("(1,2)", r"\boxed{(2,1)}", False),
    ("3", r"\boxed{x=3}", True),
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", True),
    (r"\text{Evelyn}", r"\boxed{Bob}", False),
    ("7", r"\boxed{7} or \boxed{8}", False),  # a list of guesses is no answer
    ("2", r"<think>\boxed{2}</think> so \boxed{3}", False),
    ("2", r"<think>\boxed{2}</think> I do not know", False),
    ("7", "no idea", False),
    ("7", "", False),
]


def test_what_means_the_same() -> None:
    pytest.importorskip("math_verify")
    outcomes = checker()([{"answer": answer, "text": text} for answer, text, _ in CASES], 60.0)
    found = [(answer, text, outcome()[1]) for (answer, text, _), outcome in zip(CASES, outcomes)]
    assert found == CASES


def test_equal_answers_vote_alike_and_a_text_that_hangs_the_checker_costs_its_sample(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows: list[dict[str, Any]] = [{"prompt": str(n), "answer": r"\frac{1}{2}"} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = make_task(str(tmp_path / "a.jsonl"), 4, match="math", timeout=5.0)
    task.reset(index=torch.arange(4))
    _, reward, *_ = task.step({"action": [r"\boxed{\frac12}", "so 0.5", HANGS, "so 2"]})
    assert reward.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert task.facts["failed"].tolist() == [False, False, True, False]
    assert task.facts["answer"][0] == task.facts["answer"][1] != task.facts["answer"][3]

"""System messages, instructions and chat around the prompts of any text task, which judges as it would without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polopt.policies.language import CausalLM
from polopt.policies.small_lm import make_language_model
from polopt.tasks import make_task
from polopt.tasks.ladders import Cuts
from polopt.tasks.problem import Around, Problem

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("around", "prompt", "expected"),
    [
        ({}, "a", "a"),
        ({"chat": True}, "a", [user("a")]),
        ({"system": "Be brief."}, "a", [SYSTEM, user("a")]),
        ({"instruction": "Now!"}, "a", "a\nNow!"),
        ({"instruction": "Now!", "system": "Be brief."}, "a", [SYSTEM, user("a\nNow!")]),
        ({"system": "Be brief."}, [user("a")], [SYSTEM, user("a")]),
        ({"system": "Be brief."}, [{"role": "system", "content": "Be long."}, user("a")], [SYSTEM, user("a")]),
        ({"chat": True}, [user("a")], [user("a")]),
        (
            {"instruction": "Now!"},
            [user("a"), {"role": "assistant", "content": "b"}, user("c"), {"role": "assistant", "content": "d"}],
            [user("a"), {"role": "assistant", "content": "b"}, user("c\nNow!"), {"role": "assistant", "content": "d"}],
        ),
    ],
)
def test_what_is_put_around_a_prompt(around: dict[str, Any], prompt: Any, expected: Any) -> None:
    found = Around(**around)(Problem(prompt))
    assert found.prompt == expected
    assert found.question == (prompt if isinstance(prompt, str) else prompt[-1]["content"])


@pytest.mark.parametrize(
    "name", ["addition", "countdown", "ascending", "vowels", "guess", "lookup", "reasoning-gym/chain_sum"]
)
def test_answers_are_judged_as_they_are_without(name: str) -> None:
    plain = make_task(name, 3, pool=3)
    task = make_task(name, 3, pool=3, system="Answer in 1 word out of 99.", instruction="From 3 to 5 words!")
    assert (plain.spec.info["conversational"], task.spec.info["conversational"]) == (False, True)
    before, after = plain.reset(index=torch.arange(3)), task.reset(index=torch.arange(3))
    assert [[*map(str, (one[0]["role"], one[1]["content"]))] for one in after] == [
        ["system", f"{text}\nFrom 3 to 5 words!"] for text in before
    ]
    for _ in range(plain.turns):
        answers = [[text for _, text in one.demonstrations(range(3))] for one in (plain, task)]
        assert answers[0] == answers[1]
        (first, *given), (second, *same) = (one.step({"action": answers[0]}) for one in (plain, task))
        assert [value.tolist() for value in given] == [value.tolist() for value in same]
        assert torch.equal(plain.correct, task.correct)
        assert first == ["" if not new else new[0]["content"] for new in second]
        if (given[1] | given[2]).any():
            break
    assert task.correct.any() or name in ("guess", "reasoning-gym/chain_sum", "vowels")


def test_preferences_of_a_mixture_and_of_a_file_have_it_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    ((prompt, *answers),) = make_task(str(tmp_path / "a.jsonl"), system="Be brief.").preferences([0])
    assert (prompt, answers) == ([SYSTEM, user("a")], ["b", "c"])
    mixed = make_task("mixed", system="Be brief.", pool=2)
    assert mixed.preferences([0])[0][0] == mixed.problems([0])[0].prompt
    assert mixed.problems([0])[0].prompt[0] == SYSTEM


def test_the_beginning_of_a_solution_is_the_assistants() -> None:
    task = make_task("countdown", 1, pool=2, system="Be brief.").with_ladder(Cuts((0.5,)))
    (problem,) = task.problems([1])
    assert [message["role"] for message in problem.prompt] == ["system", "user", "assistant"]
    task.reset(index=torch.tensor([1]))
    task.step({"action": [problem.solution]})
    assert task.correct.tolist() == [True]


def test_a_shown_beginning_does_not_confuse_a_task_that_reads_its_prompt() -> None:
    task = make_task("countdown", 1, pool=2, shown=[0.5, 0.5])
    (problem,) = task.problems([1])
    task.reset(index=torch.tensor([1]))
    task.step({"action": [problem.solution]})
    assert task.correct.tolist() == [True]


def test_the_model_reads_what_its_chat_template_writes(tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "m", "tiny")
    task = make_task("addition", 1, pool=1, system="Be brief.")
    policy = CausalLM(model=str(model), max_tokens=2).build(task.spec)
    record, _ = policy.act(task.reset(index=torch.tensor([0])))
    question = make_task("addition", 1, pool=1).problems([0])[0].prompt
    (text,) = policy.decode(record["prompt"], record["prompt_mask"])
    assert text == f"system: Be brief.\nuser: {question}\nassistant: "

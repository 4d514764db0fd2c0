"""pass@k, votes, intervals, and levels of difficulty."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polopt
from polopt.data.prompt_groups import PromptGroups
from polopt.evaluation.completions import evaluate_completions, majority, pass_at, token_entropy
from polopt.tasks import make_task
from polopt.tasks.problem import code_of
from tests.policies.language_models import tiny_policy


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_the_choices_of_k_with_a_right_one(correct, k):
    k = min(k, len(correct))
    choices = list(itertools.combinations(correct, k))
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at(torch.tensor([correct]), k).item() == pytest.approx(share, abs=1e-12)


def test_pass_at_more_than_there_are():
    with pytest.raises(ValueError, match="pass@3 needs 3 completions of a prompt, and there are 2"):
        pass_at(torch.ones(1, 2), 3)


def test_votes():
    answer = torch.tensor([[5, 5, 7], [5, 7, 7], [5, 7, 0], [0, 0, 0], [0, 0, 9], [1, 2, 3]])
    correct = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    assert majority(answer, correct).tolist() == pytest.approx([1, 0, 0.5, 0, 1, 1 / 3])


def test_answers_of_one_kind_may_be_judged_apart():
    """Where equal answers are right in one text and wrong in another, the vote is right as often as they are."""
    assert majority(torch.tensor([[4, 4, 6]]), torch.tensor([[1, 0, 1]])).item() == 0.5


def test_what_a_text_says_the_answer_is():
    said = {
        "addition": "7+5=12;4+8+1=13;132 ",
        "countdown": "2*7=14;(2*7)+ 3=17",
        "sorting": "1;12\n 123 ",
        "guess": "at 4",
    }
    found = {}
    for name, text in said.items():
        task = make_task(name)
        problem = task.problems([0])[0]
        if name == "countdown":
            text = text.replace("=17", "=" + str(problem.prompt).split(" make ")[1].rstrip(":"))
        found[name] = task.extract(problem, text)
        assert task.extract(problem, problem.solution) == problem.answer or name == "guess"
    assert found == {"addition": "132", "countdown": "(2*7)+3", "sorting": "123", "guess": "4"}
    mixed = make_task("mixed", parts="addition:2")
    assert mixed.extract(mixed.problems([0])[0], "x;7") == "7"


def test_the_answer_is_a_fact_of_the_step(tmp_path):
    task = make_task("addition", num=4, score_truncated=False)
    task.reset()
    task.step({"action": ["1+1=2;12", "so 12", "nothing", "12"], "ended": [True, True, True, False]})
    assert task.answer.tolist() == [code_of("12"), code_of("12"), 0, 0]
    assert task.facts["answer"] is task.answer
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "q", "answer": "1000"}')
    task = make_task(str(path), num=2, match="number", heldout=False)
    task.reset()
    task.step({"action": ["1,000 it is", "1000.0"]})
    assert task.answer.tolist() == [code_of("1000")] * 2


def scores_of(samples=1, **how):
    torch.manual_seed(0)
    policy = tiny_policy(max_tokens=3)
    task = make_task("addition", levels=(1, 2), scratchpad=False, evaluation=True, score_truncated=True)
    return evaluate_completions(policy, task, 24, samples=samples, **how)[0]


def test_intervals_and_levels():
    scores = scores_of(intervals=True)
    assert {"accuracy/level_1", "accuracy/level_2", "length/low", "length/high"} <= scores.keys()
    assert scores["length/low"] <= scores["length"] <= scores["length/high"]
    assert not any("@" in name for name in scores)
    assert "length/low" not in scores_of()


def test_entropy_is_that_of_the_policy_at_its_tokens():
    policy = tiny_policy(max_tokens=3)
    task = make_task("addition", evaluation=True, score_truncated=True)
    scores, _ = evaluate_completions(policy, task, 40)
    batch = PromptGroups(task, 40, 1, starts=range(40), greedy=True).next(policy)
    with torch.no_grad():
        expected = policy.entropy(batch).sum() / batch["mask"].sum()
    assert scores["entropy"] == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < scores["entropy"] < math.log(200)
    assert token_entropy(object(), batch) == {}


def test_several_samples(monkeypatch):
    task = make_task("vowels")
    monkeypatch.setattr(type(task), "verify", lambda self, problem, text: float("a" in text))
    torch.manual_seed(0)
    policy = tiny_policy(max_tokens=20)
    task = make_task("vowels", evaluation=True, score_truncated=True)
    scores, shown = evaluate_completions(policy, task, 30, samples=6, greedy=False, intervals=True)
    assert [name for name in scores if "@" in name and "/" not in name] == [
        "pass@1",
        "pass@2",
        "pass@4",
        "pass@6",
        "maj@6",
    ]
    assert scores["pass@1"] == pytest.approx(scores["accuracy"])
    assert 0 < scores["pass@1"] < scores["pass@2"] < scores["pass@4"] < scores["pass@6"]
    assert scores["pass@2/low"] < scores["pass@2"] < scores["pass@2/high"]
    assert len(shown) == 8
    assert [entry["prompt"] for entry in shown] == [problem.prompt for problem in task.problems(range(8))]


def test_on_the_command_line_and_in_python(tmp_path, capsys):
    from polopt.cli.main import main

    settings = {"model": "tiny", "policy.max_tokens": 4, "loggers": ()}
    run = polopt.train(
        "sft", "addition", steps=1, out=tmp_path / "run", task_options={"score_truncated": True}, **settings
    )
    scores = polopt.evaluate(run.folder, episodes=5, samples=3)
    assert {"pass@1", "pass@2", "pass@3", "maj@3", "length/low"} <= scores.keys()
    assert main(["eval", str(run.folder), "--episodes", "5", "--samples", "3"]) == 0
    said = capsys.readouterr().out
    assert f"length {scores['length']:.6g} [{scores['length/low']:.4g}, {scores['length/high']:.4g}]" in said
    assert "(5 sampled episodes, 3 of each prompt)" in said
    assert main(["eval", str(run.folder), "--samples", "0"]) == 2
    run = polopt.train("ppo", "chain", steps=1, out=tmp_path / "other", loggers=())
    assert main(["eval", str(run.folder), "--samples", "2"]) == 2
    assert "no method for language models" in capsys.readouterr().err

"""How solutions are written, and several tasks in one pool."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.options import shares_of
from polopt.tasks.styles import STYLES, Styles, again, spoiled, turned

WORDS = [one + other for one in "abcdefgh" for other in "klmno"]


def test_the_styles_of_a_sum():
    steps, answer, rng = ["7+5=12", "4+8+1=13"], "132", random.Random(0)
    written = {name: Styles(name).write(steps, answer, rng) for name in STYLES if name != "again"}
    assert written == {
        "steps": ("7+5=12;4+8+1=13;132", "steps"),
        "plain": ("132", "plain"),
        "turned": ("12=7+5;13=4+8+1;132", "turned"),
        "checked": ("7+5=12;12=7+5;4+8+1=13;13=4+8+1;132", "checked"),
    }
    assert turned("a>c") == "c>a"


def test_writing_again_has_a_heavy_tail():
    rng = random.Random(0)
    times = Counter(len(again(["x"], rng)) for _ in range(20_000))
    for least in (1, 2, 4, 8):  # P(k >= n) = n^-1.5
        share = sum(count for k, count in times.items() if k >= least) / 20_000
        assert share == pytest.approx(least**-1.5, abs=0.01)
    assert max(times) == 8


@given(st.text(alphabet="ab19+; ", max_size=6), st.integers(0, 100))
def test_a_spoiled_answer_differs_in_one_sign(answer, seed):
    found = spoiled(answer, random.Random(seed))
    differ = [(one, other) for one, other in zip(answer, found, strict=True) if one != other]
    assert len(differ) == (1 if any(sign.isalnum() for sign in answer) else 0)
    assert all(one.isdigit() == other.isdigit() and other.isalnum() for one, other in differ)


def test_a_generated_task_writes_in_its_styles():
    usual = make_task("addition", levels=(1, 3)).problems(range(400))
    task = make_task("addition", levels=(1, 3), style="plain,steps*3", wrong=0.25)
    styled = task.problems(range(400))
    shares = Counter(problem.columns["style"] for problem in styled)
    assert shares["plain"] / 400 == pytest.approx(0.25, abs=0.06)
    right = [task.verify(problem, problem.solution) for problem in styled]
    assert sum(right) / 400 == pytest.approx(0.75, abs=0.06)
    for one, other, correct in zip(usual, styled, right):
        assert (one.prompt, one.answer, one.level, one.key) == (other.prompt, other.answer, other.level, other.key)
        plain = other.columns["style"] == "plain"
        assert not correct or other.solution == (one.answer if plain else one.solution)
    assert styled == task.problems(range(400))
    assert make_task("addition", style="plain").problems([3])[0].solution == usual_answer(3)


def usual_answer(index):
    return make_task("addition").problems([index])[0].answer


@pytest.mark.parametrize("name", ["addition", "countdown", "sorting", "lookup", "ascending", "orbit", "vowels"])
def test_every_generated_task_has_styles_whose_answers_are_right(name):
    task = make_task(name, style=list(STYLES))
    for problem in task.problems(range(60)):
        assert task.verify(problem, problem.solution) == 1


def test_several_tasks_in_one_pool():
    task = make_task("mixed", parts="addition:1*3,addition:4,sorting:5", pool=400)
    problems = task.problems(range(400))
    kinds = Counter((problem.columns["part"], problem.level) for problem in problems)
    assert kinds.keys() == {(0, 1), (1, 4), (2, 5)}
    assert kinds[0, 1] / 400 == pytest.approx(0.6, abs=0.07)
    assert task.problems([400, 7]) == [problems[0], problems[7]]
    for index, problem in enumerate(problems[:50]):
        own = task.parts[problem.columns["part"]]
        assert own.problems([index])[0].prompt == problem.prompt
        assert task.verify(problem, problem.solution) == 1
        assert task.verify(problem, problem.solution + "x") == own.verify(problem, problem.solution + "x")
    pairs = task.preferences([3, 403])
    assert pairs[0] == pairs[1]
    assert task.verify(problems[3], pairs[0][1]) > task.verify(problems[3], pairs[0][2])


def test_parts_with_options_of_their_own(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"say {x}", "answer": x, "solution": x}) for x in WORDS))
    parts = [{"task": str(path), "share": 1}, {"task": "addition", "digits": 2, "style": "plain"}]
    train, held = (make_task("mixed", parts=parts, evaluation=evaluation) for evaluation in (False, True))
    texts = {str(problem.prompt) for problem in train.problems(range(60))}
    assert texts.isdisjoint(str(problem.prompt) for problem in held.problems(range(60)))
    assert 15 < sum(text.startswith("say") for text in texts) < 40
    assert {p.solution == p.answer for p in train.problems(range(60))} == {True}


def test_rewards_know_the_part():
    def reward(completion, part, level):
        return float(part) + level

    task = make_task("mixed", parts="addition:1,sorting:3", rewards=reward, num=8)
    task.reset()
    _, given_, *_ = task.step({"action": ["x"] * 8})
    assert given_.tolist() == [0.0 + 1 if p.level == 1 else 1.0 + 3 for p in task.problems(range(8))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_task("addition", style="plane"), "style has no 'plane'; did you mean 'plain'"),
        (lambda: make_task("addition", style="plain*0"), "must be a number above 0, not '0'"),
        (lambda: make_task("addition", style=3), "style is a list of names"),
        (lambda: make_task("addition", style="steps", scratchpad=False), "give one of them"),
        (lambda: make_task("addition", wrong=2), "wrong is a probability"),
        (lambda: make_task("mixed", parts="addtion"), "a text task by its name, not 'addtion'"),
        (lambda: make_task("mixed", parts="mixed"), "a text task by its name, not 'mixed'"),
        (lambda: make_task("mixed", parts="CartPole-v1"), "a text task by its name"),
        (lambda: make_task("mixed", parts="guess"), "have one turn"),
        (lambda: make_task("mixed", parts="addition:0"), "levels must be a whole number"),
        (lambda: make_task("mixed", parts=[]), "a mixed task has parts"),
        (lambda: make_task("mixed", parts=3), "parts are a text such as"),
        (lambda: make_task("mixed", parts=[{"task": "addition", "share": -1}]), "a share above 0"),
        (lambda: make_task("mixed", parts=[{"task": "addition", "largest": 1}]), "addition has no option 'largest'"),
    ],
)
def test_wrong_options_get_one_sentence(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_shares_are_1_where_none_is_told():
    assert shares_of("x", "a, b*2.5") == (["a", "b"], [1.0, 2.5])
    assert shares_of("x", ["a*2"]) == (["a"], [2.0])

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.tasks import make_task
from polopt.tasks.problem import Problem
from polopt.tasks.problems import Addition, Guess, value_of
from polopt.tasks.text import TextTask

WORKED = ("addition", "countdown", "sorting", "lookup")
GENERATED = (*WORKED, "guess", "ascending")


def made(name: str, **options: Any) -> TextTask:
    task = make_task(name, **options)
    assert isinstance(task, TextTask)
    return task


@pytest.mark.parametrize("name", GENERATED)
def test_a_problem_depends_on_seed_and_index_only(name: str) -> None:
    task = made(name, seed=3)
    problems = task.problems(range(20))
    assert problems == made(name, seed=3).problems(range(20))
    assert problems[::-1] == task.problems(range(19, -1, -1))
    assert problems != made(name, seed=4).problems(range(20))
    assert problems[:5] * 2 == made(name, seed=3, pool=5).problems(range(10))


@pytest.mark.parametrize("name", WORKED)
@pytest.mark.parametrize("scratchpad", [True, False])
@pytest.mark.parametrize("level", [None, 2, 5])
def test_worked_solutions_are_right_and_others_are_wrong(name: str, scratchpad: bool, level: int | None) -> None:
    task = made(name, scratchpad=scratchpad, levels=level)
    problems = task.problems(range(200))
    for problem, other in itertools.pairwise(problems):
        assert problem.solution is not None
        assert problem.answer is not None
        assert problem.hint is not None
        assert task.verify(problem, problem.solution) == 1
        assert task.verify(problem, problem.answer + "\n") == 1
        assert problem.solution.endswith(problem.answer)
        if scratchpad:
            assert problem.solution.startswith(problem.hint)
        else:
            assert problem.solution == problem.answer
        for wrong in ("", problem.answer + "1", problem.solution + ";", problem.answer + "\nor 0", "no idea"):
            assert task.verify(problem, wrong) == 0
        if other.answer != problem.answer and name != "countdown":
            assert task.verify(problem, other.answer or "") == 0
    assert task.demonstrations([0])[0] == (problems[0].prompt, problems[0].solution)


def test_the_scratchpad_of_addition_is_short_and_true() -> None:
    task = made("addition")
    assert task.verify(Problem("47+85=", "132"), "The sum is 132.") == 1
    assert task.verify(Problem("47+85=", "132"), "132 or 133") == 0
    assert task.verify(Problem("47+85=", "132"), "0132") == 0
    for problem in task.problems(range(300)):
        assert isinstance(problem.prompt, str)
        assert problem.solution is not None
        assert len(problem.prompt) == 6
        assert len(problem.solution) <= 19
        *steps, total = problem.solution.split(";")
        for step in steps:
            terms, result = step.split("=")
            assert sum(map(int, terms.split("+"))) == int(result)
        first, second = map(int, problem.prompt.rstrip("=").split("+"))
        assert int(total) == first + second
        assert total.endswith("".join(step.split("=")[1][-1] for step in reversed(steps)))
    by_hand = Addition(heldout=False).draw(_Fixed(47, 85), 2)  # type: ignore[arg-type]
    assert by_hand.prompt == "47+85="
    assert by_hand.solution == "7+5=12;4+8+1=13;132"


class _Fixed:
    """Draws the given numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def randrange(self, low: int, high: int) -> int:
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("name", "levels", "measure"),
    [
        ("addition", (1, 4), lambda problem: len(problem.prompt.split("+")[0])),
        ("countdown", (2, 5), lambda problem: len(problem.prompt.split(" make ")[0].split())),
        ("sorting", (3, 6), lambda problem: len(problem.answer)),
        ("lookup", (1, 6), lambda problem: problem.solution.count(">")),
        ("ascending", (3, 12), lambda problem: len(problem.answer)),
        ("guess", (5, 9), lambda problem: 1 - eval_range(problem.prompt)),
    ],
)
def test_difficulty_is_uniform_over_the_levels(name: str, levels: tuple[int, int], measure: Any) -> None:
    task = made(name, levels=levels)
    problems = task.problems(range(600))
    counts = Counter(problem.level for problem in problems)
    assert sorted(counts) == list(range(levels[0], levels[1] + 1))
    assert min(counts.values()) > 0.6 * 600 / len(counts)
    assert all(measure(problem) == problem.level for problem in problems)
    task.num = 600
    task.reset(index=torch.arange(600))
    assert task.level.tolist() == [problem.level for problem in problems]


def eval_range(prompt: str) -> int:
    low, high = prompt.removeprefix("guess ").rstrip(":").split("-")
    return int(low) - int(high)


@pytest.mark.parametrize("name", WORKED)
def test_training_never_meets_the_problems_of_evaluation(name: str) -> None:
    train = {problem.key for problem in made(name, seed=1).problems(range(3000))}
    for seed in (1, 2):
        test = [problem.key for problem in made(name, seed=seed, evaluation=True).problems(range(300))]
        assert not train & set(test)
        assert len(set(test)) > 100
    free = {problem.key for problem in made(name, seed=2, evaluation=True, heldout=False).problems(range(300))}
    assert train & free or name == "lookup"


def test_equal_sums_are_one_problem() -> None:
    """34+12 in training must not show 12+34 of evaluation."""
    task = made("addition", digits=1)
    pairs = {tuple(sorted(p.prompt.rstrip("=").split("+"))) for p in task.problems(range(2000))}  # type: ignore[union-attr]
    test = made("addition", digits=1, evaluation=True).problems(range(500))
    assert not pairs & {tuple(sorted(p.prompt.rstrip("=").split("+"))) for p in test}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", GENERATED)
def test_evaluation_draws_other_problems_from_the_same_seed(name: str) -> None:
    assert made(name, seed=5).problems(range(20)) != made(name, seed=5, evaluation=True).problems(range(20))


def test_lookup_follows_its_arrows() -> None:
    task = made("lookup", levels=(1, 6))
    for problem in task.problems(range(100)):
        assert isinstance(problem.prompt, str)
        arrows, question = problem.prompt.rstrip("=").split(";")
        table = dict(arrow.split(">") for arrow in arrows.split())
        assert len(table) == len(set(table.values())) == 8
        here, hops = question.split("+")
        for _ in range(int(hops)):
            here = table[here]
        assert here == problem.answer


def test_countdown_takes_any_right_expression() -> None:
    task = made("countdown")
    problem = Problem("2 3 7 make 17:", "7*2+3")
    for right in ("7*2+3", "3+2*7", "(2*7)+3", "3 + 7*2 = 17", "7*2=14;14+3=17;3+7*2", "thinking\n2*7+3"):
        assert task.verify(problem, right) == 1
    for wrong in ("17", "7*2", "7*2+3+0", "7*7+3", "2*3+7", "7*2+3=18", "7**2+3", "73-2", "7*2+3 ok", "(7*2+3"):
        assert task.verify(problem, wrong) == 0


def test_pairs_of_vowels_have_graded_shares() -> None:
    task: Any = make_task("vowels", 1, seed=3)
    assert isinstance(task, TextTask)
    pairs = task.preferences(range(60))
    assert pairs == make_task("vowels", 1, seed=3).preferences(range(60))  # type: ignore[attr-defined]
    assert pairs != make_task("vowels", 1, seed=4).preferences(range(60))  # type: ignore[attr-defined]
    shares = [[sum(letter in "aeiou" for letter in text) / 4 for text in texts] for _, *texts in pairs]
    assert all(better > worse for better, worse in shares)
    assert {share for pair in shares for share in pair} == {0, 0.25, 0.5, 0.75, 1}
    assert [prompt for prompt, *_ in pairs] == [problem.prompt for problem in task.problems(range(60))]


def test_ascending_takes_any_letters_in_order_with_the_given_ones() -> None:
    task = made("ascending")
    for problem in task.problems(range(200)):
        assert task.verify(problem, problem.solution or "") == 1
    problem = Problem("dq6:", level=6)
    for right in ("bdkpqz", "abcdeq", "dqrstz", "so;bdkpqz", "bdkpqz\n"):
        assert task.verify(problem, right) == 1
    for wrong in ("", "bdkpqq", "dbkpqz", "bdkpq", "bdkpqyz", "bckpqz", "bdkpuz", "BDKPQZ", "1bdkpq", "bdkpqz;"):
        assert task.verify(problem, wrong) == 0


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", 7), ("(1+2)*3", 9), ("8/4/2", 1), ("7-2-1", 4), ("1/3", Fraction(1, 3)), ("((4))", 4),
        ("", None), ("1/0", None), ("1+", None), ("+1", None), ("(1", None), ("1)", None), ("1 2", None), ("()", None),
        ("2**3", None), ("1(2)", None), ("(1)2", None), ("x", None), ("1+2)", None), ("4-(2-1)", 3), ("2*(3+4)*5", 70),
        ("(" * 1200 + "1" + ")" * 1200, None),
    ],
)  # fmt: skip
def test_expressions_have_exact_values(expression: str, value: Any) -> None:
    assert value_of(expression) == value


@given(st.recursive(st.integers(0, 20).map(str), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
    lambda parts: f"({parts[0]}{parts[1]}{parts[2]})")))  # fmt: skip
def test_expressions_agree_with_python(expression: str) -> None:
    exact = "".join(f"F({c})" if c.isdigit() else c for c in _tokens(expression))
    try:
        expected = eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        expected = None
    assert value_of(expression) == (expected if len(expression) <= 1000 else None)


def _tokens(expression: str) -> list[str]:
    return re.findall(r"\d+|\D", expression)


@given(st.text(max_size=60) | st.text("0123456789+-*/();= \nab", max_size=40))
def test_verifiers_take_any_text(text: str) -> None:
    for name in GENERATED:
        task = made(name)
        assert task.verify(task.problem(0), text) in (0.0, 1.0)


def play(task: TextTask, turns: int) -> tuple[list[float], list[bool]]:
    reward, over = torch.zeros(task.num), torch.tensor(task._ended)
    for _ in range(turns):
        rows = zip(over.tolist(), task.problems(task.index.tolist()), task.transcripts)
        moves = ["" if ended else task.expert(problem, transcript) for ended, problem, transcript in rows]
        _, gained, terminated, truncated = task.step({"action": moves, "active": ~over})
        reward, over = reward + gained, over | terminated | truncated
    return reward.tolist(), over.tolist()


@pytest.mark.parametrize("levels", [(2, 2), (8, 8), (3, 100)])
def test_bisection_wins_every_guessing_game(levels: tuple[int, int]) -> None:
    task = made("guess", num=50, levels=levels, spare=0)
    task.reset()
    reward, over = play(task, task.turns)
    assert reward == [1.0] * 50
    assert over == [True] * 50
    assert task.spec.info["turns"] == levels[1].bit_length()


def test_the_guessing_game_by_hand() -> None:
    task = Guess(num=1, levels=8, spare=1)
    problem = Problem("guess 3-10:", "9", level=8)
    said = [{"role": "user", "content": "guess 3-10:"}]
    assert task.reply(problem, said, "6") == ("higher 7-10:", 0.0, False)
    assert task.reply(problem, said, "10") == ("lower 3-9:", 0.0, False)
    assert task.reply(problem, said, "I say 9") == (None, 1.0, True)
    for text in ("", "hm", "99", "2", "9" * 5000):
        assert task.reply(problem, said, text) == ("guess 3-10:", 0.0, False)
    turn = [{"role": "assistant", "content": "4"}, {"role": "user", "content": "higher 7-10:"}]
    assert task.reply(problem, said + turn * 3, "8") == ("higher 9-10:", 0.0, False)
    assert task.reply(problem, said + turn * 4, "8") == (None, 0.0, True)  # the fifth turn of 4 + 1
    assert task.reply(problem, said + turn * 4, "9") == (None, 1.0, True)


def test_a_game_continues_exactly_after_a_resume() -> None:
    task, other = made("guess", num=4, seed=1, levels=64), made("guess", num=4, seed=1, levels=64)
    task.reset()
    play(task, 2)
    restore(other, gather(task))
    assert play(task, 5) == play(other, 5)
    assert task.transcripts == other.transcripts
    assert task.reset() == other.reset()


# reasoning-gym


@pytest.mark.parametrize(
    "name", ["chain_sum", "basic_arithmetic", "countdown", "leg_counting", "spell_backward", "maze", "word_sorting"]
)
def test_tasks_of_reasoning_gym(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    task = made(f"reasoning-gym/{name}", num=3, pool=4)
    assert task.size == 4
    obs = task.reset()
    assert all(isinstance(text, str) and text for text in obs)
    problems = task.problems(range(3))
    answers = [f"Let me see <answer> {p.answer} </answer>" if p.answer else "" for p in problems]
    _, reward, terminated, _ = task.step({"action": answers})
    assert terminated.all()
    known = [row for row, problem in enumerate(problems) if problem.answer]
    assert reward[known].tolist() == [1.0] * len(known)
    assert task.correct[known].all()
    assert problems == made(f"reasoning-gym/{name}", pool=4).problems(range(3))
    assert problems != made(f"reasoning-gym/{name}", pool=4, evaluation=True).problems(range(3))
    assert not task.verify(problems[0], "complete nonsense \0") >= 1


def test_options_and_names_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    task = made("reasoning-gym/chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert task.size == 1000
    assert all(len(str(problem.answer)) <= 3 for problem in task.problems(range(20)))
    same = made("reasoning-gym/chain_sum", evaluation=True, heldout=False)
    assert same.problem(0) == made("reasoning-gym/chain_sum").problem(0)
    for name, options, said in (
        ("reasoning-gym/chainsum", {}, "reasoning-gym has no dataset 'chainsum'; did you mean 'chain_sum'"),
        ("reasoning-gym/chain_sum", {"max_term": 3}, "no option 'max_term'; did you mean 'max_terms'"),
        ("reasoning-gym/chain_sum", {"seed": 1, "size": 3}, "no option 'size'"),
        ("reasoning-gym/chain_sum", {"max_terms": 0}, "cannot be made: AssertionError"),
    ):
        with pytest.raises(UsageError, match=said):
            make_task(name, **options)


def test_a_text_that_a_scorer_cannot_parse_is_wrong() -> None:
    pytest.importorskip("reasoning_gym")
    task = made("reasoning-gym/prime_factorization", pool=2)
    with pytest.raises(ValueError, match="invalid literal"):  # what the package itself does
        task._dataset.score_answer("x", task._dataset[0])  # type: ignore[attr-defined]
    task.reset()
    assert task.step({"action": ["x"]})[1].tolist() == [0.0]
    assert not task.failed.any()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError, match=r"polopt\[language\]"):
        make_task("reasoning-gym/chain_sum")

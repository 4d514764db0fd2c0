from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.tasks import make_task
from polopt.tasks.generated import final
from polopt.tasks.options import levels_of
from polopt.tasks.problem import Message, Problem
from polopt.tasks.text import TextTask


class Echo(TextTask):
    """Say the number in the prompt twice: a word, then the same again when asked."""

    turns = 2

    def problem(self, index: int) -> Problem:
        prompt: Any = f"say {index}" if not self.conversational else [{"role": "user", "content": f"say {index}"}]
        return Problem(prompt, answer=str(index), level=index % 3)

    def verify(self, problem: Problem, text: str) -> float:
        if text == "crash":
            raise ValueError("cannot read this")
        return float(text == problem.answer)

    def reply(self, problem: Problem, transcript: list[Message], text: str) -> tuple[str | None, float, bool]:
        right = self.verify(problem, text)
        return ("again", 0.25 * right, False) if len(transcript) == 1 else (None, right, True)


class Chat(Echo):
    conversational = True


def flags(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_one_act_is_one_turn() -> None:
    task = Echo(num=3)
    assert task.elastic
    assert task.reset() == ["say 0", "say 1", "say 2"]
    assert task.first.all()
    assert task.level.tolist() == [0, 1, 2]
    obs, reward, terminated, truncated = task.step({"action": ["0", "9", "2"], "ended": flags(1, 1, 0)})
    assert obs == task.obs == ["again", "again", ""]
    assert reward.tolist() == [0.25, 0.0, 0.0]
    assert reward.dtype == torch.get_default_dtype()
    assert terminated.tolist() == [False] * 3
    assert truncated.tolist() == [False, False, True]  # cut at the token limit
    assert not task.first.any()
    assert task.reset(flags(0, 0, 1)) == ["again", "again", "say 3"]  # new problems go on where the last reset ended
    assert task.first.tolist() == [False, False, True]
    obs, reward, terminated, truncated = task.step({"action": ["0", "1", "3"]})
    assert obs == ["", "", "again"]
    assert reward.tolist() == [1.0, 1.0, 0.25]
    assert terminated.tolist() == [True, True, False]
    assert task.correct.tolist() == [True, True, False]
    assert [one["content"] for one in task.transcripts[0]] == ["say 0", "0", "again", "0"]
    assert [one["role"] for one in task.transcripts[0]] == ["user", "assistant", "user", "assistant"]


def test_conversational_rows_get_messages() -> None:
    task = Chat(num=1)
    assert task.reset() == [[{"role": "user", "content": "say 0"}]]
    assert task.step({"action": ["0"]})[0] == [[{"role": "user", "content": "again"}]]
    assert task.step({"action": ["0"]})[0] == [[]]


def test_equal_indices_start_equally_and_a_pool_repeats() -> None:
    task = Echo(num=4, pool=3)
    assert task.size == 3
    assert task.reset(index=torch.tensor([1, 1, 4, 5])) == ["say 1", "say 1", "say 1", "say 2"]
    assert task.index.tolist() == [1, 1, 4, 5]
    assert Echo(num=4).size is None


def test_truncated_turns_are_scored_only_when_asked() -> None:
    task = Echo(num=1, score_truncated=True)
    task.reset()
    task.step({"action": ["0"], "ended": flags(0)})
    _, reward, terminated, truncated = task.step({"action": ["0"], "ended": flags(0)})
    assert (reward.item(), terminated.item(), truncated.item()) == (1.0, False, True)
    task = Echo(num=1, truncated_reward=-0.5)
    task.reset()
    _, reward, terminated, truncated = task.step({"action": ["0"], "ended": flags(0)})
    assert (reward.item(), terminated.item(), truncated.item()) == (-0.5, False, True)
    assert not task.correct.any()


def test_a_verifier_that_raises_costs_its_sample_only() -> None:
    task = Echo(num=2)
    task.reset()
    _, reward, terminated, _ = task.step({"action": ["crash", "1"]})
    assert reward.tolist() == [0.0, 0.25]
    assert terminated.tolist() == [True, False]
    assert task.failed.tolist() == [True, False]
    assert "ValueError: cannot read this" in task.failure


def test_inactive_rows_do_nothing() -> None:
    task = Echo(num=2)
    task.reset()
    task.step({"action": ["0", "1"], "ended": flags(0, 1)})
    obs, reward, terminated, truncated = task.step({"action": ["", "1"], "active": flags(0, 1)})
    assert obs == ["", ""]
    assert reward.tolist() == [0.0, 1.0]
    assert (terminated | truncated).tolist() == [False, True]
    with pytest.raises(RunError, match="row 0 of this task has ended"):
        task.step({"action": ["", ""]})


def test_the_number_of_rows_may_change_before_a_full_reset() -> None:
    task = Echo(num=2)
    task.reset()
    task.num = 3
    with pytest.raises(RunError, match="must be reset"):
        task.step({"action": ["a", "b", "c"]})
    with pytest.raises(RunError, match="reset as a whole"):
        task.reset(flags(1, 0, 0))
    assert task.reset() == ["say 2", "say 3", "say 4"]
    task.num = 1
    assert task.reset(index=torch.tensor([7])) == ["say 7"]
    assert task.first.tolist() == [True]
    assert task.step({"action": ["7"]})[1].tolist() == [0.25]


def test_what_cannot_be_stepped() -> None:
    task = Echo(num=2)
    with pytest.raises(RunError, match="before its first step"):
        task.step({"action": ["a", "b"]})
    task.reset()
    with pytest.raises(RunError, match="takes 2 texts"):
        task.step({"action": ["a"]})
    with pytest.raises(RunError, match="one 'ended' for each"):
        task.step({"action": ["a", "b"], "ended": flags(1)})


def test_state_goes_through_json_in_the_middle_of_a_conversation() -> None:
    task, other = Echo(num=2), Echo(num=5)
    task.reset()
    task.step({"action": ["0", "x"], "ended": flags(1, 0)})
    restore(other, json.loads(json.dumps(gather(task))))
    assert other.num == 2
    assert other.obs == task.obs
    assert other.transcripts == task.transcripts
    for item in (task, other):
        assert item.reset(flags(0, 1)) == ["again", "say 2"]
    for mine, theirs in zip(task.step({"action": ["0", "2"]}), other.step({"action": ["0", "2"]})):
        assert mine == theirs if isinstance(mine, list) else torch.equal(mine, theirs)
    assert task.transcripts == other.transcripts


def test_state_before_the_first_reset() -> None:
    other = Echo(num=2)
    restore(other, gather(Echo(num=2)))
    assert other.reset() == ["say 0", "say 1"]


@pytest.mark.parametrize(
    ("text", "tail"),
    [("", ""), ("7", "7"), ("a\n 12 \n\n", "12"), ("7+5=12;4+8=12;132", "132"), ("1;", ""), (" \n", "")],
)
def test_the_final_part_of_a_text(text: str, tail: str) -> None:
    assert final(text) == tail


def test_levels_are_read_from_numbers_pairs_and_texts() -> None:
    for value in ((1, 4), [1, 4], "1-4", "1,4", "1, 4"):
        assert levels_of("levels", value, (1, 9)) == (1, 4)
    assert levels_of("levels", 3, (1, 9)) == levels_of("levels", "3", (1, 9)) == (3, 3)
    for value in (0, (4, 1), (1, 2, 3), "a-b", 1.5, True, [], (1, 10)):
        with pytest.raises(UsageError, match="levels must be") as caught:
            levels_of("levels", value, (1, 9))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adition", {}, "there is no task 'adition'; did you mean 'addition'"),
        ("addition", {"digit": 2}, "the task addition has no option 'digit'; did you mean 'digits'"),
        ("addition", {"digits": 2, "levels": 3}, "the same option"),
        ("addition", {"levels": 0}, "levels must be a whole number between 1 and 100, not 0"),
        ("addition", {"scratchpad": "no"}, "scratchpad must be true or false"),
        ("addition", {"pool": 0}, "pool must be a whole number of at least 1"),
        ("addition", {"timeout": 0}, "timeout must be"),
        ("addition", {"truncated_reward": "x"}, "truncated_reward must be a number"),
        ("addition", {"workers": 2}, "the task addition makes and steps all its rows itself: leave out workers"),
        ("guess", {"preset": "image"}, "the task guess makes and steps all its rows itself: leave out preset"),
        ("guess", {"render_mode": "rgb_array"}, "leave out render_mode"),
        ("sorting", {"symbols": "runes"}, "symbols must be digits or letters"),
        ("lookup", {"levels": 4, "pairs": 4}, "pairs must be a whole number between 5 and 26"),
        ("addition", {"weights": 2.0}, "weights belong to reward functions"),
    ],
)
def test_wrong_names_and_options_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_task(name, **options)
    assert "\n" not in str(caught.value)

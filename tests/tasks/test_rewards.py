from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.rewards import Unscored, make_rewards
from polopt.tasks.text import TextTask


# Written as for TRL's GRPOTrainer.
def trl_length(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def trl_answer(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float | None]:
    return [1.0 if completion == right else None for completion, right in zip(completions, answer)]


def trl_chat(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [float(completion[0]["content"] == "yes") for completion in completions]


def simple(prompt: str, completion: str, answer: str) -> float:
    return float(completion == answer) + 0.5 * (prompt == "p1")


def reads(functions: Any, completions: list[Any], weights: Any = None, timeout: float = 5.0, **columns: Any) -> list:
    rewards = make_rewards(functions, weights, timeout)
    assert rewards is not None
    count = len(completions)
    rows = [{key: values[row] for key, values in columns.items()} for row in range(count)]
    prompts = [f"p{row}" if isinstance(text, str) else [{"role": "user", "content": "?"}]
               for row, text in enumerate(completions)]  # fmt: skip
    given = rewards(prompts, completions, rows)
    return [None if isinstance(value, Unscored) else value for value in given]


def test_both_signatures_with_weights() -> None:
    assert reads(trl_length, ["ab", "", "abc"]) == [2.0, 0.0, 3.0]
    assert reads(simple, ["a", "b"], answer=["a", "a"]) == [1.0, 0.5]
    assert reads([trl_length, simple], ["a", "b"], weights=[0.1, 10], answer=["a", "a"]) == [10.1, 5.1]
    named = f"{__name__}:trl_length,{__name__}:trl_length"
    assert reads(named, ["ab"], weights="1,0.5") == [3.0]
    assert reads(trl_chat, [[{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]]) == [
        1.0,
        0.0,
    ]
    assert reads(simple, [[{"role": "assistant", "content": "a"}]], answer=["a"]) == [1.0]  # always the text


def test_every_kind_of_list_of_numbers() -> None:
    for values in (
        [1, 2.5],
        (1.0, 2.5),
        torch.tensor([1, 2.5]),
        np.array([1, 2.5]),
        [np.float32(1), torch.tensor(2.5)],
    ):
        assert reads(lambda completions, values=values: values, ["a", "b"]) == [1.0, 2.5]
    assert reads(lambda completions: [True, False], ["a", "b"]) == [1.0, 0.0]

    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return [3.0] * len(completions)

    assert reads(later, ["a", "b"]) == [3.0, 3.0]


def test_none_means_that_a_function_does_not_apply() -> None:
    assert reads([trl_answer, trl_length], ["7", "88"], answer=["7", "7"]) == [2.0, 2.0]
    assert reads(trl_answer, ["7", "88"], answer=["7", "7"]) == [1.0, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", [1.0], None, {}, 1j])
def test_a_value_that_is_no_number_costs_its_sample(bad: Any) -> None:
    assert reads(lambda completions: [bad if text == "bad" else 1.0 for text in completions], ["a", "bad"]) == [
        1.0,
        None,
    ]
    assert reads(lambda prompt, completion: bad if completion == "bad" else 1.0, ["a", "bad"]) == [1.0, None]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), AssertionError()])
def test_a_function_that_raises_costs_the_sample_that_makes_it_raise(error: BaseException) -> None:
    asked: list[int] = []

    def fragile(completions: list[str], **kwargs: Any) -> list[float]:
        asked.append(len(completions))
        if "bad" in completions:
            raise error
        return [1.0] * len(completions)

    assert reads(fragile, ["a", "bad", "c"]) == [1.0, None, 1.0]
    assert asked == [3, 1, 1, 1]  # together, then each alone
    assert reads(fragile, ["a", "c"]) == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [[], [1.0], [1.0] * 5, 1.0, None, "ab", torch.ones(())])
def test_the_wrong_length_or_shape(wrong: Any) -> None:
    def sometimes(completions: list[str], **kwargs: Any) -> Any:
        return wrong if len(completions) > 1 else [0.5]

    assert reads(sometimes, ["a", "b"]) == [0.5, 0.5]
    if not isinstance(wrong, list) or len(wrong) != 1:
        assert reads(lambda completions: wrong, ["a", "b"]) == [None, None]
    assert reads(lambda completions: torch.ones(len(completions), 1), ["a", "b"]) == [None, None]  # (B, 1) is not (B,)


def test_a_function_that_hangs_costs_the_sample_that_makes_it_hang() -> None:
    def slow(prompt: str, completion: str) -> float:
        while completion == "bad":
            pass
        return 1.0

    begin = time.monotonic()
    assert reads(slow, ["a", "bad", "c"], timeout=0.2) == [1.0, None, 1.0]
    assert time.monotonic() - begin < 15.0


def test_a_function_that_always_hangs_costs_a_few_timeouts() -> None:
    def sleeps(completions: list[str], **kwargs: Any) -> list[float]:
        time.sleep(20)
        return [1.0] * len(completions)

    begin = time.monotonic()
    assert reads(sleeps, ["a"] * 30, timeout=0.1) == [None] * 30
    assert time.monotonic() - begin < 15.0  # 0.4 on a machine that has nothing else to do; 20 and more without limits


def test_failures_say_which_function_and_why() -> None:
    rewards = make_rewards([trl_length, simple], None, 1.0)
    assert rewards is not None
    (value,) = rewards(["p"], ["c"], [{}])
    assert isinstance(value, Unscored)
    assert value.why.startswith("the reward function 'simple' raised TypeError: ")
    assert "\n" not in value.why


@pytest.mark.parametrize(
    ("functions", "weights", "said"),
    [
        ("nowhere_at_all:f", None, "there is no module 'nowhere_at_all'"),
        ("math:nope", None, "module 'math' has no 'nope'"),
        ("math", None, "write it as module:function"),
        (3, None, "a reward is a function, module:function, verifier, judge:MODEL or scorer:MODEL, not int"),
        (lambda text: 1.0, None, "takes neither 'completions'"),
        (trl_length, [1.0, 2.0], "2 weights for 1 reward function"),
        (trl_length, "x", "weights must be numbers"),
        (trl_length, math.nan, "weights must be numbers"),
        (None, 1.0, "weights belong to reward functions"),
    ],
)
def test_what_cannot_be_a_reward(functions: Any, weights: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_rewards(functions, weights, 1.0)
    assert "\n" not in str(caught.value)


def test_a_task_counts_what_could_not_be_scored() -> None:
    def odd(completions: list[str], answer: list[str], level: list[int], **kwargs: Any) -> list[float]:
        assert level == [2] * len(completions)
        return [math.nan if text == "?" else 0.25 * (text == right) for text, right in zip(completions, answer)]

    task = make_task("addition", num=3, rewards=odd, weights=2.0)
    assert isinstance(task, TextTask)
    task.reset()
    right = str(task.problem(0).answer)
    ended = torch.tensor([True, True, False])
    _, reward, terminated, truncated = task.step({"action": [right, "?", right], "ended": ended})
    assert reward.tolist() == [0.5, 0.0, 0.0]
    assert task.failed.tolist() == [False, True, False]
    assert task.correct.tolist() == [True, False, False]  # by the task's own verifier
    assert (terminated.tolist(), truncated.tolist()) == ([True, True, False], [False, False, True])
    assert "returned nan" in task.failure


def test_rewards_of_several_turns_come_at_the_end() -> None:
    task = make_task("guess", num=1, rewards=trl_length, spare=0)
    assert isinstance(task, TextTask)
    task.reset()
    total = [task.step({"action": ["no"]})[1].item() for _ in range(4)]
    assert total == [0.0, 0.0, 0.0, 2.0]


def test_a_column_that_the_task_lacks() -> None:
    def asks(completions: list[str], ground_truth: list[str], **kwargs: Any) -> list[float]:
        return [0.0]

    with pytest.raises(
        UsageError, match=r"'asks' asks for 'ground_truth', not in the task; its columns are answer, le"
    ):
        make_task("addition", rewards=asks)

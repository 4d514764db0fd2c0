"""Several reward functions: the weighted sum, and each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import Notice, UsageError
from polopt.data import PromptGroups
from polopt.data.components import added, means, tally
from polopt.evaluation.completions import evaluate_completions
from polopt.tasks import make_task
from polopt.tasks.rewards import Unscored, make_rewards
from tests.data.texts import Turns, Typist


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def vowel(completions: list[str], **columns: Any) -> list[float | None]:
    """1 or 0, and nothing of a text that has no letter."""
    return [float(text[0] in "aeiou") if text.isalpha() else None for text in completions]


def fragile(prompt: str, completion: str) -> float:
    if "q" in completion:
        raise ValueError("no q")
    return 0.25


def ask(functions: Any, weights: Any, completions: list[str]) -> tuple[list[Any], list[float | None]]:
    """What each function says, and the rewards; Unscored as "failed" and None."""
    rewards = make_rewards(functions, weights, 5.0)
    assert rewards is not None
    parts = rewards.parts(["p"] * len(completions), completions, [{}] * len(completions))
    shown = [tuple("failed" if isinstance(part, Unscored) else part for part in row) for row in parts]
    totals = [rewards.total(row) for row in parts]
    return shown, [None if isinstance(total, Unscored) else total for total in totals]


def test_parts_are_unweighted_and_the_reward_is_their_weighted_sum() -> None:
    parts, rewards = ask([length, vowel, fragile], [0.5, 10, 2], ["abc", "b", "77", "aq"])
    assert parts == [(3.0, 1.0, 0.25), (1.0, 0.0, 0.25), (2.0, None, 0.25), (2.0, 1.0, "failed")]
    assert rewards == [0.5 * 3 + 10 + 0.5, 0.5 + 0.5, 1.0 + 0.5, None]


def test_weights_may_sum_to_0_because_nothing_is_normalized() -> None:
    assert ask([length, vowel], [1, -1], ["abc", "b"])[1] == [2.0, 1.0]
    assert ask([length, vowel], "-1, -2", ["abc", "b"])[1] == [-5.0, -1.0]


def test_weights_that_are_all_0_are_refused() -> None:
    for functions, weights in ((length, 0), ([length, vowel], [0.0, 0]), ([length, vowel], "0,0")):
        with pytest.raises(UsageError, match="every weight is 0"):
            make_rewards(functions, weights, 1.0)


def test_a_function_of_weight_0_is_watched_and_changes_nothing() -> None:
    parts, rewards = ask([vowel, fragile], [1, 0], ["a", "q", "77"])
    assert parts == [(1.0, 0.25), (0.0, "failed"), (None, 0.25)]
    assert rewards == [1.0, 0.0, None]  # its failure costs no sample, and its number does not make up for a None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_one_function_is_the_reward_to_the_bit(value: float) -> None:
    rewards = make_rewards(lambda prompt, completion: value, None, 5.0)
    assert rewards is not None
    assert rewards(["p"], ["c"], [{}]) == [value]


def test_names_are_short_and_different() -> None:
    own = f"{__name__}:length"
    rewards = make_rewards([own, length, vowel, lambda completion: 1.0, "verifier", own], None, 1.0)
    assert rewards is not None
    assert rewards.names == ["length", "length_2", "vowel", "<lambda>", "verifier", "length_3"]
    assert rewards.verifies


def test_a_batch_says_what_each_function_gave_and_where_it_failed() -> None:
    task = Turns(rewards=[length, vowel, fragile], weights=[1, 1, 0.5])
    typist = Typist({"q0": "abc", "q1": "77", "q2": "aq", "q3": "much too long"})
    with pytest.warns(Notice, match="the reward function 'fragile' raised ValueError: no q"):
        batch = PromptGroups(task, 4, 1).next(typist)
    assert task.spec.info["components"] == ["length", "vowel", "fragile"]
    assert batch["components"].tolist() == [[3, 1, 0.25], [2, 0, 0.25], [2, 1, 0], [0, 0, 0]]
    assert batch["component_known"].int().tolist() == [[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert batch["component_failed"].int().tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert batch["reward"].tolist() == [4.125, 2.125, 0, 0]
    assert batch["failed"].tolist() == [False, False, True, False]
    assert batch["truncated"].tolist() == [False, False, False, True]  # cut, so that nothing was asked
    assert means(tally(batch, task.spec.info["components"])) == {
        "reward/length": 7 / 3,
        "reward/length/share": 3 / 4,
        "reward/vowel": 1.0,
        "reward/vowel/share": 2 / 4,
        "reward/fragile": 0.25,
        "reward/fragile/share": 2 / 4,
        "reward/fragile/failed": 1 / 4,
    }


def test_where_all_got_a_number_there_is_the_mean_alone_and_where_none_did_the_share() -> None:
    task = Turns(rewards=[length, vowel])
    source = PromptGroups(task, 2, 2)
    source.next(Typist({"q0": "1", "q1": "23"}))
    assert means(source.components()) == {"reward/length": 1.5, "reward/vowel/share": 0.0}
    assert source.components() == {}
    assert PromptGroups(Turns(), 2, 2).components() == {}


def test_counts_of_batches_add_up_and_survive_a_resume() -> None:
    names = ["length", "vowel"]
    answers = Typist({"q0": "a", "q1": "77", "q2": "bcde", "q3": "of"})
    whole = tally(PromptGroups(Turns(rewards=[length, vowel]), 4, 1).next(answers), names)
    source = PromptGroups(Turns(rewards=[length, vowel]), 2, 1)
    first = tally(source.next(answers), names)
    again = PromptGroups(Turns(rewards=[length, vowel]), 2, 1)
    again.load_extra_state(source.extra_state())
    again.taken = source.taken
    second = tally(again.next(answers), names)
    assert added(first, second) == again.components() == whole


def test_of_several_turns_the_last_one_is_judged() -> None:
    task = Turns(most=2, rewards=[length, vowel])
    batch = PromptGroups(task, 2, 1).next(Typist({"q0": "a", "q1": "bcd", "0": "of"}))
    assert batch["components"].tolist() == [[1, 1], [2, 1]]
    assert batch["component_known"].all()


def test_the_verifier_may_be_one_of_them() -> None:
    task = make_task("addition", 3, pool=3, rewards=["verifier", length], weights=[1, -0.5])
    task.reset(index=torch.arange(3))
    right = task.problems([0])[0].answer
    _, reward, *_ = task.step({"action": [right, "??", ""]})
    assert task.facts["components"].tolist() == [[1, len(right)], [0, 2], [0, 0]]
    assert reward.tolist() == [1 - len(right) / 2, -1, 0]
    assert task.correct.tolist() == [True, False, False]


def test_a_verifier_that_fails_counts_where_it_is_one_of_them() -> None:
    for weights, failed in (([1, 1], True), ([0, 1], False)):
        task = Turns(2, rewards=["verifier", length], weights=weights)
        task.reset()
        _, reward, *_ = task.step({"action": ["boom", "ab"]})
        assert task.facts["component_failed"].tolist() == [[True, False], [False, False]]
        assert task.failed.tolist() == [failed, False]
        assert reward.tolist() == [0.0 if failed else 4.0, 2.0 * sum(weights)]


def test_without_answers_there_is_no_verifier(tmp_path: Any) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match="the reward 'verifier' needs a column 'answer'"):
        make_task(str(tmp_path / "p.jsonl"), rewards=["verifier", length])


def test_evaluations_score_and_show_each_function() -> None:
    class Shows(Typist):
        def decode(self, tokens: Any, mask: Any, *, behind: bool = False) -> list[str]:
            return self.env_action(tokens * mask)

    actor = Shows({"q0": "abc", "q1": "77"})
    scores, shown = evaluate_completions(actor, Turns(rewards=[length, vowel], weights=[1, 2]), 2)
    assert scores["return"] == 3.5
    assert (scores["reward/length"], scores["reward/vowel"], scores["reward/vowel/share"]) == (2.5, 1.0, 0.5)
    assert [one["components"] for one in shown] == [{"length": 3.0, "vowel": 1.0}, {"length": 2.0, "vowel": None}]
    scores, shown = evaluate_completions(actor, Turns(), 2)
    assert not any(name.startswith("reward/") for name in scores)
    assert all("components" not in one for one in shown)

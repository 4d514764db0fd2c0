"""The task `strings`: its language, its patterns, and the exact distribution of a policy over all strings."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.training import api


def test_prompts_and_what_is_right():
    task = make_task("strings", patterns=["ab", "^d.*c$"], length=4)
    one, other, again = task.problems([0, 1, 2])
    assert (one.prompt, other.prompt, again.prompt) == ("ab:", "^d.*c$:", "ab:")
    assert [task.verify(one, text) for text in ("cabd", "aabb", "abab", "ba", "abcde", "abx ", "", "abe")] == [
        *(1.0, 1.0, 1.0),
        *(0.0,) * 5,
    ]
    assert [task.verify(other, text) for text in ("daac", "dabc", "adac", "daca")] == [1, 1, 0, 0]
    assert task.verify(one, "abcd\n") == 0


def test_all_strings_and_how_many_are_right():
    task = make_task("strings", patterns=["abc", "aaa"])
    assert len(task.strings) == 4**6 == len(set(task.strings))
    assert task.strings == sorted(task.strings)
    right = task.right(0)
    assert right.shape == (4**6 + 1,)
    assert right[-1] == 0
    assert right.sum() == 4 * 4**3 - 1  # four places, and "abcabc" was counted twice
    assert task.right(1).sum() == sum("aaa" in text for text in task.strings)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_worked_solutions_are_drawn_from_the_language(skew):
    task = make_task("strings", letters=3, length=3, skew=skew)
    chance = task.language.exp()
    assert chance.sum().item() == pytest.approx(1)
    count = 4000
    drawn = Counter(problem.solution for problem in task.problems(range(count)))
    assert set(drawn) <= set(task.strings)
    for text, p in zip(task.strings, chance.tolist()):
        assert abs(drawn[text] / count - p) < 5 * math.sqrt(p / count) + 1e-9
    # By hand: the first letter is any, the others follow theirs.
    rows = {letter: torch.tensor(row) / sum(row) for letter, row in task.next_letter.items()}
    expected = 1 / 3 * rows["b"][0] * rows["a"][2]
    assert chance[task.strings.index("bac")].item() == pytest.approx(float(expected), rel=1e-5)
    assert (chance.std() < 1e-12) == (skew == 0)


def test_the_language_is_the_same_for_every_seed_and_solutions_are_not():
    one, same, other = (make_task("strings", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.language, other.language)
    texts = [[problem.solution for problem in task.problems(range(20))] for task in (one, same, other)]
    assert texts[0] == texts[1] != texts[2]
    held = make_task("strings", seed=0, evaluation=True)
    assert [problem.solution for problem in held.problems(range(20))] != texts[0]


@pytest.mark.parametrize("room", [3, 5])
def test_the_distribution_of_a_policy_is_exact(room, float64):
    settings = {"model": "tiny", "policy.max_tokens": room, "batch_prompts": 1, "samples_per_prompt": 4}
    options = {"letters": 3, "length": 3, "patterns": ("ab", "c"), "pool": 2}
    method = api.plan("rec", "strings", task_options=options, **settings).build()
    policy, task = method.policy, method.task
    found = task.distribution(policy, 1)
    assert found.shape == (28,)
    assert found.exp().sum().item() == pytest.approx(1, rel=1e-12)
    # Token by token, in the model's own words.
    tokens, end = policy.tokenizer, policy.tokens.eos
    for place in (0, 5, 26):
        text = task.strings[place]
        ids = tokens("c:" + text, add_special_tokens=False)["input_ids"] + ([end] if room > 3 else [])
        with torch.no_grad():
            log_p = policy.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(log_p[step - 1, ids[step]]) for step in range(2, len(ids)))
        assert found[place].item() == pytest.approx(expected, rel=1e-9)
    assert not torch.allclose(found, task.distribution(policy, 0))


def test_a_policy_that_cannot_write_them_is_refused():
    method = api.plan("rec", "strings", model="tiny", **{"policy.max_tokens": 5}).build()
    with pytest.raises(UsageError, match="strings of 6 letters need max_tokens 6"):
        method.task.distribution(method.policy, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"letters": 1}, "letters must be a whole number between 2 and 26"),
        ({"length": 0}, "length must be a whole number between 1 and 18"),
        ({"letters": 26, "length": 5}, "more than 262,144 strings of length 5"),
        ({"patterns": "(a"}, "a pattern is a regular expression, not '\\(a'"),
        ({"patterns": [3]}, "a pattern is a regular expression, not 3"),
        ({"patterns": []}, "needs a pattern"),
        ({"skew": "much"}, "skew must be a number"),
        ({"heldout": True}, "heldout has no effect on strings"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_task("strings", **options)
    assert "\n" not in str(caught.value)


def test_rewards_of_ones_own_see_the_pattern():
    def share(completion, pattern):
        return len(re.findall(pattern, completion)) / 6

    task = make_task("strings", patterns="a", rewards=share)
    task.reset()
    _, reward, terminated, _ = task.step({"action": ["abacad"]})
    assert (reward.tolist(), terminated.tolist()) == ([0.5], [True])

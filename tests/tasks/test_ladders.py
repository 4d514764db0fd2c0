"""Help with problems: what is shown, what is judged, and how ids count."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data.curricula import Given
from polopt.data.prompt_groups import PromptGroups
from polopt.data.tokenizing import Tokens
from polopt.tasks import make_task
from polopt.tasks.ladders import PARTIAL, Cuts, Hints, Tiers, beginning
from polopt.tasks.orbit import Orbit
from polopt.training import api
from tests.data.conversations import made
from tests.policies.language_models import tiny_policy

OF_ANSWER = ("completion", "mask")


@given(
    st.text(alphabet="ab;\n", min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.sampled_from(["character", "line", "step"]),
)
def test_a_beginning_is_never_all(text, fraction, piece):
    found = beginning(text, fraction, piece)
    assert text.startswith(found)
    assert len(found) < len(text)


def test_beginnings_end_between_pieces():
    text = "7+5=12;4+8+1=13;132"
    assert [beginning(text, share, "step") for share in (0.1, 0.5, 0.7, 0.99)] == [
        "7+5=12;", "7+5=12;", "7+5=12;4+8+1=13;", "7+5=12;4+8+1=13;",
    ]  # fmt: skip
    assert beginning("one\ntwo\nthree", 0.67, "line") == "one\ntwo\n"
    assert beginning("abcd", 0.5, "character") == "ab"


def test_every_problem_has_an_id_for_every_help():
    task = make_task("orbit", pool=3)
    helped = task.with_ladder(Cuts((0.25, 0.5)))
    assert (task.size, helped.size, helped.count) == (3, 9, 3)
    plain, shown = task.problems(range(3)), helped.problems(range(9))
    assert shown[::3] == plain
    for level, share in ((1, 4), (2, 8)):
        for problem, variant in zip(plain, shown[level::3]):
            assert variant.prompt == problem.prompt + problem.answer[:share]
            assert (variant.given, variant.solution) == (problem.answer[:share], problem.answer[share:])
            assert variant.key == problem.key
    assert helped.problems([9])[0] == plain[0]  # from the beginning again
    assert make_task("orbit").with_ladder(Cuts((0.5,))).size is None


def test_what_is_judged_is_what_was_given_and_what_is_written():
    task = make_task("orbit", pool=2, num=2).with_ladder(Cuts((0.5,)))
    problem = task.problems([1])[0]
    task.reset(index=[1, 0])
    _, reward, *_ = task.step({"action": [problem.solution, problem.solution]})
    assert reward.tolist() == [1.0, 0.0]  # the second was shown nothing, and only half is written
    assert task.demonstrations([1]) == [(problem.prompt, problem.solution)]


def test_rewards_of_the_user_get_the_whole_answer():
    seen = []

    def whole(completions, **columns):
        seen.extend(completions)
        return [1.0] * len(completions)

    task = make_task("orbit", pool=2, rewards=whole).with_ladder(Cuts((0.5,)))
    task.reset(index=[1])
    problem = task.problems([1])[0]
    task.step({"action": [problem.solution]})
    assert seen == [problem.answer]


def test_messages_and_words():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}]
    problem = make_task("addition").problems([0])[0].__class__(messages, "2", "one;two", columns={"hints": ["a", "b"]})
    begun = Cuts((0.6,), piece="step").climb(problem, 1, "")
    assert begun.prompt == [*messages, {"role": "assistant", "content": "one;"}]
    further = Cuts((0.6,)).climb(begun, 1, "")
    assert further.prompt[-1]["content"] == "one;t"
    assert (further.given, further.solution) == ("one;t", "wo")
    told = Cuts((0.6,), piece="step", words=PARTIAL).climb(problem, 1, "")
    assert told.prompt == [messages[0], {"role": "user", "content": PARTIAL.format(prompt="1+1?", given="one;")}]
    hinted = [Hints(3).climb(problem, level, "").prompt[1]["content"] for level in (1, 2, 3)]
    assert hinted == ["1+1?\nHint: a\n", "1+1?\nHint: b\n", "1+1?\nHint: b\n"]
    assert Hints(1, words="{hint}. {prompt}").climb(problem, 1, "").prompt[1]["content"] == "a. 1+1?"
    assert Hints(1).climb(problem, 1, "").given == ""


def test_tiers_are_of_one_column_each():
    columns = {"know_how": ["k", "l"], "plan": ["p"]}
    problem = make_task("addition").problems([0])[0].__class__("1+1?", "2", columns=columns)
    ladder = Tiers(("know_how", "plan"), 2)
    assert ladder.levels == 4
    told = [ladder.climb(problem, level, "").prompt for level in range(1, 5)]
    assert told == [
        f"1+1?\n{text}\n" for text in ("Know hints: k", "Know hints: k l", "Plan hints: p", "Plan hints: p")
    ]
    assert Tiers(("plan",), words="{label}! {hint}. {prompt}").climb(problem, 1, "").prompt == "Plan! p. 1+1?"
    assert ladder.climb(problem, 3, "").given == ""


def test_drawn_cuts_are_drawn_once():
    ladder = Cuts(lambda rng: rng.uniform(0.4, 0.8), count=3)
    task = make_task("orbit", pool=8, seed=1).with_ladder(ladder)
    lengths = [len(problem.given) for problem in task.problems(range(32)) if problem.given]
    assert lengths == [len(problem.given) for problem in task.problems(range(32)) if problem.given]
    assert (min(lengths), max(lengths)) == (6, 12)
    assert len(set(lengths)) > 4


def test_groups_are_of_one_help_and_given_ids(float64):
    policy = tiny_policy()
    task = make_task("orbit", pool=4).with_ladder(Cuts((0.5,)))
    source = PromptGroups(task, 2, 3, sampler=Given([5, 4]))
    batch = source.next(policy)
    assert batch["index"].tolist() == [5, 5, 5, 4, 4, 4]
    assert batch["group"].tolist() == [0, 0, 0, 1, 1, 1]
    prompts = policy.decode(batch["prompt"], batch["prompt_mask"])
    assert [len(text) for text in prompts[::3]] == [3 + 8, 3]
    assert prompts[0] == task.problems([5])[0].prompt
    other = PromptGroups(task, 2, 3, sampler=Given())
    restore(other, gather(source))
    assert other.sampler.ids == [5, 4]


@pytest.mark.parametrize("kind", ["bytes", "pieces-first", "pieces-legacy", "unigram"])
def test_a_cut_inside_a_token_is_gone_on_from(kind, tmp_path):
    """Every cut of a word that is one token shows that text, spelled with other tokens, and the rest ends it."""
    tokenizer, file = made(kind, bos=False), tmp_path / "some.jsonl"
    file.write_text(json.dumps({"prompt": "what is the", "answer": "x answer", "solution": " answer"}))
    task = make_task(str(file), rewards=lambda prompts, completions: [float(text == " answer") for text in completions])
    shown = task.with_ladder(Cuts(tuple(count / 7 for count in range(1, 7))))
    tokens = Tokens(tokenizer, "m")
    for level, problem in enumerate(shown.problems(range(1, 7)), 1):
        assert problem.prompt == "what is the" + " answer"[:level]
        (prompt,), (rest,) = tokens.complete([problem.prompt], [problem.solution])
        assert (tokens.texts([prompt]), tokens.texts([rest], behind=True)) == ([problem.prompt], [problem.solution])
        shown.num = 1
        shown.reset(index=torch.tensor([level]))
        written = tokens.decode(torch.tensor([rest]))
        assert shown.step({"action": written})[1].tolist() == [1.0]


@pytest.mark.parametrize("words", [None, PARTIAL])
def test_reward_functions_get_the_whole_answer_to_messages_too(words, tmp_path):
    def noting(completions, **columns):
        seen.extend(completions)
        return [1.0]

    seen, file = [], tmp_path / "some.jsonl"
    row = {"messages": [{"role": "user", "content": "1+1?"}], "answer": "2", "solution": "it is 2"}
    file.write_text(json.dumps(row))
    task = make_task(str(file), rewards=noting).with_ladder(Cuts((0.5,), words=words))
    for index in (1, 0):
        task.reset(index=torch.tensor([index]))
        task.step({"action": ["is 2"]})
    assert [turns[0]["content"] for turns in seen] == ["it is 2", "is 2"]
    assert [len(turns) for turns in seen] == [1, 1]


def test_a_help_that_is_longer_than_the_context_is_refused():
    policy = tiny_policy()
    task = make_task("orbit", pool=2, levels=200).with_ladder(Cuts((0.9,)))
    policy.context = 64
    with pytest.raises(UsageError, match="holds 64: leave out long rows"):
        policy.tokenize([problem.prompt for problem in task.problems(range(4))])


def test_hints_come_from_a_column_of_a_file(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [{"prompt": "a", "answer": "b", "hints": ["x", "y"]}, {"prompt": "c", "answer": "d"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = make_task(str(path), heldout=0).with_ladder(Hints(2))
    assert task.size == 6
    assert [problem.prompt for problem in task.problems([0, 1, 2])] == ["a", "a\nHint: x\n", "a\nHint: y\n"]
    with pytest.raises(UsageError, match="hints are a list of texts in the column 'hints', and a problem has None"):
        task.problems([4])


def test_training_shows_what_evaluation_does_not():
    options = {"pool": 4, "heldout": False, "shown": (0.0, 1.0)}
    task, plain = make_task("orbit", **options), make_task("orbit", pool=4, heldout=False)
    assert (task.size, task.problems(range(0, 8, 2))) == (8, plain.problems(range(4)))
    for problem, whole in zip(task.problems(range(1, 8, 2)), plain.problems(range(4))):
        assert 1 <= len(problem.given) <= 15
        assert problem.prompt == whole.prompt + problem.given
        assert problem.given + problem.solution == whole.solution
    assert make_task("orbit", evaluation=True, **options).problems(range(4)) == plain.problems(range(4, 8))
    lengths = [len(each.given) for each in make_task("orbit", shown=(0.0, 1.0)).problems(range(1, 400, 2))]
    assert sorted(set(lengths)) == list(range(1, 16))
    assert abs(sum(lengths) / len(lengths) - 7.56) < 0.7  # of floor(16 u), and 1 for 0


def test_what_is_shown_may_be_told_in_words():
    task = make_task("orbit", pool=1, shown=(0.25, 0.25), words="{given} begins {prompt}")
    plain, told = task.problems([0, 1])
    assert told.prompt == f"{plain.answer[:4]} begins {plain.prompt}"
    assert told.given == plain.answer[:4]


def test_sft_learns_the_rest_of_what_is_shown():
    method = api.plan("sft", "orbit", task_options={"shown": (0.5, 0.5)}, model="tiny", batch_size=4).build()
    batch = method.collect()
    texts = [method.policy.decode(batch[name], batch[mask]) for name, mask in (("prompt", "prompt_mask"), OF_ANSWER)]
    whole, begun = method.task.problems([0, 1])
    assert (texts[0][0], texts[1][0]) == (whole.prompt, whole.solution)
    assert (texts[0][1], texts[1][1]) == (begun.prompt, begun.solution)
    assert begun.solution == whole.solution[8:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cuts(()), "at least one level"),
        (lambda: Cuts((0.5, 0.4)), r"ascend between 0 and 1, not as \(0.5, 0.4\)"),
        (lambda: Cuts((1.0,)), "ascend between 0 and 1"),
        (lambda: Cuts((0.5,), piece="word"), "pieces are character, step, line"),
        (lambda: Cuts(lambda rng: 0.5), "at least one level"),
        (lambda: Hints(0), "at least one level"),
        (lambda: Tiers(()), "at least one level"),
        (lambda: Tiers(("a",), 0), "at least one level"),
        (lambda: make_task("orbit", shown=0.5), "two shares of a solution, the lower first, between 0 and 1, not 0.5"),
        (lambda: make_task("orbit", shown=(0.5, 0.4)), "the lower first"),
        (lambda: make_task("orbit", shown=(0.5, 1.4)), "between 0 and 1"),
        (lambda: make_task("orbit", words="{prompt}{given}"), "give both"),
        (
            lambda: make_task("orbit", shown=(0, 1), words="{prompt}"),
            "words have {prompt} and {given} in them, and braces",
        ),
        (lambda: Cuts((0.5,), words="{prompt}{given}{x}"), "braces of their own doubled: {{ and }}"),
        (lambda: Cuts((0.5,), words="{prompt}{given}{label}"), "braces of their own doubled"),
        (lambda: Hints(1, words="{prompt}{hint}{label}"), "braces of their own doubled"),
        (lambda: Cuts((0.5,), words="{prompt.text}{given}"), "braces of their own doubled"),
        (lambda: Hints(1, words="{prompt}"), "words have {prompt} and {hint} in them"),
        (lambda: Tiers(("a",), words="{label} {hint}"), "words have {prompt} and {hint} in them"),
        (lambda: make_task("orbit", shown=(0, 1)).with_ladder(Cuts((0.5,))), "already: leave out --task.shown"),
        (lambda: make_task("orbit", noise=1.0), "noise is a share below 1"),
        (lambda: make_task("orbit", maps=1, states=4), "too few to hold an eighth of them out"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_problem_without_a_solution_has_no_beginning():
    problem = make_task("addition").problems([0])[0].__class__("a", "b")
    with pytest.raises(UsageError, match="without a worked solution"):
        Cuts((0.5,)).climb(problem, 1, "")


def test_orbits_follow_their_maps():
    task = make_task("orbit", maps=2, states=5, levels=(3, 7), heldout=False)
    assert isinstance(task, Orbit)
    for problem in task.problems(range(20)):
        which, state = int(problem.prompt[0]), problem.prompt[1]
        for letter in problem.answer:
            state = task.maps[which][state]
            assert letter == state
        assert 3 <= problem.level == len(problem.answer) <= 7
        assert problem.solution == problem.answer
        assert task.verify(problem, problem.answer) == 1
        assert task.verify(problem, problem.answer[:-1]) == 0
    assert len({problem.key for problem in task.problems(range(10))}) == 10
    assert all(sorted(each.values()) == sorted(each) for each in task.maps)
    assert make_task("orbit", seed=5).maps == make_task("orbit").maps


def test_an_eighth_of_the_orbits_is_held_out():
    train, held = (make_task("orbit", evaluation=evaluation) for evaluation in (False, True))
    keys = [{problem.key for problem in task.problems(range(64))} for task in (train, held)]
    assert (len(keys[0]), len(keys[1]), keys[0] & keys[1]) == (56, 8, set())
    every = make_task("orbit", heldout=False)
    assert {problem.key for problem in every.problems(range(64))} == keys[0] | keys[1]


def test_noise_goes_on_from_where_it_leads():
    task = make_task("orbit", noise=0.5, heldout=False)
    right = total = 0
    for problem in task.problems(range(200)):
        which, state = int(problem.prompt[0]), problem.prompt[1]
        for letter in problem.solution:
            right, total = right + (letter == task.maps[which][state]), total + 1
            state = letter
    assert abs(right / total - (0.5 + 0.5 / 16)) < 0.03
    first, again = task.problems([0, 64])
    assert first.prompt == again.prompt
    assert first.solution != again.solution  # another id of the same problem

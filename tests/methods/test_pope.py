"""POPE by hand: which problems are hard, how much help each gets, what is asked, and what is learned from it."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.config import apply
from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.methods.language.pope import INSTRUCTION, POPE, PrefixSearch, grid
from polopt.training import api
from tests.guards.harness import advance, built, reseed
from tests.policies.language_models import tiny_folder

MUST = 5
NEED = [9, 0, 3, 4, 5, 2, 7, 1]  # letters of its answer that each problem of the pool must be shown; 9: never enough
LETTERS, CUTS = 16, (2, 4, 6, 8)  # of an orbit, and what is shown of it at the levels 1 to 4


def make(task="orbit", options=None, **settings):
    """POPE with 2 samples of 4 prompts and help of up to half of an answer, in four cuts.

    The reward of an orbit is 1 when the problem was shown the letters that it needs: no tiny model writes them itself.
    """
    need = {}

    def reward(completion, answer):
        return float(completion.startswith(answer[: need[answer]]) and need[answer] <= 8)

    options = {"pool": len(NEED), "score_truncated": True} | (options or {})
    if task == "orbit":
        options = {"rewards": reward} | options
    settings = {"model": str(tiny_folder(context=256)), "policy.max_tokens": 4, "lr": 1e-2, "loggers": ()} | settings
    settings = {"batch_prompts": 4, "samples_per_prompt": 2} | settings
    if settings.get("guided_share", 1):
        settings = {"max_fraction": 0.5} | settings
        if settings.get("prefix") != "longest":
            settings = {"cuts": 4, "search_samples": 2} | settings
    if settings.get("hard_only", True):
        settings = {"search_samples": 2} | settings
    method = api.plan("pope", task, task_options=options, **settings).build()
    need.update({problem.answer: least for problem, least in zip(method.task.problems(range(len(NEED))), NEED)})
    return method


def searched(method):
    """The ids that were tried, batch by batch, until the search is over."""
    tried = []
    while method.search.queue:
        batch = method.collect()
        tried.append(batch["index"][:: method.config.search_samples].tolist())
        method.update(batch)
    return tried


def level_of(need):
    return next((level for level, shown in enumerate(CUTS, 1) if shown >= need), 4)


# The search


def test_must_2_the_shortest_beginning_with_which_a_sample_is_right():
    """By hand: problem 1 needs nothing and is left out; problem 0 is never solved and gets the longest."""
    method = make(batch_prompts=2, samples_per_prompt=3)  # at most 6 completions at once: three prompts
    before = {name: value.clone() for name, value in method.policy.state_dict().items()}
    tried = [[divmod(each, 5) for each in ids] for ids in searched(method)]
    assert tried == [
        [(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0), (5, 0)], [(6, 0), (7, 0), (0, 1)],
        [(2, 1), (3, 1), (4, 1)], [(5, 1), (6, 1), (7, 1)], [(0, 2), (2, 2), (3, 2)],
        [(4, 2), (6, 2), (0, 3)], [(4, 3), (6, 3), (0, 4)], [(6, 4)],
    ]  # fmt: skip
    assert method.search.hard == [0, 2, 3, 4, 5, 6, 7]
    assert method.search.level == [4, 0, 2, 2, 3, 1, 4, 1]
    assert method.ledger.completions == 2 * sum(map(len, tried))  # the search is charged
    assert method.ledger.tokens > 0
    assert all(torch.equal(value, before[name]) for name, value in method.policy.state_dict().items())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.booleans())
def test_search_of_any_problems(need, test):
    """Levels 1 to 4, of which level 3 shows no more than 2; a problem is solved from the level that it needs."""
    search = PrefixSearch(
        len(need), lambda problem, level: {0: 1, 1: 2, 2: 4, 3: 4}.get(level), test=test, minimal=True
    )
    tried = []
    while search.queue:
        problem, level = search.queue.pop(0)
        tried.append((problem, level))
        search.note(problem, level, level >= need[problem])
    hard = [problem for problem, least in enumerate(need) if least > 0 or not test]
    assert search.hard == hard
    expected = {0: 1, 1: 1, 2: 2, 3: 4, 4: 4, 5: 4, 6: 4}
    assert search.level == [expected[least] if problem in hard else 0 for problem, least in enumerate(need)]
    assert len(set(tried)) == len(tried)
    assert all(level <= search.level[problem] for problem, level in tried)


def test_one_right_sample_is_enough_and_failed_ones_are_none():
    method = make(search_samples=4)
    batch = method.collect()  # 2 problems, 4 samples each
    batch["reward"] = torch.tensor([0, 0, 1, 0, 1.0, 0, 0, 0])
    batch["failed"] = torch.tensor([False] * 4 + [True] + [False] * 3)
    method.update(batch)
    assert method.search.hard == [1]
    assert method.search.queue[-1] == [1, 1]
    assert method.search.queue[0] == [2, 0]


def test_success_is_a_reward():
    method = make(success=0.25)
    batch = method.collect()
    batch["reward"] = torch.tensor([0.0, 0.25, 0.0, 0.2, 0.0, 0.0, 1.0, 0.0])
    method.update(batch)
    assert method.search.hard == [1, 2]


def test_the_longest_beginning_for_all_without_a_search():
    method = make(prefix="longest")
    assert [[divmod(each, 2) for each in ids] for ids in searched(method)] == [
        [(problem, 0) for problem in range(4)], [(problem, 0) for problem in range(4, 8)],
    ]  # fmt: skip
    assert method.search.level == [1, 0, 1, 1, 1, 1, 1, 1]
    asked = method.helped.problems([method.asked(problem, 1) for problem in range(8)])
    assert {len(problem.given) for problem in asked} == {8}
    assert not make(prefix="longest", hard_only=False).search.queue


def test_all_problems_are_hard_if_told_so():
    method = make(hard_only=False)
    assert method.search.hard == list(range(8))
    assert method.search.queue == [[problem, 1] for problem in range(8)]
    searched(method)
    assert method.search.level == [level_of(need) for need in NEED]


def test_nothing_is_hard():
    method = make(options={"rewards": lambda completion: 1.0})
    searched(method)
    with pytest.raises(RunError, match="every problem of orbit was solved without help: --hard-only false trains on"):
        method.collect()


def test_short_solutions_have_few_beginnings():
    """Of four letters the shares 1/8, 1/4, 3/8 and 1/2 are 1, 1, 1 and 2; of one letter there is no beginning."""
    method = make(options={"levels": 4})
    assert [method.longer(0, level) for level in range(5)] == [1, 4, 4, 4, None]
    method = make(options={"levels": 1})
    assert [method.longer(0, level) for level in range(5)] == [None] * 5


def test_the_grid():
    assert grid(4, 0.5) == (0.125, 0.25, 0.375, 0.5)
    assert grid(1, 0.25) == (0.25,)


# What is asked


def drawn(method, batches):
    searched(method)
    return [method.collect() for _ in range(batches)]


def test_must_3_half_of_every_batch_is_guided_and_both_go_through_all_hard_problems():
    method = make(batch_prompts=14, samples_per_prompt=1)
    first, second = drawn(method, 2)
    for batch in (first, second):
        problem, level = batch["index"] // 5, batch["index"] % 5
        guided = level > 0
        assert guided.tolist() == [True, False] * 7
        for half in (problem[guided], problem[~guided]):
            assert sorted(half.tolist()) == method.search.hard
        assert level[guided].tolist() == [method.search.level[each] for each in problem[guided]]
    assert first["index"].tolist() != second["index"].tolist()  # a new order in each epoch
    assert (first["index"] // 5)[::2].tolist() != (first["index"] // 5)[1::2].tolist()


@pytest.mark.parametrize(("share", "guided"), [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_share_of_guided_prompts(share, guided):
    method = make(guided_share=share)
    (batch,) = drawn(method, 1)
    problem, level = batch["index"][::2] // (method.ladder.levels + 1), batch["index"][::2] % (method.ladder.levels + 1)
    assert int((level > 0).sum()) == guided
    assert set(problem.tolist()) <= set(method.search.hard) == {0, 2, 3, 4, 5, 6, 7}


def test_must_1_help_stands_in_the_prompt_and_is_no_target():
    method = make(max_fraction=0.9)
    (batch,) = drawn(method, 1)
    texts = method.policy.decode(batch["prompt"], batch["prompt_mask"])
    written = method.policy.decode(batch["completion"], batch["attention"], behind=True)
    for text, answer, problem, index in zip(
        texts, written, method.helped.problems(batch["index"].tolist()), batch["index"].tolist()
    ):
        plain = method.task.problems([index // 5])[0]
        assert problem.answer == plain.answer
        if index % 5:
            assert text == INSTRUCTION.format(prompt=plain.prompt, given=problem.given)
            assert problem.answer.startswith(problem.given)
            assert not answer.startswith(problem.given)
        else:
            assert text == plain.prompt
    # What has a gradient are the sampled tokens and no others.
    part = next(iter(method.optimizer_batches(method.evaluate_groups(batch))))
    log_prob = method.policy.log_prob(part)
    assert log_prob.shape == batch["mask"].shape
    assert batch["mask"].sum(1).max() <= 4
    assert (part["weight"] > 0).equal(batch["mask"])


def test_messages_are_told_in_the_turn_of_the_user(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}+1?"}], "answer": str(n + 1), "solution": f"one more\n{n + 1}"}
        for n in range(3)
    ]
    place = tmp_path / "sums.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)))
    settings = {"cuts": 1, "max_fraction": 0.5, "piece": "line"}
    helped = api.plan("pope", str(place), model="tiny", loggers=(), **settings).build().helped
    (message,) = helped.problems([1])[0].prompt
    assert message == {"role": "user", "content": INSTRUCTION.format(prompt="0+1?", given="one more\n")}


# What is learned


def test_must_3_groups_are_of_a_problem_and_a_way_of_asking(float64):
    """Both ways of asking are in the batch, of the same problem too, and each has a mean of its own."""
    method = make(samples_per_prompt=4, hard_only=False)
    searched(method)
    method.orders[0].draw = method.orders[1].draw = lambda count: [2, 3][:count]
    batch = method.collect()
    assert (batch["index"] // 5).tolist() == [2] * 8 + [3] * 8
    reward = np.array([[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=float)
    batch["reward"] = torch.tensor(reward.reshape(-1))
    centered = reward - reward.mean(1, keepdims=True)
    expected = centered / (reward.std(1, ddof=1, keepdims=True) + method.config.baseline.std_eps)
    found = method.evaluate_groups(batch)["advantage"].reshape(4, 4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert found[1, 3] > found[0, 0] > 0  # a success that is rare without help counts for more than one with it


def test_both_halves_weigh_the_same_whatever_their_lengths():
    method = make()
    (batch,) = drawn(method, 1)
    guided = batch["index"] % 5 > 0
    for name in ("mask", "attention"):
        batch[name] = torch.arange(batch["mask"].shape[1]) < torch.where(guided, 1, 3).unsqueeze(1)
    weight = method.weigh(batch)["weight"]
    assert weight[guided].sum().item() == pytest.approx(0.5)
    assert weight[~guided].sum().item() == pytest.approx(0.5)


def test_metrics_by_hand():
    method = make(options={"rewards": None, "score_truncated": True}, hard_only=False, samples_per_prompt=2)
    method.search.queue, method.search.hard, method.search.level = [], [0, 1, 2], [1, 2, 4, 0, 0, 0, 0, 0]
    batch = method.collect()
    guided = batch["index"] % 5 > 0
    assert guided.sum() == 4
    batch["correct"] = torch.where(guided, torch.arange(8) % 4 == 0, torch.arange(8) % 4 == 2)
    right = [batch["correct"][rows].double().mean().item() for rows in (guided, ~guided)]
    batch["failed"] = torch.zeros(8, dtype=torch.bool)
    metrics = method.ways_metrics(batch)
    assert [float(metrics[name]) for name in ("guided_accuracy", "unguided_accuracy")] == pytest.approx(right)
    assert float(metrics["shown"]) == pytest.approx((0.125 + 0.25 + 0.5) / 3)
    assert float(metrics["hard"]) == pytest.approx(3 / 8)
    assert float(metrics["leaked"]) == 0
    batch["failed"] = guided & ~batch["correct"]
    assert float(method.ways_metrics(batch)["guided_accuracy"]) == 1.0  # failed rows do not count


def test_must_5_help_that_is_right_by_itself_is_seen(tmp_path):
    """The cuts are "3+4 i" and "3+4 is 7, ", of which the last number is 4 and the answer."""
    place = tmp_path / "sum.jsonl"
    place.write_text(json.dumps({"prompt": "3+4=", "answer": "7", "solution": "3+4 is 7, so 7"}))
    options = {"match": "number", "pool": None}
    method = make(str(place), options, cuts=2, max_fraction=0.75, hard_only=False)
    batch = method.collect()
    for level, given_, leaked in ((1, "3+4 i", 0.0), (2, "3+4 is 7, ", 1.0)):
        assert method.helped.problems([level])[0].given == given_
        batch["index"] = torch.full_like(batch["index"], level)
        assert float(method.ways_metrics(batch)["leaked"]) == leaked


def test_must_4_what_is_evaluated_is_asked_without_help():
    planned = api.plan(
        "pope", "orbit", task_options={"pool": 8}, model=str(tiny_folder(context=256)), loggers=(),
        **{"policy.max_tokens": 2},
    )  # fmt: skip
    method, task = planned.build(), planned.make_task(1, 2)
    method.evaluate(task, 4)
    assert [shown["prompt"] for shown in method.samples] == [each.prompt for each in task.problems(range(4))]


def test_without_help_it_is_grpo_that_collects_for_itself(float64):
    """Three epochs of six problems, the same luck for both."""
    histories = []
    for name, settings in (("pope", {"guided_share": 0.0, "hard_only": False}), ("grpo", {"reference_kl": None})):
        common = {"model": str(tiny_folder()), "policy.max_tokens": 4, "lr": 1e-2, "loggers": (), "seed": 3}
        planned = api.plan(
            name, "vowels", task_options={"pool": 6, "score_truncated": True}, batch_prompts=4, samples_per_prompt=3,
            **common, **settings,
        )  # fmt: skip
        method, seen = planned.build(), []
        for update in range(4):
            torch.manual_seed(update)
            batch = method.collect()
            levels = method.ladder.levels + 1 if name == "pope" else 1
            seen.append((batch["index"] // levels, batch["completion"], batch["reward"]))
            method.generator.manual_seed(update)
            method.update(batch)
        histories.append((seen, gather(method.policy)))
    (one, policy), (other, plain) = histories
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*one), itertools.chain(*other)))
    assert all(torch.equal(policy[path], plain[path]) for path in policy if torch.is_tensor(policy[path]))


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_goes_on_bitwise_amid_the_search_and_amid_an_epoch(stop):
    """The search of the smoke run takes 4 batches, an epoch of six problems 3 of two each."""
    with built("pope") as method, built("pope") as other:
        advance(method, 10**6, updates=stop)
        assert bool(method.search.queue) == (stop < 4)
        restore(
            other, {path: value.clone() if torch.is_tensor(value) else value for path, value in gather(method).items()}
        )
        found = []
        for each in (method, other):
            reseed()
            rows = advance(each, 10**6, updates=5)
            found.append((rows, each.search.level, each.ledger.completions, each.source.sampler.draw(8)))
        assert found[0] == found[1]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": "{prompt}"}, "words have {prompt} and {given} in them"),
        ({"words": "{prompt} {given} boxed{}"}, "braces of their own doubled"),
        ({"guided_share": 0.3}, "guided_share 0.3 of 16 prompts is no whole number of prompts"),
        ({"guided_share": 0.0, "cuts": 4}, "cuts has no effect without guided prompts"),
        ({"prefix": "longest", "cuts": 4}, "cuts has no effect on the prefix 'longest'"),
        ({"prefix": "longest", "hard_only": False, "search_samples": 2}, "search_samples has no effect where nothing"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message.replace("{", r"\{").replace("}", r"\}")):
        POPE.Config(model="tiny", **settings)


def test_tasks_that_cannot_be(tmp_path):
    with pytest.raises(
        UsageError, match="pope looks once for the help that each problem needs: it needs finitely many"
    ):
        make(options={"pool": None, "rewards": None})
    place = tmp_path / "bare.jsonl"
    place.write_text('{"prompt": "1+1=", "answer": "2"}')
    with pytest.raises(UsageError, match="without a worked solution has none to show the beginning of"):
        api.plan("pope", str(place), model="tiny", hard_only=False, loggers=()).build()
    with pytest.raises(UsageError, match="a prompt with one token of an answer has"):
        make(words="{prompt}" + 300 * " " + "{given}").prepare()


def test_the_papers_settings():
    """With a tiny model in place of Qwen3."""
    planned = api.plan(
        "pope", "orbit", preset="paper", model="tiny", task_options={"pool": 2}, loggers=(), **{"policy.max_tokens": 4}
    )
    config = planned.config
    assert (config.search_samples, config.max_fraction, config.guided_share) == (128, 0.25, 0.5)
    assert (config.lr, config.surrogate.clip_low, config.surrogate.clip_high) == (1e-6, 0.2, 0.2)
    assert (config.reference_kl, config.aggregate) == (None, "sequence")
    assert POPE.presets["paper"]["policy.max_tokens"] == 16_384
    assert planned.build().search.queue == [[0, 0], [1, 0]]


def test_groups_are_not_left_out_of_a_mixture():
    with pytest.raises(UsageError, match="dynamic_sampling has no effect where guided prompts have a share"):
        apply(POPE.Config, {"dynamic_sampling": 4})
    assert apply(POPE.Config, {"dynamic_sampling": 4, "guided_share": 0.0}).dynamic_sampling == 4

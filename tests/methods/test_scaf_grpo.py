"""Scaf-GRPO: when help is given, which answer is taken, and what is learned of it, with numbers written out."""

from __future__ import annotations

import json

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.methods.language.scaf_grpo import OFFICIAL, substitutes, unsolved
from polopt.tasks.ladders import PARTIAL
from polopt.training.api import plan
from tests.guards.harness import parameters
from tests.policies.language_models import tiny_folder

MUST = 4
PROMPTS, SAMPLES, LEVELS = 3, 4, 3


def method(shown=(4, 4, 4), **settings):
    """A method for three orbits of eight letters, of which a level shows two more than the one before.

    An answer to problem i is rewarded where the prompt shows `shown[i]` letters or more, whatever is written: 0 always
    does, 9 never."""
    given = settings.pop("task_options", {})

    def long_enough(prompts, completions, level, **columns):
        return [float(len(prompt) - 3 >= shown[keys.index(prompt[:3])]) for prompt in prompts]

    defaults = {"model": str(tiny_folder()), "batch_prompts": PROMPTS, "samples_per_prompt": SAMPLES, "lr": 1e-2}
    defaults |= {"updates_per_batch": 1, "warmup": 0, "levels": LEVELS, "words": "{prompt}{given}"}
    defaults |= {"policy.max_tokens": 4}
    options = {"levels": 8, "pool": 3, "heldout": False, "score_truncated": True, "rewards": long_enough} | given
    built = plan("scaf-grpo", "orbit", task_options=options, loggers=(), **{**defaults, **settings}).build()
    keys = [problem.prompt for problem in built.task.problems(range(3))]
    return built


def shown_in(learner, rows):
    """Letters that the prompts of these rows show."""
    return [len(text) - 3 for text in learner.policy.decode(rows["prompt"], rows["prompt_mask"])]


def test_a_group_is_unsolved_when_no_valid_reward_differs_from_0():
    reward = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0])  # the seventh is none
    group = torch.arange(5).repeat_interleave(2)
    valid = torch.tensor([True] * 6 + [False, True] + [False] * 2)
    assert unsolved(reward, group, valid).tolist() == [True, True] + [False] * 4 + [True, True] + [False] * 2


def test_must_1_the_least_help_that_works_takes_the_place_of_the_first_failure():
    group = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 0, 2, 2, 2])
    help_ = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 1, 2])
    reward = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    valid = torch.ones(12, dtype=torch.bool)
    assert substitutes(reward, group, valid, help_).tolist() == [7, 1, 2, 3, 10, 5]
    valid[10] = False  # its reward could not be computed
    assert substitutes(reward, group, valid, help_).tolist() == [7, 1, 2, 3, 9, 5]
    assert substitutes(reward * 0, group, valid, help_).tolist() == [0, 1, 2, 3, 4, 5]


def test_must_1_help_is_for_unsolved_prompts_only_and_one_answer_a_level():
    learner = method(shown=(0, 4, 9))
    batch = learner.collect()
    own, helped = batch[batch["help"] == 0], batch[batch["help"] > 0]
    solved = own["reward"].reshape(PROMPTS, SAMPLES).sum(1)
    place = {int(number): place for place, number in enumerate(own["index"][::SAMPLES])}
    assert [float(solved[place[number]]) for number in range(3)] == [SAMPLES, 0, 0]
    assert len(helped) == 2 * LEVELS
    assert sorted(helped["index"].tolist()) == [1] * LEVELS + [2] * LEVELS
    assert helped["help"].tolist() == [1, 2, 3, 1, 2, 3]
    assert shown_in(learner, helped) == [2, 4, 6, 2, 4, 6]
    assert [place[number] for number in helped["index"].tolist()] == helped["group"].tolist()
    texts = learner.policy.decode(helped["prompt"], helped["prompt_mask"])
    for text, number in zip(texts, helped["index"].tolist()):
        problem = learner.task.problems([number])[0]
        assert (problem.prompt + problem.solution).startswith(text)
    assert learner.ledger.completions == PROMPTS * SAMPLES + 2 * LEVELS
    assert learner.ledger.tokens == int(batch["mask"].sum())


def test_nobody_is_helped_while_warming_up_or_when_nobody_fails():
    learner = method(shown=(9, 9, 9), warmup=2)
    for helped in (0, 0, PROMPTS * LEVELS):
        batch = learner.collect()
        learner.update(batch)
        assert int((batch["help"] > 0).sum()) == helped
    learner = method(shown=(0, 0, 0))
    assert not learner.collect()["help"].any()
    assert learner.ledger.completions == PROMPTS * SAMPLES
    assert int((method(shown=(0, 0, 4)).collect()["help"] > 0).sum()) == LEVELS


def augmented(learner, batch):
    """The rows that an update learns from."""
    seen = []
    evaluate = learner.evaluate_groups

    def noting(rows):
        seen.append(evaluate(rows))
        return seen[-1]

    learner.evaluate_groups = noting
    learner.update(batch)
    return seen[0]


def test_must_2_one_row_of_a_group_is_replaced_with_all_that_belongs_to_it(float64):
    learner = method(shown=(0, 4, 9))
    batch = learner.collect()
    rows = augmented(learner, batch)
    assert len(rows) == PROMPTS * SAMPLES
    assert torch.equal(rows["index"], batch["index"][batch["help"] == 0])
    own, helped = batch[batch["help"] == 0], batch[(batch["help"] == 2) & (batch["index"] == 1)]
    (first,) = (rows["help"] > 0).nonzero().flatten().tolist()
    assert first == own["index"].tolist().index(1)
    assert shown_in(learner, rows[first : first + 1]) == [4]
    for name in ("log_prob", "engine_log_prob", "mask", "completion"):
        width = min(rows[name].shape[1], helped[name].shape[1])
        assert torch.equal(rows[name][first, :width], helped[name][0, :width])
        assert torch.equal(rows[name][first + 1 :], own[name][first + 1 :, : rows[name].shape[1]])
    for name in ("reward", "truncated", "correct", "failed"):
        assert rows[name][first] == helped[name][0]


def test_must_2_advantages_are_of_the_augmented_group(float64):
    """(1, 0, 0, 0): mean 1/4, deviation sqrt((9/16 + 3/16) / 3) = 1/2."""
    learner = method(shown=(0, 4, 9))
    rows = augmented(learner, learner.collect())
    expected = {0: [0.0] * 4, 1: [1.5, -0.5, -0.5, -0.5], 2: [0.0] * 4}
    for number, advantage in expected.items():
        torch.testing.assert_close(
            rows["advantage"][rows["index"] == number], torch.tensor(advantage), rtol=0, atol=1e-5
        )


def test_must_3_old_and_new_log_probabilities_are_given_the_help(float64):
    learner = method(shown=(4, 4, 4))
    before = {name: value.clone() for name, value in parameters(learner).items()}
    batch = learner.collect()
    rows = augmented(learner, batch)
    with torch.no_grad():
        for name, value in parameters(learner).items():
            value.copy_(before[name])
        again = learner.policy.log_prob(rows) * rows["mask"]
        torch.testing.assert_close(again, rows["log_prob"])  # the ratio is 1 at the first step
        plain = batch[batch["help"] == 0]
        forgotten = rows.clone()
        forgotten["prompt"], forgotten["prompt_mask"] = plain["prompt"], plain["prompt_mask"]
        first = rows["help"] > 0
        other = learner.policy.log_prob(forgotten) * rows["mask"]
        assert (other - again)[first].abs().sum(1).min() > 1e-3
        torch.testing.assert_close(other[~first], again[~first])


def test_must_4_the_gradient_is_that_of_the_tokens_that_were_written(float64):
    learner = method(shown=(4, 4, 9), max_grad_norm=None)
    rows = augmented(learner, learner.collect())
    (part,) = learner.optimizer_batches(rows)
    found = torch.autograd.grad(learner.policy_loss(part)[0], list(learner.policy.parameters()))
    log_prob = learner.policy.log_prob(rows)
    ratio = (log_prob - rows["log_prob"]).exp()
    advantage = rows["advantage"][:, None].expand_as(ratio)
    kept = torch.where(advantage > 0, ratio <= 1.2, (ratio >= 0.8) & (ratio <= 3.0))
    score = (kept * advantage * ratio * rows["mask"]).sum() / rows["mask"].sum()
    expected = torch.autograd.grad(-score, list(learner.policy.parameters()))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    assert rows["mask"].sum() <= 4 * len(rows)  # nothing of the help is among them


def test_where_no_help_suffices_nothing_is_learned(float64):
    learner = method(shown=(9, 9, 9))
    before = {name: value.clone() for name, value in parameters(learner).items()}
    found = learner.update(learner.collect())
    assert all(torch.equal(value, before[name]) for name, value in parameters(learner).items())
    assert [float(found[name]) for name in ("unsolved", "rescued", "help", "informative", "reward")] == [1, 0, 0, 0, 0]


def test_numbers_are_without_help():
    learner = method(shown=(0, 4, 6))
    found = learner.update(learner.collect())
    assert float(found["reward"]) == pytest.approx(1 / 3)
    assert float(found["unsolved"]) == pytest.approx(2 / 3)
    assert float(found["rescued"]) == pytest.approx(2 / 3)
    assert float(found["help"]) == 2.5
    assert float(found["informative"]) == pytest.approx(2 / 3)
    assert len(learner.episodes()[""]) == PROMPTS * SAMPLES  # for train/return


def test_answers_with_help_whose_rewards_fail_are_left_out_and_not_reported():
    def fails(prompts, **columns):
        return [None if len(prompt) > 3 else 0.0 for prompt in prompts]

    learner = method(task_options={"rewards": fails})
    with pytest.warns(UserWarning, match="the reward of 9 of 9 completions could not be computed"):
        batch = learner.collect()
    assert batch["failed"].equal(batch["help"] > 0)
    found = learner.update(batch)
    assert [float(found[name]) for name in ("unsolved", "rescued", "failed")] == [1, 0, 0]
    ((name, counts),) = [pair for _, source in learner.sources() for pair in source.components().items()]
    assert (name, list(counts)) == ("fails", [0.0, PROMPTS * SAMPLES, 0.0, PROMPTS * SAMPLES])


def test_direct_guidance_gives_the_most_help_at_once():
    learner = method(shown=(2, 2, 9), guidance="direct")
    batch = learner.collect()
    helped = batch[batch["help"] > 0]
    assert helped["help"].tolist() == [3] * 3
    assert shown_in(learner, helped) == [6] * 3
    assert float(learner.update(batch)["help"]) == 3


def trained(**settings):
    """The weights after three batches that the method has collected for itself, of which the third can be helped."""
    learner = method(shown=(4, 4, 4), **settings)
    for _ in range(3):
        learner.update(learner.collect())
    return {name: value.clone() for name, value in parameters(learner).items()}


def test_before_help_begins_it_is_what_it_is_without_any():
    never, helped = trained(warmup=3), trained(warmup=2)
    none = trained(levels=0, warmup=50, words=PARTIAL)  # the defaults
    assert all(torch.equal(value, none[name]) for name, value in never.items())
    assert not all(torch.equal(value, helped[name]) for name, value in never.items())


def hinted(tmp_path, rows=None, **settings):
    path = tmp_path / "some.jsonl"
    parts = {name: [f"{name[0]}{part}" for part in range(4)] for name in OFFICIAL}
    rows = rows or [{"prompt": f"{count}?", "answer": "b", **parts} for count in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    own = {"model": "tiny", "batch_prompts": 2, "samples_per_prompt": 2, "policy.max_tokens": 4, "warmup": 0}
    options = {"score_truncated": True, "heldout": 0}
    return plan(
        "scaf-grpo", str(path), task_options=options, loggers=(), **own | {"tiers": OFFICIAL} | settings
    ).build()


def test_tiers_show_more_and_more_of_one_column(tmp_path):
    learner = hinted(tmp_path)
    batch = learner.collect()
    helped = batch[batch["help"] > 0]
    assert helped["help"].tolist() == [*range(1, 13)] * 2
    texts = learner.policy.decode(helped["prompt"], helped["prompt_mask"])
    ask = f"{int(helped['index'][0])}?\n"
    assert texts[:12] == [
        *(ask + "Knowledge hints: " + " ".join(["k0", "k1", "k2", "k3"][:count]) + "\n" for count in range(1, 5)),
        *(ask + "Planning hints: " + " ".join(["p0", "p1", "p2", "p3"][:count]) + "\n" for count in range(1, 5)),
        *(ask + "Solution hints: " + " ".join(["s0", "s1", "s2", "s3"][:count]) + "\n" for count in range(1, 5)),
    ]
    assert hinted(tmp_path, tiers=OFFICIAL[::2], levels=8).helped.ladder.levels == 8  # as the official run


def test_the_papers_setting(tmp_path):
    own = {"preset": "paper", "model": "tiny", "policy.max_tokens": 4}
    rows = [{"prompt": f"{count}?", "answer": "b", **{name: ["x"] for name in OFFICIAL}} for count in range(4)]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = plan("scaf-grpo", str(path), loggers=(), **own).config
    sizes = (config.batch_prompts, config.samples_per_prompt, config.updates_per_batch, config.levels, config.warmup)
    assert sizes == (256, 8, 4, 12, 50)
    assert (config.lr, config.weight_decay, config.max_grad_norm, config.reference_kl) == (1e-6, 0.0, 1.0, None)
    assert (config.surrogate.clip_low, config.surrogate.clip_high, config.surrogate.dual_clip) == (0.2, 0.2, 3.0)
    assert (config.baseline.std, config.baseline.ddof, config.baseline.std_eps) == ("group", 1, 1e-6)
    assert (config.aggregate, config.tiers, config.policy.temperature) == ("token", OFFICIAL, 1.0)
    learner = plan("scaf-grpo", str(path), loggers=(), batch_prompts=2, **own).build()
    assert learner.helped.size == len(learner.task.problems(range(4))) * 13


def test_help_that_does_not_fit_is_refused_before_training():
    with pytest.raises(UsageError, match=r"and the context of .* holds 64: leave out long rows or take a model"):
        method(task_options={"levels": 88, "rewards": None})
    learner = method(task_options={"levels": 88, "pool": None, "rewards": None})  # nobody knows all its problems
    with pytest.raises(UsageError, match=r"a prompt has 69 tokens and the context of .* holds 64: shorten the prompts"):
        learner.collect()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], {}, "list of texts in the column 'knowledge_components_parts', and a pro"),
        ([{"prompt": "a", "answer": "b"}], {"tiers": ()}, "a problem without a worked solution has none to show"),
        (None, {"levels": 10}, "levels must be the same for each of the 3 tiers: a multiple"),
        (None, {"dynamic_sampling": 2}, "dynamic_sampling has no effect where prompts that nobody solves are helped"),
        (None, {"tiers": (), "words": "{prompt} {x}"}, "words have {prompt} and {given} in them, and braces of their"),
        (None, {"words": "{prompt}"}, "words has no effect on hints from the columns"),
        (None, {"levels": 0, "tiers": (), "warmup": 3}, "warmup has no effect without levels of help"),
    ],
)
def test_what_is_refused(rows, settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        hinted(tmp_path, rows, **settings)


def test_a_task_that_shows_beginnings_already_is_refused():
    with pytest.raises(UsageError, match=r"shows beginnings of its solutions already: leave out --task.shown"):
        method(task_options={"shown": (0.2, 0.8)})

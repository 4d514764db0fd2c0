"""ADORA: which groups count in full, against the rule written out group by group; its place in the advantage; GRPO."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.methods.language.adora import ADORA, long_pays, whitened
from polopt.training.api import plan
from tests.guards.harness import advance
from tests.methods import test_rec as rec

MUST = 4
GROUP, TOKENS, WIDTH = rec.GROUP, rec.TOKENS, rec.WIDTH  # lengths 3 1 4 2 and 4 2 1 3, of at most 4


def method(**settings):
    return rec.method("adora", **{"reference_kl": None, "updates_per_batch": 1, **settings})


def pays(right, wrong, rule, cut=()):
    """Of one group: lengths of right answers, of wrong ones, and of wrong ones that were cut."""
    reward = torch.tensor([1.0] * len(right) + [0.0] * (len(wrong) + len(cut)))
    length = torch.tensor([*right, *wrong, *cut])
    truncated = torch.tensor([False] * (len(right) + len(wrong)) + [True] * len(cut))
    return bool(long_pays(reward, length, truncated, rule=rule))


def by_hand(reward, length, cut, threshold, rule):
    """The rule of one group, in plain Python."""
    right = [n for r, n in zip(reward, length) if r > threshold]
    wrong = [n for r, n, c in zip(reward, length, cut) if r <= threshold and not c]
    longest = max(right) if right else -math.inf
    missing = -math.inf if rule == "llm" else math.inf
    mean = sum(wrong) / len(wrong) if wrong else missing
    return longest > mean or (rule == "vl" and not right)


# The rule


@pytest.mark.parametrize("rule", ["llm", "vl"])
def test_must_2_the_longest_right_answer_against_the_mean_of_wrong_ones(rule):
    assert pays([9, 2], [8, 8], rule)  # the longest, not the mean (5.5)
    assert pays([6], [9, 2], rule)  # against the mean (5.5), not the longest
    assert not pays([5], [9, 2], rule)
    assert not pays([5], [5, 5], rule)  # strictly
    assert not pays([3, 4], [5, 6], rule)
    assert pays([9, 9], [8, 8], rule)


@pytest.mark.parametrize("rule", ["llm", "vl"])
def test_must_2_wrong_answers_that_were_cut_are_not_in_the_mean(rule):
    assert pays([6], [5], rule, cut=[32, 32])
    assert not pays([6], [5, 32, 32], rule)
    right_but_cut = long_pays(torch.tensor([1.0, 0]), torch.tensor([9, 5]), torch.tensor([True, False]), rule=rule)
    assert bool(right_but_cut)  # a right answer counts however long it is


@pytest.mark.parametrize(
    ("right", "wrong", "cut", "llm", "vl"),
    [
        ([4, 4], [], [], True, False),  # all right
        ([], [4, 4], [], False, True),  # all wrong
        ([], [], [8, 8], False, True),  # all wrong and cut: -inf > -inf is not so
        ([4], [], [8], True, False),  # all that is wrong was cut
        ([], [4], [8], False, True),
    ],
)
def test_must_3_empty_sets_in_the_two_versions(right, wrong, cut, llm, vl):
    assert pays(right, wrong, "llm", cut) is llm
    assert pays(right, wrong, "vl", cut) is vl


rows = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(1, 9), st.booleans()), min_size=1)


@given(rows=rows, threshold=st.sampled_from([0.0, 0.5, 1.01]), rule=st.sampled_from(["llm", "vl"]))
def test_the_rule_against_plain_python(rows, threshold, rule):
    reward, length, cut = (torch.tensor(column) for column in zip(*rows))
    expected = by_hand(*(column.tolist() for column in (reward, length, cut)), threshold, rule)
    both = [torch.stack([column, column.flip(0)]) for column in (reward, length, cut)]  # two groups, order of no matter
    assert long_pays(*both, right_above=threshold, rule=rule).tolist() == [expected] * 2


@given(rows=rows, factor=st.integers(2, 5), rule=st.sampled_from(["llm", "vl"]))
def test_only_the_order_of_lengths_and_their_mean_matter(rows, factor, rule):
    reward, length, cut = (torch.tensor(column) for column in zip(*rows))
    assert long_pays(reward, length, cut, rule=rule) == long_pays(reward, factor * length, cut, rule=rule)


# Its place in the advantage


def weights_of(learner, batch):
    batch = learner.evaluate_groups(batch)
    return batch["group_weight"].tolist(), batch["advantage"].numpy()


def test_must_1_the_weight_comes_after_the_normalization(float64):
    """Group 0: right 4, wrong 3, 1, 2 long. Group 1: right 1, wrong 2 and 3 (and 4, which was cut)."""
    reward = np.array([0, 0, 1.0, 0, 0, 0, 1, 0])
    batch, log_prob = rec.made(reward=reward)
    weight, advantage = weights_of(method(), batch.clone())
    assert weight == [1.0] * 4 + [0.1] * 4
    plain = np.array([-0.25, -0.25, 0.75, -0.25, -0.25, -0.25, 0.75, -0.25]) / (0.5 + 1e-6)
    np.testing.assert_allclose(advantage, plain * np.repeat([1.0, 0.1], 4), rtol=1e-12)
    # In the gradient, too: a tenth of GRPO's, on the same tokens.
    found, _ = rec.gradient(method(), batch.clone(), log_prob)
    grpo, _ = rec.gradient(rec.method("grpo", reference_kl=None, aggregate="token"), batch, log_prob)
    np.testing.assert_allclose(found[:4], grpo[:4], rtol=1e-12)
    np.testing.assert_allclose(found[4:], 0.1 * grpo[4:], rtol=1e-12)
    assert np.abs(grpo[4:]).max() > 0


def test_must_1_the_weight_is_found_anew_at_every_visit(float64):
    learner, batch = method(), rec.made()[0]
    for reward, expected in (([0, 0, 1.0, 0], 1.0), ([0, 1.0, 0, 0], 0.1), ([0, 0, 1.0, 0], 1.0)):
        batch["reward"] = torch.tensor(reward * 2, dtype=torch.float64)
        assert weights_of(learner, batch)[0][:4] == [expected] * 4


def test_a_completion_that_reached_the_limit_was_cut(float64):
    """Rows 2 and 4 are as long as the limit, and wrong."""
    reward = np.array([1.0, 0, 0, 0, 0, 1, 0, 0])  # group 0: right 3; wrong 1, 4, 2. Group 1: right 2; wrong 4, 1, 3
    batch, _ = rec.made(reward=reward)
    assert weights_of(method(), batch.clone())[0] == [1.0] * 4 + [0.1] * 4  # 3 > 1.5; 2 = 2
    assert weights_of(method(max_length=9), batch.clone())[0] == [1.0] * 4 + [0.1] * 4  # 3 > 7/3; 2 < 8/3
    assert weights_of(method(max_length=3), batch.clone())[0] == [1.0] * 8  # 3 > 1.5; 2 > 1


def test_the_limit_of_a_conversation_is_that_of_all_its_turns():
    sizes = {"batch_prompts": 2, "samples_per_prompt": 4, "policy.max_tokens": WIDTH, "reference_kl": None}
    learner = plan("adora", "guess", model="tiny", **sizes).build()
    assert learner.spec.info["turns"] > 1
    batch, _ = rec.made(reward=np.array([1.0, 1, 0, 0, 0, 0, 1, 1]))
    batch["truncated"] = torch.zeros(8, dtype=torch.bool)
    assert weights_of(learner, batch)[0] == pytest.approx([0.1] * 8)  # 3 = (4 + 2) / 2; without the 4 it pays


def test_a_conversation_that_was_broken_off_was_cut_however_short_it_is(float64):
    reward = np.array([0, 0, 0, 1.0, 0, 1, 0, 0])  # group 0: right 2; wrong 3 and 1 (and 4, which was cut)
    batch, _ = rec.made(reward=reward)
    assert weights_of(method(), batch.clone())[0][:4] == [0.1] * 4  # 2 = 2
    batch["truncated"][0] = True
    assert weights_of(method(), batch.clone())[0][:4] == [1.0] * 4  # 2 > 1
    assert weights_of(method(max_length=4), batch)[0][:4] == [0.1] * 4  # the bound says alone what was cut


def test_failed_rows_are_neither_right_nor_wrong(float64):
    """They have no tokens: among the wrong ones they would pull the mean length down, or be right with a reward."""
    reward = np.array([0, 0, 0, 1.0, 0, 1, 0, 0])  # group 0: right 2; wrong 3 (and 4, which was cut); one failed
    batch, _ = rec.made(reward=reward, failed=(1,))
    weight, advantage = weights_of(method(), batch)
    assert weight[:4] == [0.1] * 4  # 2 < 3, not 2 > 3/2
    assert advantage[1] == 0
    reward[[1, 3]] = 1.0, 0.0  # nothing but the one that failed would be right
    assert weights_of(method(rule="vl"), rec.made(reward=reward, failed=(1,))[0])[0][:4] == [1.0] * 4


def test_right_answers_that_the_filter_drops_do_not_count(float64):
    reward = np.array([0, 0, 1.0, 0, 0, 0, 0, 1])  # group 0: right 4, at the limit
    assert weights_of(method(), rec.made(reward=reward)[0])[0] == [1.0] * 8
    assert weights_of(method(**{"overlong.cut": "mask"}), rec.made(reward=reward)[0])[0] == [1.0] * 8
    assert weights_of(method(**{"overlong.cut": "drop"}), rec.made(reward=reward)[0])[0] == [0.1] * 4 + [1.0] * 4


def test_rewards_of_a_scale_of_their_own(float64):
    """Logic-RL gives 1 for the format and 3 for a right answer: above 1.01 is right."""
    reward = np.array([0, 0, 1.0, 0, 0, 3, 0, 0])  # group 0: a format, 4 long, and nothing right
    assert weights_of(method(right_above=1.01), rec.made(reward=reward)[0])[0] == [0.1] * 8
    assert weights_of(method(), rec.made(reward=reward)[0])[0] == [1.0] * 4 + [0.1] * 4


def test_the_soft_penalty_is_in_the_rewards_of_the_rule(float64):
    reward = np.array([0, 0, 1.0, 0] * 2)  # row 2 is right and 4 long: with the penalty its reward is 0.2
    settings = {"overlong.buffer": 0.5, "overlong.penalty": 0.8}
    assert weights_of(method(), rec.made(reward=reward)[0])[0][0] == 1.0
    assert weights_of(method(**settings), rec.made(reward=reward)[0])[0][0] == 0.1


# A rule of one's own


def by_difficulty(rewards, lengths, truncated):
    """Twice as much for groups in which at most half is right."""
    assert rewards.shape == lengths.shape == truncated.shape
    return torch.where((rewards > 0.5).double().mean(-1) <= 0.5, 2.0, 1.0)


def test_a_criterion_gives_the_weights(float64):
    reward = np.array([1.0, 1, 1, 0, 0, 0, 1, 0])
    learner = method(criterion="tests.methods.test_adora:by_difficulty")
    assert weights_of(learner, rec.made(reward=reward)[0])[0] == [1.0] * 4 + [2.0] * 4
    with pytest.raises(UsageError, match=r"^attenuation has no effect beside a criterion"):
        plan("adora", "vowels", model="tiny", criterion=by_difficulty, attenuation=0.2)
    for weights in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.inf])):
        wrong = method(criterion=lambda rewards, lengths, truncated, weights=weights: weights)
        with pytest.raises(UsageError, match=r"^the criterion must give 2 weights of at least 0, one for each group"):
            wrong.evaluate_groups(rec.made()[0])


def test_a_criterion_is_given_again_where_the_run_is_read(tmp_path):
    name = f"{__name__}:by_difficulty"
    settings = {"task_options": {"score_truncated": True}, "loggers": (), "eval_episodes": 1, "model": "tiny"}
    sizes = {"batch_prompts": 2, "samples_per_prompt": 2, "policy.max_tokens": 2, "steps": 4}
    polopt.train("adora", "vowels", out=tmp_path / "run", criterion=by_difficulty, **settings, **sizes)
    with pytest.raises(UsageError, match=rf"^criterion was {name}, .* say it again with --criterion {name}$"):
        polopt.evaluate(tmp_path / "run", episodes=1)
    assert isinstance(polopt.load(tmp_path / "run").predict("bc:"), str)
    polopt.resume(tmp_path / "run", criterion=by_difficulty)
    assert main(["eval", str(tmp_path / "run"), "--episodes", "1", "--criterion", name]) == 0


# Whitening


def test_whitening_is_over_tokens_and_after_the_weight(float64):
    """As OpenRLHF does with other baselines: every token has its row's advantage; the deviation divides by n."""
    reward = np.array([0, 0, 1.0, 0, 0, 0, 1, 0])
    batch, _ = rec.made(reward=reward)
    _, advantage = weights_of(method(whiten=True, baseline="rloo"), batch)
    plain = np.array([-1 / 3, -1 / 3, 1, -1 / 3] * 2) * np.repeat([1.0, 0.1], 4)
    tokens = np.repeat(plain, TOKENS)
    np.testing.assert_allclose(advantage, (plain - tokens.mean()) / tokens.std(), rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"overlong.cut": "mask"}])
def test_whitening_leaves_out_what_is_not_learned_from(settings, float64):
    """A row of which no reward is known stays without an advantage, and one that the loss leaves out counts nowhere."""
    reward = np.array([0, 0, 1.0, 0, 0, 0, 1, 0])
    batch, _ = rec.made(reward=reward, failed=(0,))
    batch["truncated"] = torch.arange(8) == 3
    _, advantage = weights_of(method(whiten=True, baseline="rloo", **settings), batch)
    tokens = np.array(TOKENS) * [0, 1, 1, not settings, 1, 1, 1, 1]
    plain = np.array([0, -1 / 2, 1, -1 / 2, *np.array([-1 / 3, -1 / 3, 1, -1 / 3]) * 0.1])
    mean = np.average(plain, weights=tokens)
    expected = (plain - mean) / np.sqrt(np.average((plain - mean) ** 2, weights=tokens)) * (tokens > 0)
    np.testing.assert_allclose(advantage, expected, rtol=1e-12)
    assert advantage[0] == 0


def test_whitening_all_but_some_is_refused():
    with pytest.raises(UsageError, match="whiten standardizes over all completions"):
        plan("adora", "vowels", model="tiny", whiten=True, data="drop")


def test_whitening_equal_advantages_gives_zeros():
    assert not whitened(torch.zeros(4), torch.tensor([1, 2, 3, 0])).any()


# The method


def test_must_4_the_mean_weight_is_reported(float64):
    reward = np.array([0, 0, 1.0, 0, 0, 0, 1, 1])  # group 1: right 1 and 3, wrong 2 (and 4, cut): pays
    learner = method()
    batch = learner.evaluate_groups(rec.made(reward=reward)[0])
    metrics = learner.batch_metrics(batch)
    assert metrics["group_weight"] == metrics["paying"] == 1
    assert metrics["paying_right"] == pytest.approx(3 / 8)
    reward[7] = 0
    metrics = learner.batch_metrics(learner.evaluate_groups(rec.made(reward=reward)[0]))
    assert metrics["group_weight"].item() == pytest.approx(0.55)
    assert metrics["paying"] == 0.5
    assert metrics["paying_right"] == 0.25


def test_the_penalty_against_the_start_is_not_weighed(float64):
    learner = rec.method("adora", attenuation=0.0, updates_per_batch=1, **{"reference_kl.coefficient": 0.5})
    batch, log_prob = rec.made(reward=np.zeros(8))
    learner.reference_policy.log_prob = lambda rows: batch["log_prob"]
    found, _ = rec.gradient(learner, batch, log_prob)
    new, old, mask = rec.arrays(batch, log_prob)
    np.testing.assert_allclose(found, mask / mask.sum() * 0.5 * (1 - np.exp(old - new)), atol=1e-15)


@pytest.mark.parametrize("preset", [None, *ADORA.presets])
def test_presets_build_and_learn(preset):
    learner = rec.method("adora", preset=preset, batch_prompts=2, samples_per_prompt=4)
    before = [p.clone() for p in learner.policy.parameters()]
    batch = learner.collect()
    batch["reward"] = 3 * torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
    metrics = learner.update(batch)
    assert all(value.isfinite() for value in metrics.values())
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.policy.parameters()))


def test_the_settings_of_the_official_runs():
    paper, vision = (
        plan("adora", "vowels", preset=name, **{"model": "tiny", "policy.max_tokens": 4}).config
        for name in ("paper", "vl")
    )
    assert (paper.batch_prompts, paper.samples_per_prompt, paper.updates_per_batch, paper.lr) == (64, 16, 2, 3e-7)
    assert (paper.rule, paper.attenuation, paper.right_above, paper.max_length) == ("llm", 0.1, 1.01, 3900)
    assert (paper.aggregate, paper.reference_kl.coefficient, paper.reference_kl.estimator) == ("token", 0.001, "k3")
    assert (vision.batch_prompts, vision.samples_per_prompt, vision.updates_per_batch) == (128, 8, 8)
    assert (vision.rule, vision.right_above, vision.max_length, vision.aggregate) == ("vl", 0.5, 4094, "sequence")
    assert (vision.baseline.std, vision.baseline.std_eps) == ("group", 1e-9)
    assert vision.weight_decay == paper.weight_decay == 0.01
    assert [config.lr_schedule.shape(1.0) for config in (paper, vision)] == pytest.approx([1.0, 0.1])


def test_the_reward_rises():
    sizes = {"batch_prompts": 8, "samples_per_prompt": 8}
    learner = rec.method("adora", model="tiny", seed=0, lr=3e-3, rule="vl", updates_per_batch=1, **sizes)
    reward = [row["reward"] for row in advance(learner, 10**6, updates=50)]
    assert np.mean(reward[:5]) < 0.25
    assert np.mean(reward[-5:]) > 0.5

"""Lite PPO against numpy and autograd: the deviation of a batch, a mean over tokens, and every trick as a switch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data.informative import Informative, distinct
from polopt.losses import Surrogate
from polopt.methods.language.lite_ppo import LitePPO
from polopt.training.api import plan
from polopt.values import GroupBaseline, Overlong
from tests.guards.harness import advance
from tests.methods import test_rec as rec

MUST = 5
REWARD, GROUP, TOKENS, WIDTH = rec.REWARD, rec.GROUP, rec.TOKENS, rec.WIDTH
CUT = TOKENS == WIDTH  # rows 2 and 4, one of each group


def method(**settings):
    return rec.method("lite-ppo", **settings)


def statistics(values, group, level, of):
    """`of` (a mean or a deviation) of the rows that share a level, for every row."""
    if level == "group":
        return np.array([of(values[group == g]) for g in group])
    return np.full(len(values), of(values) if level == "batch" else 0.0)


def normalized(reward, mean, std, group=GROUP):
    centered = reward - statistics(reward, group, mean, np.mean)
    if std == "none":
        return centered
    spread, level = (centered, "batch") if std == "batch-centered" else (reward, std)
    return centered / (statistics(spread, group, level, lambda x: x.std(ddof=1)) + 1e-6)


def clipped_loss(log_prob, batch, advantage, weight, low, high):
    """- sum of weight min(ratio A, clip(ratio) A), in torch, for autograd."""
    ratio, a = (log_prob - batch["log_prob"]).exp(), torch.from_numpy(advantage)[:, None]
    return -(torch.from_numpy(weight) * torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)).sum()


def token_weight(mask, aggregate):
    if aggregate == "token":
        return mask / mask.sum()
    if aggregate == "sequence":
        return mask / np.maximum(mask.sum(1, keepdims=True), 1) / mask.any(1).sum()
    return mask / WIDTH / mask.any(1).sum()


# The two tricks that are left


def test_must_1_the_mean_of_the_group_and_the_deviation_of_the_batch(float64):
    batch, _ = rec.made()
    advantage = method().evaluate_groups(batch)["advantage"].numpy()
    means = np.array([1.25 / 4] * 4 + [2.0 / 4] * 4)
    square = sum((r - 3.25 / 8) ** 2 for r in REWARD)
    np.testing.assert_allclose(advantage, (REWARD - means) / ((square / 7) ** 0.5 + 1e-6), rtol=1e-12)


def test_must_1_the_deviation_is_that_of_the_rollout_and_not_of_an_optimizer_step(float64):
    learner = method(updates_per_batch=4)
    batch, log_prob = rec.made()
    batch["new"] = log_prob.detach()
    learner.policy.log_prob = lambda rows: rows["new"].clone().requires_grad_()
    whole, seen, original = normalized(REWARD, "group", "batch"), [], learner.policy_loss

    def spy(part):
        seen.extend(part["advantage"].tolist())
        assert len(part) == 2
        return original(part)

    learner.policy_loss = spy
    learner.optimizer.minimize = lambda loss, part: loss(part)[1]
    learner.update(batch)
    np.testing.assert_allclose(sorted(seen), sorted(whole))


def test_groups_near_all_or_nothing_weigh_less_than_under_the_deviation_of_the_group():
    """One of each number right of 8: 0 to 8. Sums of A^2 by hand; the deviation of the group makes all of them 8."""
    right = np.arange(9)
    reward = torch.from_numpy((np.arange(8)[None] < right[:, None]).astype(float).reshape(-1))
    group = torch.arange(9).repeat_interleave(8)
    signal = {}
    for std in ("group", "batch", "none"):
        config = GroupBaseline() if std == "none" else GroupBaseline(std=std, ddof=0, std_eps=0.0)
        advantage = config.advantage(reward, group)
        signal[std] = advantage.square().reshape(9, 8).sum(1).numpy()
        if std == "group":
            assert advantage.reshape(9, 8)[7].min() == pytest.approx(-(7**0.5))  # -2.65
        if std == "batch":
            assert advantage.reshape(9, 8)[7].min() == pytest.approx(-1.75)  # the batch is half right: deviation 0.5
    np.testing.assert_allclose(signal["group"], [0, *[8] * 7, 0], atol=1e-12)
    np.testing.assert_allclose(signal["none"], 8 * right / 8 * (1 - right / 8), atol=1e-12)
    np.testing.assert_allclose(signal["batch"], 4 * signal["none"], atol=1e-12)
    assert signal["batch"][7] / signal["batch"][4] == pytest.approx(0.4375)


def test_must_2_the_mean_over_tokens_is_that_of_the_optimizer_step(float64):
    """Also in micro-batches, where a mean of their means would be another number; long rows have a larger share."""
    batch, log_prob = rec.made()
    batch["new"] = log_prob.detach()
    grads = []
    for micro_batch in (None, 3):
        learner = method(micro_batch=micro_batch, surrogate="reinforce", max_grad_norm=None)
        scale = torch.nn.Parameter(torch.zeros(()))
        learner.policy.log_prob = lambda rows, scale=scale: rows["new"] + scale
        (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
        pieces = part.split(3) if micro_batch else [part]
        for piece in pieces:
            learner.policy_loss(piece)[0].backward()
        grads.append(scale.grad.item())
        share = part["weight"].sum(1)
        np.testing.assert_allclose(share, TOKENS / TOKENS.sum())
    expected = -(normalized(REWARD, "group", "batch") * TOKENS).sum() / TOKENS.sum()
    assert grads == pytest.approx([expected, expected])


def test_the_first_step_goes_where_the_plain_policy_gradient_goes(float64):
    """Up to a number of the batch, unlike that of GRPO: sum over rows of (r - mean of the group) grad log pi(row)."""
    batch, _ = rec.made()
    on_policy = batch["log_prob"].clone().requires_grad_()
    plain = -rec.centered(REWARD, GROUP)[:, None] * batch["mask"].numpy()
    ratios = {}
    for name, settings in {"lite-ppo": {}, "grpo": {"reference_kl": None}}.items():
        found, _ = rec.gradient(rec.method(name, **settings), batch.clone(), on_policy)
        there = plain != 0
        ratios[name] = found[there] / plain[there]
    assert np.ptp(ratios["lite-ppo"]) < 1e-12
    assert np.ptp(ratios["grpo"]) > 0.1


def test_must_4_a_symmetric_clip_and_nothing_else():
    config = plan("lite-ppo", "vowels", model="tiny").config
    assert (config.surrogate.clip_low, config.surrogate.clip_high, config.surrogate.dual_clip) == (0.2, 0.2, None)
    assert (config.reference_kl, config.dynamic_sampling, config.restraint, config.data) == (None, 0, "none", "all")
    assert (config.overlong.cut, config.overlong.buffer) == ("train", 0.0)
    assert (config.aggregate, config.baseline) == ("token", GroupBaseline(std="batch", ddof=1, std_eps=1e-6))


@pytest.mark.parametrize("level", [0.0, 1.0, 0.1])
def test_must_5_a_batch_of_equal_rewards_moves_nothing(level, float64):
    learner = method()
    before = [p.clone() for p in learner.policy.parameters()]
    batch = learner.collect()
    batch["reward"] = torch.full((8,), level)
    metrics = learner.update(batch)
    assert metrics["advantage_max"] == metrics["informative"] == 0
    assert all(torch.equal(p, q) for p, q in zip(before, learner.policy.parameters()))


# The tricks as switches of one loss

MEANS, STDS = ("group", "batch", "none"), ("group", "batch", "none", "batch-centered")


@pytest.mark.parametrize(("mean", "std"), itertools.product(MEANS, STDS))
def test_must_3_every_normalization_with_every_aggregation_clip_and_filter(mean, std, float64):
    batch, log_prob = rec.made(seed=3)
    learner, mask = method(), batch["mask"].numpy()
    config = learner.config
    for aggregate, high, cut in itertools.product(("token", "sequence", "constant"), (0.2, 0.32), ("train", "mask")):
        learner.config = replace(
            config,
            baseline=GroupBaseline(baseline="mean" if mean == "group" else mean, std=std),
            aggregate=aggregate,
            surrogate=Surrogate(clip_high=high),
            overlong=Overlong(cut=cut),
        )
        found, _ = rec.gradient(learner, batch.clone(), log_prob)
        weight = token_weight(mask & ~CUT[:, None] if cut == "mask" else mask, aggregate)
        loss = clipped_loss(log_prob, batch, normalized(REWARD, mean, std), weight, 0.2, high)
        np.testing.assert_allclose(found, torch.autograd.grad(loss, log_prob)[0], atol=1e-14)


@pytest.mark.parametrize("high", [0.2, 0.24, 0.28, 0.32])
def test_clip_higher_lets_good_tokens_rise_further_and_bad_ones_not_fall_further(high, float64):
    ratio = np.array([0.75, 0.81, 1.19, 1.21, 1.27, 1.31, 1.33])
    batch, _ = rec.made([1.0, 0.0], [0, 0], [4, 4])
    batch["mask"], batch["log_prob"] = torch.ones(2, 7, dtype=torch.bool), torch.full((2, 7), -2.0)
    log_prob = torch.from_numpy(np.tile(-2 + np.log(ratio), (2, 1))).requires_grad_()
    found, _ = rec.gradient(method(**{"surrogate.clip_high": high}), batch, log_prob)
    assert ratio[found[0] < 0].tolist() == ratio[ratio < 1 + high].tolist()
    assert ratio[found[1] > 0].tolist() == ratio[ratio > 0.8].tolist()


@pytest.mark.parametrize("name", ["lite-ppo", "grpo", "rec"])
def test_the_overlong_filter_masks_the_loss_of_what_was_cut(name, float64):
    """Its rows have no gradient and no share in the mean; they stay in the statistics, or with "drop" they do not."""
    common = {"surrogate": "reinforce", "aggregate": "token", "baseline": "lite-ppo"} | (
        {"reference_kl": None} if name == "grpo" else {}
    )
    batch, log_prob = rec.made()
    mask = batch["mask"].numpy() & ~CUT[:, None]
    assert CUT.sum() == 2
    for cut in ("mask", "drop"):
        found, _ = rec.gradient(rec.method(name, **common, **{"overlong.cut": cut}), batch.clone(), log_prob)
        advantage = normalized(REWARD, "group", "batch")
        if cut == "drop":
            advantage = np.zeros(8)
            advantage[~CUT] = normalized(REWARD[~CUT], "group", "batch", GROUP[~CUT])
        np.testing.assert_allclose(found, -advantage[:, None] * mask / mask.sum(), atol=1e-15)


def test_rows_that_the_filter_masks_are_in_no_metric_of_advantages(float64):
    learner = method(**{"overlong.cut": "mask"})
    batch = learner.evaluate_groups(rec.made(reward=CUT.astype(float))[0])  # the largest advantages are of what was cut
    assert not batch["advantage"][torch.from_numpy(CUT)].any()
    assert learner.batch_metrics(batch)["advantage_max"] == batch["advantage"].min().abs() > 0


def test_the_filter_takes_cut_rows_out_of_the_penalty_against_the_start_too(float64):
    learner = rec.method("grpo", **{"overlong.cut": "mask", "reference_kl.coefficient": 1.5})
    batch, log_prob = rec.made(reward=np.zeros(8))
    learner.reference_policy.log_prob = lambda rows: batch["log_prob"] - 0.5 * batch["mask"]
    found, _ = rec.gradient(learner, batch, log_prob)
    assert not found[CUT].any()
    assert np.abs(found[~CUT]).max() > 0


def test_a_batch_in_which_everything_was_cut_teaches_nothing(float64):
    learner = method(**{"overlong.cut": "mask"})
    batch, log_prob = rec.made(tokens=[WIDTH] * 8)
    found, metrics = rec.gradient(learner, batch, log_prob)
    assert not found.any()
    assert all(value.isfinite() for value in metrics.values())


def test_the_soft_penalty_is_in_the_advantage_and_not_in_the_logged_reward(float64):
    learner = method(**{"overlong.buffer": 0.5, "overlong.penalty": 0.5, "baseline.std": "none"})
    batch, _ = rec.made()
    penalty = 0.5 * np.array([{1: 0.0, 2: 0.0, 3: -0.5, 4: -1.0}[n] for n in TOKENS])  # the last 2 of 4 tokens
    advantage = learner.evaluate_groups(batch)["advantage"].numpy()
    np.testing.assert_allclose(advantage, rec.centered(REWARD + penalty, GROUP))
    assert learner.batch_metrics(learner.evaluate_groups(batch))["reward"] == pytest.approx(REWARD.mean())


def test_the_limit_of_a_conversation_is_that_of_all_its_turns():
    planned = plan("lite-ppo", "guess", model="tiny", **{"policy.max_tokens": 4, "overlong.buffer": 1.0})
    learner = planned.build()
    turns = learner.spec.info["turns"]
    assert turns > 1
    batch, _ = rec.made()
    torch.testing.assert_close(
        learner.learned_rewards(batch), torch.from_numpy(REWARD - TOKENS / (4 * turns)), check_dtype=False
    )


# Dynamic sampling


@pytest.mark.parametrize("name", ["lite-ppo", "grpo"])
def test_dynamic_sampling_replaces_groups_with_equal_rewards(name):
    learner = rec.method(name, dynamic_sampling=20, batch_prompts=3, task_options={"pool": 64, "score_truncated": True})
    assert isinstance(learner.source, Informative)
    batch = learner.collect()
    assert distinct(batch).all()
    assert batch["group"].unique().tolist() == [0, 1, 2]
    assert learner.ledger.completions == 4 * learner.source.tried > 12  # what was thrown away is counted
    metrics = learner.update(batch)
    assert metrics["informative"] > 0.4
    assert metrics["kept"].item() == pytest.approx(learner.source.kept / learner.source.tried)
    assert "kept" not in advance(rec.method(name), 10**6, updates=1)[0]


def test_dynamic_sampling_goes_on_where_it_stood():
    options = {"pool": 16, "score_truncated": True}
    one, other = (method(dynamic_sampling=3, seed=0, task_options=options) for _ in range(2))
    for _ in range(3):
        one.update(one.collect())
    restore(other, {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(one).items()})
    batches = []
    for each in (one, other):
        torch.manual_seed(5)
        batches.append(each.collect())
    assert torch.equal(batches[0]["index"], batches[1]["index"])
    assert torch.equal(batches[0]["completion"], batches[1]["completion"])


def test_dynamic_sampling_needs_two_completions():
    with pytest.raises(UsageError, match=r"^dynamic_sampling has no effect with one completion of a prompt"):
        plan("lite-ppo", "vowels", model="tiny", samples_per_prompt=1, dynamic_sampling=2)


# Presets


@pytest.mark.parametrize("preset", list(LitePPO.presets))
def test_presets_build_and_learn(preset):
    learner = rec.method("lite-ppo", preset=preset, batch_prompts=2, samples_per_prompt=4)
    before = [p.clone() for p in learner.policy.parameters()]
    batch = learner.collect()
    batch["reward"] = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])[: len(batch)]
    batch["truncated"] = torch.arange(len(batch)) == 3
    metrics = learner.update(batch)
    assert all(value.isfinite() for value in metrics.values())
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.policy.parameters()))


def test_what_the_presets_stand_for():
    def config(preset):
        return plan("lite-ppo", "vowels", model="tiny", preset=preset, **{"policy.max_tokens": 4}).config

    paper = config("paper")
    assert (paper.batch_prompts, paper.samples_per_prompt, paper.lr, paper.updates_per_batch) == (128, 8, 1e-6, 1)
    assert LitePPO.presets["paper"]["policy.max_tokens"] == 8192
    dapo = config("dapo")
    assert (dapo.surrogate, dapo.aggregate) == (Surrogate(clip_low=0.2, clip_high=0.28), "token")
    assert (dapo.baseline.std, dapo.overlong.buffer, dapo.dynamic_sampling) == ("group", 0.2, 10)
    base = config("group-std")
    assert (base.baseline, base.aggregate) == (GroupBaseline.named["grpo"], "sequence")
    assert config("overlong-filter").overlong.cut == "mask"
    assert (config("dr-grpo").baseline.std, config("dr-grpo").aggregate) == ("none", "constant")


def test_the_reward_rises():
    learner = rec.method("lite-ppo", model="tiny", seed=0, batch_prompts=8, samples_per_prompt=8, lr=3e-3)
    reward = [row["reward"] for row in advance(learner, 10**6, updates=50)]
    assert np.mean(reward[:5]) < 0.25
    assert np.mean(reward[-5:]) > 0.5

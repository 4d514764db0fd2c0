"""COPO against numpy: the global advantage of prompts, entropies of answers, the mixes, and two clipped surrogates."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.methods.language.copo import COPO, MIXES, consistency, local_share
from polopt.training.api import plan
from tests.methods.test_rec import made
from tests.policies.language_models import tiny_folder

MUST = 5
SAMPLES = 4
GROUP = np.repeat([0, 1, 2, 3], SAMPLES)
REWARD = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0], float)
ANSWER = np.array([7, 8, 9, 7, 5, 5, 5, 5, 0, 3, 0, 4, 2, 6, 6, 6])
TOKENS = np.array([3, 1, 4, 2] * 4)
ENTROPY = np.array([1.5, 0.0, 1.5, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))]).repeat(SAMPLES)
MEANS = np.array([0.5, 1.0, 0.0, 0.25])


def copo(**settings):
    """COPO on words of two consonants, a tiny model, and batches of four prompts of four completions."""
    defaults = {"model": str(tiny_folder()), "batch_prompts": 4, "samples_per_prompt": SAMPLES, "policy.max_tokens": 4}
    defaults |= {"updates_per_batch": 1, "reference_kl": None, "lr": 1e-2}
    options = settings.pop("task_options", {"score_truncated": True})
    return plan("copo", "vowels", task_options=options, **{**defaults, **settings}).build()


def batch_of(seed=0, **columns):
    """(batch, log_prob): the groups above, with answers; ratios lie between about 0.1 and 10."""
    batch, log_prob = made(REWARD, GROUP, TOKENS, seed=seed)
    batch["answer"] = torch.from_numpy(ANSWER)
    for name, value in columns.items():
        batch[name] = torch.as_tensor(np.asarray(value))
    return batch, log_prob


def standardized(values, ddof=1):
    return (values - values.mean()) / (values.std(ddof=ddof) + 1e-6)


def local_advantages(reward=REWARD):
    return np.concatenate([standardized(reward[g == GROUP]) for g in range(4)])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def share_by_hand(mix, sharpness=5.0, threshold=1.0):
    soft = sigmoid(sharpness * (ENTROPY - threshold))
    right, differs = REWARD != 0, local_advantages() != 0
    return {
        "soft": soft,
        "soft-with-zero": soft * right,
        "soft-with-forced": soft * differs,
        "zero": right * 1.0,
        "forced": differs * 1.0,
        "global": np.zeros(16),
        "local": np.ones(16),
    }[mix]


def clipped(advantage, ratio):
    """d S / d log_prob of each token by PPO's clip and a dual clip at 3, without weights."""
    a = advantage[:, None]
    stays = np.where(a >= 0, ratio <= 1.2, (ratio >= 0.8) & (ratio <= 3.0))
    return -a * ratio * stays


def gradient(method, batch, log_prob):
    method.policy.log_prob = lambda rows: log_prob
    (part,) = method.optimizer_batches(method.evaluate_groups(batch))
    loss, metrics = method.policy_loss(part)
    return torch.autograd.grad(loss, log_prob)[0].numpy(), metrics


# What must not be skipped


def test_must_1_entropy_is_of_answers_in_bits(float64):
    found = copo().evaluate_groups(batch_of()[0])["answer_entropy"].numpy()
    np.testing.assert_allclose(found, ENTROPY, atol=1e-12)  # twice no answer is the same answer twice


def test_must_1_equal_answers_of_a_task_count_as_one(float64):
    """The task says what the answer is: of sums the last number, however it is led up to."""
    method = plan("copo", "addition", model="tiny", batch_prompts=1, **{"policy.max_tokens": 4}).build()
    texts = ["3+4=7;57", "57", "is 57", "75", "", "?"]
    task = method.task
    task.num = len(texts)
    task.reset(index=torch.zeros(len(texts), dtype=torch.int64))
    task.step({"action": texts})
    answer = task.facts["answer"]
    assert len(set(answer[:3].tolist())) == 1
    assert answer[3] not in answer[:3]
    assert answer[4] == 0


def test_must_2_the_global_advantage_is_over_prompts_each_counted_once(float64):
    method = copo()
    found = method.evaluate_groups(batch_of()[0])["global_advantage"].numpy()
    np.testing.assert_allclose(found, standardized(MEANS).repeat(SAMPLES), atol=1e-12)
    # Failed rows make groups of unequal sizes, which still count once each.
    failed = np.isin(np.arange(16), [0, 1, 5])
    found = method.evaluate_groups(batch_of(failed=failed)[0])["global_advantage"].numpy()
    means = np.array([0.5, 1.0, 0.0, 0.25])
    expected = np.where(failed, 0, standardized(means).repeat(SAMPLES))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mix", MIXES)
def test_must_3_agreement_leads_to_the_global_loss(mix, float64):
    found = copo(mix=mix).evaluate_groups(batch_of()[0])["local_share"].numpy()
    np.testing.assert_allclose(found, share_by_hand(mix), atol=1e-12)
    if mix == "soft":
        assert found[0] > 0.9 > 0.1 > found[4]
    if mix in ("soft-with-zero", "zero"):
        assert found[[1, 2, 8, 13]].tolist() == [0] * 4  # wrong ones, also in a mixed group
    if mix in ("soft-with-forced", "forced"):
        assert (found[4:12] == 0).all()
        assert (found[:4] > 0).all()


@pytest.mark.parametrize("mix", MIXES)
def test_must_4_both_surrogates_are_clipped_by_themselves_and_then_mixed(mix, float64):
    batch, log_prob = batch_of(seed=2)
    settings = {} if mix == "local" else {"global_scale": 0.7}
    found, metrics = gradient(copo(mix=mix, **settings), batch, log_prob)
    new, old, mask = log_prob.detach().numpy(), batch["log_prob"].numpy(), batch["mask"].numpy()
    ratio = np.exp(new - old)
    share, local, everywhere = share_by_hand(mix)[:, None], local_advantages(), standardized(MEANS).repeat(SAMPLES)
    weight = mask / mask.sum(1, keepdims=True) / 16
    expected = weight * (share * clipped(local, ratio) + 0.7 * (1 - share) * clipped(everywhere, ratio))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-15)
    outside = (ratio < 0.8) | (ratio > 1.2)
    assert float(metrics["clip_fraction"]) == pytest.approx(float((weight * outside).sum()))
    if mix == "soft":
        assert (clipped(local, ratio)[mask] == 0).any()
        assert ((clipped(everywhere, ratio) == 0) != (clipped(local, ratio) == 0))[mask].any()


def test_must_5_equal_rewards_have_a_local_advantage_of_exactly_zero(float64):
    reward = torch.tensor([0.1] * 4 + [1 / 3] * 4 + [0.7] * 4 + [0.3, 0.1, 0.2, 0.30000001])
    batch, _ = batch_of()
    batch["reward"] = reward
    given = copo(mix="forced").evaluate_groups(batch)
    assert given["local_share"].tolist() == [0] * 12 + [1] * 4


# The rest


def test_the_shaping_of_the_mean_reward(float64):
    found = consistency(torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([4.0, 4.0, 4.0, 1.0]))
    np.testing.assert_allclose(found, [1, 1 - 0.75 / 2, 0.25, 1])
    batch, _ = batch_of()
    found = copo(shaping="consistency").evaluate_groups(batch)["global_advantage"].numpy()
    shaped = MEANS * (1 - 0.75 * ENTROPY[::SAMPLES] / 2)
    np.testing.assert_allclose(found, standardized(shaped).repeat(SAMPLES), atol=1e-12)


def test_the_published_numbers_of_the_weight():
    """At sharpness 5 and threshold 1: eight completions of which one is another, two answers alike, four alike."""
    entropy = torch.tensor([-(7 / 8 * math.log2(7 / 8) + math.log2(1 / 8) / 8), 1.0, 2.0])
    ones = torch.ones(3)
    found = local_share("soft", entropy, ones, ones, 5.0, 1.0).tolist()
    assert found == pytest.approx([0.09, 0.5, 0.99], abs=0.005)


def test_only_a_reward_of_exactly_0_has_the_global_loss_alone():
    reward, ones = torch.tensor([0.0, 0.25, -1.0, 1.0]), torch.ones(4)
    assert local_share("zero", ones, reward, ones, 5.0, 1.0).tolist() == [0, 1, 1, 1]
    assert local_share("forced", ones, ones, reward, 5.0, 1.0).tolist() == [0, 1, 1, 1]


def test_a_batch_of_one_prompt_has_no_global_loss(float64):
    method = copo(mix="global", batch_prompts=1)
    batch = batch_of()[0][:SAMPLES]
    assert method.evaluate_groups(batch)["global_advantage"].abs().max() < 1e-9


def test_metrics_count_prompts(float64):
    method = copo()
    batch = method.evaluate_groups(batch_of()[0])
    metrics = method.batch_metrics(batch)
    assert float(metrics["answer_entropy"]) == pytest.approx(ENTROPY.mean())
    assert float(metrics["degenerate"]) == 0.5
    assert float(metrics["reached"]) == 1.0
    assert float(metrics["local_share"]) == pytest.approx(share_by_hand("soft-with-zero").mean())
    alone = copo(mix="local")
    assert float(alone.batch_metrics(alone.evaluate_groups(batch_of()[0]))["reached"]) == 0.5


def test_answers_come_with_the_batch(float64):
    method = copo(task_options={"pool": 8, "score_truncated": True})
    batch = method.evaluate_groups(method.collect())
    texts = method.policy.decode(batch["completion"], batch["attention"], behind=True)
    for group in range(4):
        rows = [row for row in range(16) if batch["group"][row] == group]
        answers = [method.task.extract(method.task.problems([int(batch["index"][row])])[0], texts[row]) for row in rows]
        shares = np.array(list(Counter(answers).values())) / len(rows)
        expected = -(shares * np.log2(shares)).sum()
        assert batch["answer_entropy"][rows[0]].item() == pytest.approx(expected)


def test_what_has_no_effect_is_refused():
    for settings, message in [
        ({"mix": "forced", "sharpness": 20.0}, "no effect on the mix 'forced'"),
        ({"mix": "local", "global_scale": 2.0}, "where there is no global loss"),
    ]:
        with pytest.raises(UsageError, match=message):
            COPO.Config(**settings)


@pytest.mark.parametrize("preset", ["paper", "dapo", "small"])
def test_presets_build(preset):
    method = plan("copo", "vowels", preset=preset, model="tiny", **{"policy.max_tokens": 8}).build()
    config = method.config
    assert (config.mix, config.sharpness, config.threshold) == ("soft-with-zero", 5.0, 1.0)
    if preset == "paper":
        assert (config.batch_prompts, config.samples_per_prompt, config.lr) == (512, 6, 1e-6)
        assert config.batch_prompts // config.updates_per_batch == 32

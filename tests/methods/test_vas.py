"""VAS against numpy: what prompts score, when, what it costs, and which ones are drawn."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.methods.language.vas import VAS, PromptWeights, normalized, outcome_variance
from polopt.training.api import plan
from polopt.values.diversity import distinct, unlike
from tests.policies.language_models import tiny_folder

MUST = 4
POOL, BATCH, GROUP, SCORED = 12, 4, 2, 4


def make(name="vas", pool=POOL, **settings):
    """A method on a pool of words, with four tokens to write."""
    options = settings.pop("task_options", {"pool": pool, "score_truncated": True})
    defaults = {"model": str(tiny_folder()), "policy.max_tokens": 4, "lr": 1e-2}
    defaults |= {"batch_prompts": BATCH, "samples_per_prompt": GROUP}
    if name == "vas" and settings.get("weighted_share") != 0:
        defaults |= {"scoring_samples": SCORED}
    defaults |= {"reference_kl": None}
    return plan(name, "vowels", task_options=options, **{**defaults, **settings}).build()


def weighted(method, weights):
    """As if the pool had been scored."""
    method.weights.weight, method.weights.age = torch.tensor(weights), 0
    return method


def answered(method, solved, failed=()):
    """A part of a sweep in which of the answers to its prompts so many are right, the first ones."""
    batch = method.collect()
    assert "scoring" in batch.keys()
    batch["correct"] = torch.cat([torch.arange(SCORED) < count for count in solved])
    batch["failed"][list(failed)] = True
    for name in ("mask", "log_prob", "engine_log_prob"):
        batch[name][list(failed)] = 0
    return batch


def rescored(method):
    """The batches until the next one that trains, and that one."""
    parts = []
    while "scoring" in (batch := method.collect()).keys():
        parts.append(batch)
        method.update(batch)
    return parts, batch


# Scores


def test_must_3_scores_by_hand(float64):
    rate = torch.tensor([0.0, 0.5, 0.25, 1.0])
    assert outcome_variance(rate).tolist() == [0, 0.25, 0.1875, 0]
    np.testing.assert_allclose(normalized(torch.tensor([0.1, 0.2, 0.5])), [0, 0.25, 1], rtol=1e-6)
    assert normalized(torch.full((3,), 0.7)).tolist() == [0, 0, 0]
    top = normalized(torch.tensor([0.0, 1e-8])).tolist()[1]
    assert top == pytest.approx(0.5)  # 1e-8 is added to the range


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_weights_of_all_scores(momentum, float64):
    weights = PromptWeights(4, momentum)
    weights.note(torch.tensor([2, 0]), torch.tensor([0.25, 0.0]))
    assert weights.age is None
    assert weights.weight.tolist() == [0] * 4
    weights.note(torch.tensor([3, 1]), torch.tensor([0.05, 0.1]))
    weights.renew()
    first = np.array([0, 0.4, 1, 0.2])
    np.testing.assert_allclose(weights.weight, first, rtol=1e-6)  # no momentum on the first
    weights.age = 3
    weights.note(torch.arange(4), torch.tensor([0.2, 0.0, 0.0, 0.1]))
    weights.renew()
    assert weights.age == 0
    np.testing.assert_allclose(weights.weight, momentum * first + (1 - momentum) * np.array([1, 0, 0, 0.5]), rtol=1e-6)


def test_a_pool_is_scored(float64):
    method = make(pool=6, batch_prompts=4)  # parts of two prompts: four answers each, as many as a batch has
    before = {name: value.clone() for name, value in method.policy.state_dict().items()}
    for part, (solved, failed) in enumerate((([0, 4], ()), ([1, 2], (3, 4)), ([3, 4], (4, 5, 6, 7)))):
        batch = answered(method, solved, failed)
        assert batch["index"].tolist()[::SCORED] == [2 * part, 2 * part + 1]
        found = method.update(batch)
        assert float(found["waiting"]) == pytest.approx((4 - 2 * part) / 6)
        assert (method.weights.age is None) == (part < 2)
    rates = np.array([0, 1, 1 / 3, 1 / 3, 3 / 4, 0])  # answers that failed are left out
    variance = rates * (1 - rates)
    np.testing.assert_allclose(method.weights.weight, variance / variance.max(), rtol=1e-6)
    assert float(found["pass_rate"]) == pytest.approx(rates[4:].mean())
    assert float(found["varied"]) == 0.5
    assert all(torch.equal(value, before[name]) for name, value in method.policy.state_dict().items())


@pytest.mark.parametrize(("diversity", "measure"), [("distinct-3", distinct), ("self-bleu", unlike)])
def test_must_3_diversity_has_a_weight(diversity, measure, float64):
    method = make(pool=2, batch_prompts=2, diversity=diversity, diversity_weight=0.2, outcome_weight=0.8)
    parts, texts = [], []
    while method.sweep.left or not parts:
        batch = answered(method, [1], failed=[2])
        parts.append(batch)
        rows = [row[mask].tolist() for row, mask in zip(batch["completion"], batch["mask"])]
        assert [len(row) for row in rows][2] == 0
        texts.append(measure([rows[0], rows[1], rows[3]]))
        method.update(batch)
    np.testing.assert_allclose(method.weights.score, 0.8 * 2 / 9 + 0.2 * np.array(texts), rtol=1e-6)


def test_what_is_right_is_the_verifiers_or_a_reward():
    rewards = torch.tensor([0.0, 0.25, 0.7, 1.0] * POOL)
    for right_at, rate in ((None, 0.25), (0.7, 0.5), (0.25, 0.75)):
        method = make(right_at=right_at, batch_prompts=12, samples_per_prompt=4)
        batch = answered(method, [1] * POOL)
        batch["reward"] = rewards
        assert float(method.update(batch)["pass_rate"]) == rate


# When


@pytest.mark.parametrize(("every", "sizes"), [(2, [6, 0, 6, 0, 6]), (None, [6, 0, 0, 0, 0]), (1, [6, 6, 6, 6, 6])])
def test_must_4_the_pool_is_scored_again_and_charged(every, sizes):
    method = make(rescore_every=every)
    spent, found = 0, []
    for _ in sizes:
        parts, batch = rescored(method)
        found.append(len(parts))
        assert sum(map(len, parts)) in (0, POOL * SCORED)
        spent += sum(map(len, parts)) + len(batch)
        method.update(batch)
        assert method.ledger.completions == spent
    assert found == sizes


def test_must_1_scores_are_those_of_the_present_policy(float64):
    method = make(rescore_every=1)
    _, batch = rescored(method)
    old = copy.deepcopy(method.policy)
    batch["reward"] = torch.tensor([0.0, 1.0] * BATCH)
    method.update(batch)
    part = method.collect()
    assert "scoring" in part.keys()
    torch.testing.assert_close(part["log_prob"], method.policy.log_prob(part) * part["mask"])
    assert not torch.allclose(part["log_prob"], old.log_prob(part) * part["mask"])


def test_no_number_of_steps_is_promised_where_scores_are_paid_for():
    assert "optimizer steps" in VAS.derived(make(weighted_share=0.0).config, 1000)
    found = VAS.derived(make().config, 1000)
    assert "optimizer steps" not in found
    assert found["completions per scored prompt"] == SCORED


# Which prompts


def test_must_2_half_by_weight_and_half_of_the_whole_pool():
    method = weighted(make(rescore_every=None), [0.0] * 7 + [1.0] + [0.0] * 4)
    rest = []
    for _ in range(12):
        batch = method.collect()
        index = batch["index"].tolist()[::GROUP]
        assert index[::2] == [7, 7]  # with replacement, in turn with the others
        assert batch["group"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # each draw is a group of its own
        rest += index[1::2]
        method.weights.renew()  # new weights move nothing here
        weighted(method, [0.0] * 7 + [1.0] + [0.0] * 4)
    assert sorted(rest[:12]) == list(range(12))
    assert rest[12:] == rest[:12]  # the same order again


def test_weights_are_proportional():
    method = weighted(make(weighted_share=1.0), [0.0, 1.0, 3.0] + [0.0] * 9)
    counts = np.bincount([number for _ in range(500) for number in method.source.sampler.draw(4)], minlength=POOL)
    np.testing.assert_allclose(counts[:3] / counts.sum(), [0, 0.25, 0.75], atol=0.04)
    assert counts[3:].sum() == 0


@pytest.mark.parametrize("solved", [0, 2, 4])
def test_of_equal_scores_all_are_drawn(solved):
    method = make(weighted_share=1.0, batch_prompts=12, samples_per_prompt=4)
    method.update(answered(method, [solved] * POOL))
    assert method.weights.weight.tolist() == [0] * POOL
    drawn = [number for _ in range(20) for number in method.source.sampler.draw(12)]
    assert len(set(drawn)) == POOL


def test_must_2_a_share_that_is_rounded_down():
    method = weighted(make(batch_prompts=5, weighted_share=0.5), [1.0] + [0.0] * 11)
    method.source.sampler.second.order = torch.arange(11, -1, -1)
    assert method.source.sampler.draw(5) == [0, 11, 0, 10, 9]


# The limit


def test_without_weighted_prompts_it_draws_as_grpo_does():
    grpo = make("grpo", seed=3).source.sampler
    vas = make(weighted_share=0.0, seed=3).source.sampler
    epoch = [grpo.draw(4) for _ in range(3)]
    assert [vas.draw(4) for _ in range(3)] == epoch
    assert vas.draw(4) == epoch[0]  # the order is kept, where GRPO draws another
    assert grpo.draw(4) != epoch[0]


def test_the_loss_of_the_official_settings(float64):
    """Clipped ratios and 0.01 times k3, both of them means over tokens."""
    method = make(weighted_share=0.0, reference_kl="reference-kl", **{"reference_kl.coefficient": 0.01})
    assert make(**{"reference_kl.coefficient": 0.01, "reference_kl": "reference-kl"}).config.aggregate == "token"
    rng = np.random.default_rng(0)
    batch = method.evaluate_groups(method.collect())
    (part,) = method.optimizer_batches(batch)
    mask, old = part["mask"].numpy(), part["log_prob"].numpy()
    advantage = rng.normal(size=len(mask))
    ratio = rng.choice([0.7, 0.9, 1.1, 1.3], mask.shape)
    new = torch.tensor((old + np.log(ratio)) * mask).requires_grad_()
    far = rng.normal(0, 0.5, mask.shape)
    part["advantage"], part["reference_log_prob"] = torch.tensor(advantage), (new.detach() + torch.tensor(far)) * 1.0
    method.policy.log_prob = lambda rows: new
    (found,) = torch.autograd.grad(method.policy_loss(part)[0], [new])
    kept = np.where(advantage[:, None] > 0, ratio < 1.2, ratio > 0.8)
    expected = mask * (-advantage[:, None] * ratio * kept + 0.01 * (1 - np.exp(far))) / mask.sum()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-15)


# Where it could break


def test_refuses_what_it_cannot_remember():
    for settings, said in (
        ({"task_options": {}}, "vas remembers every prompt: it needs finitely many"),
        ({"batch_prompts": 13}, "batch_prompts 13 is more than the 12 prompts of vowels"),
        ({"weighted_share": 0.0, "momentum": 0.5}, "momentum has no effect where no prompt is drawn by weight"),
        ({"rescore_every": None, "momentum": 0.5}, "momentum has no effect where scores are taken only once"),
        ({"diversity": "self-bleu"}, "diversity has no effect without a diversity_weight"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            make(**settings)
        assert "\n" not in str(caught.value)


def test_a_task_that_verifies_nothing_needs_a_reward_or_no_scores(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text("".join(f'{{"prompt": "{word}:"}}\n' for word in ("ab", "cd", "ef", "gh", "ij", "kl")))

    def one(**settings):
        options = {"rewards": lambda completion, **columns: len(completion) / 4, "heldout": 0}
        small = {"model": str(tiny_folder()), "policy.max_tokens": 4, "batch_prompts": 2, "samples_per_prompt": 2}
        return plan("vas", str(path), task_options=options | {"score_truncated": True}, **small, **settings).build()

    with pytest.raises(UsageError, match="does not verify any: say with --right-at"):
        one()
    assert "scoring" in one(right_at=0.5).collect().keys()
    assert "scoring" not in one(weighted_share=0.0).collect().keys()


def test_an_epoch_in_which_nothing_is_learned(float64):
    method = make(rescore_every=2, weight_decay=0.0)
    before = {name: value.clone() for name, value in method.policy.state_dict().items()}
    for update in range(30):
        batch = method.collect()
        batch["reward"], batch["correct"] = torch.zeros_like(batch["reward"]), torch.zeros_like(batch["correct"])
        found = method.update(batch)
        assert all(math.isfinite(value) for value in found.values())
        assert update < 6 or "scoring" in batch.keys() or float(found["informative"]) == 0
    assert all(torch.equal(value, before[name]) for name, value in method.policy.state_dict().items())


@pytest.mark.parametrize("updates", [2, 7, 9], ids=["while scoring", "between two scorings", "while scoring again"])
def test_a_restored_run_goes_on_exactly(updates):
    def advance(method, count):
        found = []
        for _ in range(count):
            batch = method.collect()
            found.append((batch["index"].tolist(), {k: float(v) for k, v in method.update(batch).items()}))
        return found

    settings = {"right_at": 0.3, "rescore_every": 2, "momentum": 0.5, "seed": 5}
    one = make(**settings)
    advance(one, updates)
    assert (one.sweep.left > 0) == (updates != 7)
    flat = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(one).items()}
    other = make(**settings)
    advance(other, 8)
    restore(other, flat)
    random = torch.get_rng_state()
    expected = advance(one, 9)
    torch.set_rng_state(random)
    assert advance(other, 9) == expected
    assert torch.equal(one.weights.weight, other.weights.weight)


@pytest.mark.parametrize("preset", ["mixed", "paper", "small"])
def test_presets_run(preset):
    small = {"model": str(tiny_folder()), "policy.max_tokens": 4, "batch_prompts": 2, "samples_per_prompt": 2}
    options = {"pool": 4, "score_truncated": True}
    method = plan("vas", "vowels", preset=preset, task_options=options, **small).build()
    assert (method.config.diversity_weight > 0) == (preset == "mixed")
    assert (method.config.policy.temperature == 0.6) == (preset == "paper")
    parts, batch = rescored(method)
    assert len(parts) == 4 * 8 / max(8, 2 * 2)
    assert all(math.isfinite(value) for value in method.update(batch).values())

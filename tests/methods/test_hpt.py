"""HPT against numpy: which rows count, their advantages and weights, and every row of the unified estimator's table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.losses import Surrogate
from polopt.methods.language.hpt import IMITATED, OFFLINE, OWN, gates
from polopt.regularizers import ReferenceKL
from polopt.training.api import plan
from tests.losses.test_named_surrogates import keep_and_reference
from tests.policies.language_models import tiny_folder

MUST = 4
PROMPTS, SAMPLES, LENGTH = 4, 4, 12
SOLVED = (0, 1, 2, 4)
RL = 64 / (PROMPTS * SAMPLES * LENGTH)  # what one token of an own completion weighs


def make(**settings):
    """HPT on sums of one digit, four prompts of four completions."""
    task_options = settings.pop("task_options", {"digits": 1, "score_truncated": True})
    settings = {"model": str(tiny_folder()), "policy.max_tokens": LENGTH, "updates_per_batch": 1} | settings
    settings = {"batch_prompts": PROMPTS, "samples_per_prompt": SAMPLES, "lr": 1e-2} | settings
    return plan("hpt", "addition", task_options=task_options, **settings).build()


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def collected(method, solved=SOLVED, failed=()):
    """A batch in which so many completions of each prompt are right, and rows `failed` could not be scored."""
    batch = method.collect()
    right = np.concatenate([np.arange(SAMPLES) < count for count in solved])
    right[list(failed)] = False
    batch["correct"] = torch.tensor(right)
    batch["reward"] = torch.tensor(right.astype(float))
    batch["failed"][list(failed)] = True
    for name in ("mask", "log_prob", "engine_log_prob"):
        batch[name][list(failed)] = 0
    return batch


def rows_of(method, *args, **kwargs):
    """The rows that count, in one optimizer step; log_prob moved away from old."""
    (rows,) = method.optimizer_batches(method.score_reference(method.mix(collected(method, *args, **kwargs))))
    return rows


def gradients(method, rows, seed=0):
    """(log_prob, d loss / d log_prob, d loss / d entropy), numpy [B, T], of the policy loss at other log_probs."""
    rng = np.random.default_rng(seed)
    new = torch.tensor((rows["log_prob"].numpy() + rng.normal(0, 0.4, rows["mask"].shape)).clip(None, -1e-3))
    new = (new * rows["mask"]).requires_grad_()
    entropy = torch.ones_like(new, requires_grad=True)
    method.policy.log_prob, method.policy.entropy = lambda batch: new, lambda batch: entropy
    loss, metrics = method.policy_loss(rows)
    assert all(value.isfinite() for value in (loss, *metrics.values()))
    by_log_prob, by_entropy = torch.autograd.grad(loss, (new, entropy), allow_unused=True, materialize_grads=True)
    return new.detach().numpy(), by_log_prob.numpy(), by_entropy.numpy()


def texts(method, rows):
    """(prompt, completion) of each row."""
    prompts = method.policy.decode(rows["prompt"], rows["prompt_mask"])
    return list(zip(prompts, method.policy.decode(rows["completion"], rows["attention"])))


def arrays(rows, *names):
    return [rows[name].numpy() for name in names]


# Which rows count


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_must_1_the_gate_is_per_question_and_per_step(gate, float64):
    method = make(gate=gate)
    for solved in (SOLVED, (3, 0, 0, 1), (0, 4, 1, 2)):  # fresh completions decide again at every step
        batch = collected(method, solved)
        rows = method.mix(batch)
        number, ids = batch["index"][::SAMPLES].tolist(), rows["index"].tolist()
        imitated = [i for i, count in enumerate(solved) if count <= gate]
        own = [i for i, count in enumerate(solved) if count > gate]
        assert rows["origin"].tolist() == [OWN] * (SAMPLES * len(own)) + [IMITATED] * len(imitated)
        assert ids == [number[i] for i in own for _ in range(SAMPLES)] + [number[i] for i in imitated]
        assert texts(method, rows)[SAMPLES * len(own) :] == method.task.demonstrations([number[i] for i in imitated])
        assert rows["share"].tolist() == [1.0] * len(rows)


def test_must_1_imitated_prompts_contribute_no_rl_term(float64):
    method = make(gate=1, entropy_coefficient=0.0, sft_coefficient=0.3)
    rows = rows_of(method)  # prompts 2 and 3 by reinforcement, demonstrations of 0 and 1
    old, mask, origin, reward = *arrays(rows, "log_prob", "mask", "origin"), np.array([1, 1, 0, 0, 1, 1, 1, 1.0, 1, 1])
    new, found, _ = gradients(method, rows)
    expected = np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask)):
        if origin[i] == OWN:
            advantage = reward[i] - reward[4 * (i // 4) : 4 * (i // 4) + 4].mean()
            expected[i, t] = -advantage * math.exp(new[i, t] - old[i, t]) * RL
        else:
            expected[i, t] = -0.3 / mask[origin == IMITATED].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)
    assert (np.abs(found[:4]) > 0).any()
    assert (np.abs(found[8:]) > 0).any()
    np.testing.assert_allclose(found[4:8], 0.0, atol=1e-16)  # always solved: nothing to reinforce


@pytest.mark.parametrize("settings", [{"gate": 0}, {"gate": 0, "offline_gate": 2}, {"gating": "fixed"}])
def test_must_2_rl_statistics_exclude_demonstrations(settings, float64):
    method = make(**settings)
    rows = method.mix(collected(method))
    origin, advantage, index = arrays(rows, "origin", "advantage", "index")
    for number, solved in zip(np.unique(index), SOLVED):  # ids of new prompts count up
        own = advantage[(origin == OWN) & (index == number)]
        if len(own):
            np.testing.assert_allclose(own, (np.arange(SAMPLES) < solved) - solved / SAMPLES, atol=1e-15)
    assert (advantage[origin == IMITATED] == 1).all()


def test_must_4_without_demonstrations_nothing_is_nan_and_the_loss_is_rl_alone(float64):
    method = make(gate=0, entropy_coefficient=0.0)
    rows = rows_of(method, (1, 2, 3, 1))
    assert (rows["origin"] == OWN).all()
    new, found, _ = gradients(method, rows)
    old, mask, advantage = arrays(rows, "log_prob", "mask", "advantage")
    expected = mask * -advantage[:, None] * np.exp(new - old) * RL
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)
    metrics = method.update(collected(method, (1, 2, 3, 1)))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["imitated"] == 0
    assert metrics["imitation_log_prob"] == 0


@pytest.mark.parametrize(("gate", "imitated"), [(-1, 0), (0, 1), (1, 2), (2, 3), (4, 4)])
def test_must_4_the_gate_is_a_setting(gate, imitated):
    method = make(gate=gate)
    assert float(method.update(collected(method))["imitated"]) == imitated / PROMPTS


def test_without_own_rows_it_is_supervised_fine_tuning(float64):
    method = make(gate=SAMPLES, entropy_coefficient=0.0)
    rows = rows_of(method)
    assert len(rows) == PROMPTS
    assert (rows["origin"] == IMITATED).all()
    _, found, _ = gradients(method, rows)
    np.testing.assert_allclose(found, -1.0 * rows["mask"].numpy() / rows["mask"].sum().item(), rtol=1e-12)
    method = make(gate=SAMPLES)
    start = [p.clone() for p in method.policy.parameters()]
    metrics = method.update(collected(method))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["imitated"] == 1
    assert metrics["surrogate"] == 0
    assert not all(torch.equal(p, q) for p, q in zip(start, method.policy.parameters()))


def test_soft_gates_are_the_table():
    """By k, the solved of 8 with the demonstration among them: (0, 1), (1/8, 1/2), (1/4, 1/4), (1/2, 1/8), (1, 0)."""
    table = {0: (0, 1), 1: (0.125, 0.5), 2: (0.25, 0.25), 3: (0.5, 0.125)}
    for samples in (7, 8):
        alpha, beta = gates(torch.arange(samples + 1.0), samples, 0, "soft")
        expected = [table.get(count, (1, 0)) for count in range(samples + 1)]
        assert list(zip(alpha.tolist(), beta.tolist())) == expected


def test_soft_gates_scale_the_rows_of_their_prompt(float64):
    method = make(gating="soft", entropy_coefficient=0.0, sft_coefficient=2.0)
    rows = rows_of(method)  # 0, 1, 2, 4 of 4: sevenths 0, 2, 4, 7
    origin, share, index, weight, mask = arrays(rows, "origin", "share", "index", "weight", "mask")
    first = index.min()
    assert sorted(set(index[origin == OWN] - first)) == [1, 2, 3]
    assert sorted(set(index[origin == IMITATED] - first)) == [0, 1]
    for kind, number, expected in ((OWN, 1, 0.25), (OWN, 2, 1), (OWN, 3, 1), (IMITATED, 0, 1), (IMITATED, 1, 0.25)):
        chosen = (origin == kind) & (index == first + number)
        assert share[chosen] == pytest.approx(expected)
        scale = RL if kind == OWN else 2.0 / mask[origin == IMITATED].sum()
        np.testing.assert_allclose(weight[chosen], expected * scale * mask[chosen], rtol=1e-12)


def test_fixed_mixing_takes_half_of_each(float64):
    method = make(gating="fixed")
    rows = rows_of(method)
    origin, weight = arrays(rows, "origin", "weight")
    assert (origin == OWN).sum() == PROMPTS * SAMPLES
    assert (origin == IMITATED).sum() == PROMPTS
    assert (rows["share"] == 0.5).all()
    assert weight[origin == IMITATED].sum() == pytest.approx(0.5)
    assert weight[origin == OWN].sum() == pytest.approx(0.5 * rows["mask"].numpy()[origin == OWN].sum() * RL)


def test_offline_gate_makes_demonstrations_rows_of_rl(float64):
    method = make(gate=0, offline_gate=2, entropy_coefficient=0.0)
    rows = rows_of(method)
    origin, advantage, mask = arrays(rows, "origin", "advantage", "mask")
    assert origin.tolist() == [OWN] * 4 + [IMITATED] + [OFFLINE] * 2
    np.testing.assert_allclose(advantage[origin == OFFLINE], [1 - 2 / 5, 1 - 3 / 5])  # 1 - mean of own and itself
    new, found, _ = gradients(method, rows)
    for i in np.flatnonzero(origin == OFFLINE):
        p = np.exp(new[i])  # LUFFY: gradient of p / (p + 0.1) is 0.1 p / (p + 0.1)^2 grad log p
        expected = mask[i] * -advantage[i] * 0.1 * p / (p + 0.1) ** 2 * RL
        np.testing.assert_allclose(found[i], expected, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(found[4], mask[4] / -mask[4].sum(), rtol=1e-12)


def test_low_branch_can_be_offline_rl_alone():
    method = make(gate=-1, offline_gate=1)
    rows = method.mix(collected(method))
    assert rows["origin"].tolist() == [OWN] * 8 + [OFFLINE] * 2
    assert rows["advantage"][8:].tolist() == pytest.approx([0.8, 0.6])


# The estimator


@pytest.mark.parametrize("name", list(Surrogate.named))
def test_must_3_every_row_of_the_table_is_a_setting(name, float64):
    method = make(surrogate=name, entropy_coefficient=0.0)
    rows = rows_of(method, (1, 2, 3, 0))
    new, found, _ = gradients(method, rows)
    old, mask, advantage, origin = arrays(rows, "log_prob", "mask", "advantage", "origin")
    for i in np.flatnonzero(origin == OWN):
        sequence = math.exp((new[i] - old[i])[mask[i]].mean())
        for t in np.flatnonzero(mask[i]):
            pi = math.exp(new[i, t])
            kept, reference = keep_and_reference(name, pi, math.exp(old[i, t]), advantage[i], sequence)
            expected = -kept * advantage[i] / reference * pi * RL
            assert found[i, t] == pytest.approx(expected, rel=1e-10, abs=1e-16)
    np.testing.assert_allclose(found[origin == IMITATED], mask[-1:] / -mask[-1].sum(), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name, value in Surrogate.named.items() if not value.needs_old])
def test_must_3_offline_rows_take_the_rows_without_an_old_policy(name, float64):
    method = make(gate=-1, offline_gate=4, offline_surrogate=name, entropy_coefficient=0.0)
    rows = rows_of(method)
    new, found, _ = gradients(method, rows)
    mask, advantage = arrays(rows, "mask", "advantage")
    for i, t in zip(*np.nonzero(mask)):
        pi = math.exp(new[i, t])
        kept, reference = keep_and_reference(name, pi, 1.0, advantage[i], 1.0)
        assert found[i, t] == pytest.approx(-kept * advantage[i] / reference * pi * RL, rel=1e-10)


# Weights


def test_both_terms_have_the_scale_of_the_official_run(float64):
    """Written out as it is computed there: each of two devices adds up its rows over the constant length and takes the
    mean over the tokens of its demonstrations; the gradients of the devices are averaged."""
    method = make(gate=1, entropy_coefficient=0.0, rl_coefficient=PROMPTS * SAMPLES / 2)  # rows of a device
    rows = rows_of(method)
    new, found, _ = gradients(method, rows)
    old, mask, origin, advantage = arrays(rows, "log_prob", "mask", "origin", "advantage")
    devices = [np.array([0, 1, 4, 5, 8]), np.array([2, 3, 6, 7, 9])]  # one demonstration each
    expected = np.zeros(mask.shape)
    for device in devices:
        for i in device:
            if origin[i] == OWN:
                expected[i] = mask[i] * -advantage[i] * np.exp(new[i] - old[i]) / LENGTH / 2
    np.testing.assert_allclose(found[origin == OWN], expected[origin == OWN], rtol=1e-12, atol=1e-16)
    learned = mask[origin == IMITATED]  # a mean over the step, however the demonstrations are spread over devices
    np.testing.assert_allclose(found[origin == IMITATED], -(learned / learned.sum()), rtol=1e-12)


def test_by_default_neither_half_is_off(float64):
    """At the size of the official step, 512 completions, 64 of them are added up for one mean of the other half."""
    method = make(batch_prompts=128, samples_per_prompt=8, updates_per_batch=2, gate=1)
    assert method.config.rl_coefficient == 64
    batch = TensorDict({"mask": torch.ones(512, LENGTH, dtype=torch.bool)}, [512])
    batch["origin"] = torch.full((512,), OWN)
    batch["origin"][384:] = IMITATED
    batch["share"] = torch.ones(512)
    weight = method.weigh(batch)["weight"]
    torch.testing.assert_close(weight[:384], torch.full((384, LENGTH), 1 / (8 * LENGTH)))  # 8 devices
    torch.testing.assert_close(weight[384:], torch.full((128, LENGTH), 1 / (128 * LENGTH)))


def test_numbers_of_own_completions_are_means_whatever_the_coefficients(float64):
    shown = []
    for coefficient in (1.0, 64.0):
        method = make(gate=1, rl_coefficient=coefficient, reference_kl=ReferenceKL(0.1, "k2"), surrogate="ppo")
        (rows,) = method.optimizer_batches(method.score_reference(method.mix(collected(method))))
        shift = 0.5 * rows["mask"]
        rows["log_prob"], rows["reference_log_prob"] = rows["log_prob"] - shift, rows["reference_log_prob"] - shift
        shown.append(method.policy_loss(rows)[1])
    for metrics in shown:
        assert metrics["clip_fraction"] == pytest.approx(1.0)  # of every token, exp(0.5) is beyond 1.2
        assert metrics["approx_kl_k1"] == pytest.approx(-0.5)
        assert metrics["reference_kl"] == pytest.approx(0.125)


@pytest.mark.parametrize(("solved", "own"), [((0, 4, 4, 4), 0.75), ((0, 0, 0, 4), 0.25)])
def test_rl_counts_by_the_number_of_its_rows_and_imitation_is_a_mean(solved, own, float64):
    rows = rows_of(make(aggregate="token", rl_coefficient=1.0), solved)
    totals = [rows["weight"][rows["origin"] == kind].sum().item() for kind in (OWN, IMITATED)]
    assert totals == pytest.approx([own, 1.0])


@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_change_nothing(size, float64):
    found = []
    for micro_batch in (None, size):
        method = make(gate=1, offline_gate=2, micro_batch=micro_batch, seed=3, reference_kl=ReferenceKL(0.1))
        metrics = method.update(collected(method))
        found.append(([p.grad for p in method.optimizer.parameters], metrics))
    for one, other in zip(*(grads for grads, _ in found)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-9, atol=1e-12)


def test_several_steps_take_each_row_once():
    method = make(gate=1, updates_per_batch=3)
    rows = method.mix(collected(method))
    parts = list(method.optimizer_batches(rows))
    assert [len(part) for part in parts] == [4, 4, 2]
    seen = sorted(text for part in parts for text in texts(method, part))
    assert seen == sorted(texts(method, rows))
    for part in parts:
        imitated = part["weight"][part["origin"] == IMITATED]
        assert imitated.sum().item() == pytest.approx(1.0 if len(imitated) else 0.0)


def test_entropy_is_averaged_over_all_tokens(float64):
    method = make(entropy_coefficient=0.25)
    rows = rows_of(method)
    _, _, found = gradients(method, rows)
    mask = rows["mask"].numpy()
    np.testing.assert_allclose(found, -0.25 * mask / mask.sum(), rtol=1e-12)


def test_engine_correction_weighs_own_completions_only(float64):
    found = []
    for correction in ({"engine_correction": "none"}, {"engine_correction": "token", "engine_cap": 1.5}):
        method = make(entropy_coefficient=0.0, seed=1, **correction)
        batch = collected(method)
        gap = np.random.default_rng(0).normal(0, 0.5, batch["mask"].shape) * batch["mask"].numpy()
        batch["engine_log_prob"] = batch["log_prob"] - torch.tensor(gap)
        (rows,) = method.optimizer_batches(method.mix(batch))
        found.append((gradients(method, rows)[1], rows))
    (plain, rows), (corrected, _) = found
    own = rows["origin"].numpy() == OWN
    difference = (rows["log_prob"] - rows["engine_log_prob"]).numpy()
    expected = plain * np.where(own[:, None], np.exp(difference).clip(None, 1.5), 1.0)
    np.testing.assert_allclose(corrected, expected, rtol=1e-12, atol=1e-16)
    assert (np.exp(difference) > 1.5).any()


def test_failed_rows_are_in_no_statistic_and_no_term(float64):
    method = make(gate=0, entropy_coefficient=0.0)
    failed = [5, 6, 12, 13, 14, 15]  # two of the second prompt, all of the last
    rows = rows_of(method, failed=failed)
    origin, advantage, index, mask = arrays(rows, "origin", "advantage", "index", "mask")
    first = index.min()
    assert sorted(index[origin == IMITATED] - first) == [0, 3]  # nothing of it is known to be solved
    np.testing.assert_allclose(advantage[:4], [0.5, 0, 0, -0.5])  # one of the two that were scored
    assert not mask[1:3].any()
    new, found, _ = gradients(method, rows)
    old = rows["log_prob"].numpy()
    expected = mask * -advantage[:, None] * np.exp(new - old) * RL
    np.testing.assert_allclose(found[:8], expected[:8], rtol=1e-12, atol=1e-16)


def test_penalty_against_a_reference_is_of_own_completions(float64):
    found = []
    for coefficient in (None, 0.5):
        kl = None if coefficient is None else ReferenceKL(coefficient, estimator="k2")
        method = make(gate=0, reference_kl=kl, entropy_coefficient=0.0, seed=2)
        rows = rows_of(method)
        found.append((gradients(method, rows)[1], rows))
    (plain, _), (penalized, rows) = found
    own = rows["origin"].numpy() == OWN
    np.testing.assert_array_equal(plain[~own], penalized[~own])
    assert not np.allclose(plain[own], penalized[own])


# Settings


def test_settings_of_the_official_runs():
    assert plan("hpt", "addition", model="tiny").config.gate == 0
    config = plan("hpt", "addition", model="tiny", preset="llama-8b").config
    assert (config.gate, config.sft_coefficient, config.batch_prompts, config.lr) == (2, 1.0, 128, 5e-6)
    config = plan("hpt", "addition", model="tiny", preset="qwen-1.5b").config
    assert (config.gate, config.sft_coefficient, config.surrogate.keep, config.aggregate) == (0, 0.3, "all", "constant")
    assert (config.samples_per_prompt, config.entropy_coefficient, config.reference_kl) == (8, 0.001, None)
    assert config.baseline.std == "none"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gating": "soft", "gate": 2}, "gate and offline_gate have no effect on the gating 'soft'"),
        ({"gating": "fixed", "offline_gate": 2}, "gate and offline_gate have no effect on the gating 'fixed'"),
        (
            {"offline_surrogate": "ppo"},
            "offline_surrogate must do without an old policy, as luffy, srft and sft do",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings, sentence):
    with pytest.raises(UsageError) as error:
        make(**settings)
    assert str(error.value) == sentence


def test_a_task_without_a_verifier_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "say a"}\n{"prompt": "say b"}\n')
    options = {"rewards": "tests.methods.test_hpt:length"}
    with pytest.raises(UsageError, match=r"hpt counts right completions, and .* does not verify any"):
        plan("hpt", str(path), task_options=options, model=str(tiny_folder())).build()


def test_imitation_gives_way_to_reinforcement():
    """Next to nothing is solved at first, and imitated; what has been learned is reinforced instead."""
    method = make(model="tiny", task_options={"digits": 1, "pool": 4}, seed=2)
    history = [method.update(method.collect()) for _ in range(30)]
    first, last = history[:3], history[-5:]

    def mean(steps, name):
        return sum(float(step[name]) for step in steps) / len(steps)

    assert mean(first, "imitated") > 0.6
    assert mean(first, "accuracy") < 0.2
    assert mean(last, "imitated") < 0.3
    assert mean(last, "accuracy") > 0.5

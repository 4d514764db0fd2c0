"""REC and GRPO against numpy: gates, weights, restraints and data as options of one loss, and a sampler that lags."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt.losses import Surrogate
from polopt.methods.language.rec import GRPO, REC, drop_negatives
from polopt.training.api import plan
from tests.guards.harness import advance
from tests.policies.language_models import tiny_folder
from tests.policies.test_vllm import LLM, vllm  # noqa: F401  the fixture of a stand-in for vLLM

MUST = 5
GROUP = np.array([0, 0, 0, 0, 1, 1, 1, 1])
REWARD = np.array([1.0, 0.0, 0.25, 0.0, 0.5, 0.5, 1.0, 0.0])
TOKENS = np.array([3, 1, 4, 2, 4, 2, 1, 3])
WIDTH = 4
SURROGATES = [name for name in Surrogate.named if name.startswith("rec-")] + ["reinforce"]


def method(name="rec", **settings):
    """A method for words of two consonants, on a tiny model."""
    defaults = {"model": str(tiny_folder()), "batch_prompts": 2, "samples_per_prompt": 4, "policy.max_tokens": WIDTH}
    options = settings.pop("task_options", {"score_truncated": True})
    return plan(name, "vowels", task_options=options, **{**defaults, "lr": 1e-2, **settings}).build()


def made(reward=REWARD, group=GROUP, tokens=TOKENS, failed=(), seed=0):
    """(batch, log_prob): completions of so many tokens by an old policy, and the present one's log-probabilities, as a
    leaf [B, T]. Ratios lie between about 0.1 and 10, so that every branch of every gate is taken."""
    rng = np.random.default_rng(seed)
    mask = np.arange(WIDTH) < np.asarray(tokens)[:, None]
    mask[list(failed)] = False
    old = np.where(mask, -2 + 0.3 * rng.normal(size=mask.shape), 0.0)
    new = np.where(mask, old + rng.normal(0, 1.2, mask.shape), 0.0)
    columns = {
        "mask": mask,
        "log_prob": old,
        "engine_log_prob": np.where(mask, old + 0.4 * rng.normal(size=mask.shape), 0.0),
        "reward": np.asarray(reward, float),
        "group": np.asarray(group),
        "failed": np.isin(np.arange(len(mask)), failed),
        "correct": np.asarray(reward) == 1,
        "truncated": np.asarray(tokens) == WIDTH,
    }
    batch = TensorDict({key: torch.from_numpy(value) for key, value in columns.items()}, [len(mask)])
    return batch, torch.from_numpy(new).requires_grad_()


def gradient(learner, batch, log_prob):
    """d loss / d log_prob [B, T] of one optimizer step on the whole batch, in numpy, and the metrics."""
    learner.policy.log_prob = lambda rows: log_prob
    (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
    loss, metrics = learner.policy_loss(part)
    return torch.autograd.grad(loss, log_prob)[0].numpy(), metrics


def arrays(batch, log_prob):
    return log_prob.detach().numpy(), batch["log_prob"].numpy(), batch["mask"].numpy()


def centered(reward, group):
    """reward minus the mean of its group."""
    return reward - np.array([reward[group == g].mean() for g in group])


def gate_and_weight(name, new, old, mask, advantage):
    """M and W of the paper, written out: (bool, float), [B, T] each."""
    ratio, a = np.exp(new - old), advantage[:, None]
    if "seq" in name:
        mean = (np.where(mask, new - old, 0).sum(1) / mask.sum(1).clip(1))[:, None]
        ratio = np.broadcast_to(np.exp(mean), new.shape)
    low, high = (0.6, 2.0) if "wide" in name else (0.2, 0.2)
    inside = (ratio >= 1 - low) & (ratio <= 1 + high)
    one_side = ((a >= 0) & (ratio <= 1 + high)) | ((a <= 0) & (ratio >= 1 - low))
    outer = ((a >= 0) & (ratio <= 1 - 0.6)) | ((a <= 0) & (ratio >= 1 + 2.0))
    gate = {"two-side": inside, "one-side": one_side, "ring": inside | outer, "reinforce": inside | True}
    weight = ratio if name.endswith("-is") else np.ones_like(ratio)
    return next(value for key, value in gate.items() if key in name), weight


# The loss


@pytest.mark.parametrize("name", SURROGATES)
def test_must_1_the_ratio_only_gates_or_weighs(name, float64):
    batch, log_prob = made()
    found, metrics = gradient(method(surrogate=name), batch, log_prob)
    new, old, mask = arrays(batch, log_prob)
    advantage = centered(REWARD, GROUP)
    gate, weight = gate_and_weight(name, new, old, mask, advantage)
    np.testing.assert_allclose(found, mask / mask.sum() * gate * weight * -advantage[:, None], atol=1e-15)
    assert len(np.unique(gate[mask])) == (1 if name == "reinforce" else 2)
    assert 0 <= float(metrics["clip_fraction"]) <= 1
    # Without "is" the size of an open token's gradient is that of its advantage alone, wherever the policy has gone.
    if not name.endswith("-is"):
        open_ = mask & gate
        size = np.abs(found) * mask.sum()
        np.testing.assert_allclose(size[open_], np.broadcast_to(np.abs(advantage)[:, None], mask.shape)[open_])


@pytest.mark.parametrize(("name", "restraint", "data"), itertools.product(SURROGATES, ["k2", "forward-kl"], ["weight"]))
def test_must_2_gates_weights_restraints_and_data_are_options_of_one_loss(name, restraint, data, float64):
    batch, log_prob = made(seed=1)
    settings = {"restraint_coefficient": 0.3, "weight_temperature": 0.5}
    found, _ = gradient(method(surrogate=name, restraint=restraint, data=data, **settings), batch, log_prob)
    new, old, mask = arrays(batch, log_prob)
    advantage = centered(REWARD, GROUP)
    gate, weight = gate_and_weight(name, new, old, mask, advantage)
    advantage = advantage * np.exp(advantage / 0.5)
    restrained = {"k2": 0.3 * 2 * (new - old), "forward-kl": -0.3}[restraint]
    np.testing.assert_allclose(found, mask / mask.sum() * (restrained - gate * weight * advantage[:, None]), atol=1e-15)


def test_must_2_the_ring_leads_back_from_outside(float64):
    ratio = np.array([0.3, 0.5, 0.9, 1.1, 2.0, 3.5])
    batch, _ = made(reward=[1.0, 0.0], group=[0, 0], tokens=[4, 4])  # a good row and a bad one
    batch["mask"], batch["log_prob"] = torch.ones(2, 6, dtype=torch.bool), torch.full((2, 6), -2.0)
    log_prob = torch.from_numpy(np.tile(-2 + np.log(ratio), (2, 1))).requires_grad_()
    found, _ = gradient(method(surrogate="rec-ring"), batch, log_prob)
    assert ratio[found[0] < 0].tolist() == [0.3, 0.9, 1.1]  # made likelier
    assert ratio[found[1] > 0].tolist() == [0.9, 1.1, 3.5]


def test_forward_kl_adds_its_coefficient_to_every_advantage(float64):
    batch, log_prob = made()
    one, _ = gradient(method(surrogate="reinforce", restraint="forward-kl", restraint_coefficient=0.1), batch, log_prob)
    other, _ = gradient(method(preset="asymre"), batch, log_prob)
    np.testing.assert_allclose(one, other, atol=1e-15)


def test_pairwise_surrogate_has_the_gradient_of_reinforce_whatever_the_samples(float64):
    # A bandit of five arms: any six rewarded samples, however they were drawn, and tau = 0.7.
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=5)).requires_grad_()
    arm, reward, tau = torch.tensor([0, 0, 3, 4, 1, 3]), torch.from_numpy(rng.normal(size=6)), 0.7
    log_prob = logits.log_softmax(0)[arm]
    a = reward - tau * (log_prob - log_prob.detach())
    pairs = torch.triu((a[:, None] - a[None, :]).square(), 1).sum() / 36 / (1 + tau) ** 2
    (expected,) = torch.autograd.grad(pairs, logits, retain_graph=True)
    batch, _ = made(reward.numpy(), [0] * 6, [1] * 6)
    batch["mask"], batch["log_prob"] = batch["mask"][:, :1], log_prob.detach()[:, None] - 1.0  # another policy drew
    learner = method(surrogate="reinforce")
    learner.policy.log_prob = lambda rows: log_prob[:, None]
    (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
    (found,) = torch.autograd.grad(learner.policy_loss(part)[0], logits)
    torch.testing.assert_close(2 * tau / (1 + tau) ** 2 * found, expected, rtol=1e-12, atol=1e-14)


# Data


def test_must_3_the_baseline_is_computed_again_after_dropping(float64):
    reward, group = np.array([1.0, 0, 0, 0, 0, 1, 1, 0]), np.array([0] * 5 + [1] * 3)
    learner = method(surrogate="reinforce", data="drop")
    batch, log_prob = made(reward, group)
    advantage = learner.evaluate_groups(batch)["advantage"].numpy()
    # One of four negatives stays beside the positive: mean 1/2. Group 1 has two positives, nothing is dropped.
    assert sorted(advantage[:5]) == [-0.5, 0, 0, 0, 0.5]
    assert advantage[0] == 0.5
    np.testing.assert_allclose(advantage[5:], [1 / 3, 1 / 3, -2 / 3])
    # Dropped rows have no gradient, but still count in the mean over tokens.
    learner.generator.manual_seed(0)
    found, _ = gradient(learner, batch, log_prob)
    assert sorted(np.abs(found).max(1)[:5] * batch["mask"].sum().item()) == pytest.approx([0, 0, 0, 0.5, 0.5])


def test_must_3_positive_is_at_least_the_mean():
    reward, group = torch.tensor([0.0, 0.5, 1.0, 0.3, 0.3, 0.3]), torch.tensor([0, 0, 0, 1, 1, 1])
    valid = torch.ones(6, dtype=torch.bool)
    kept = drop_negatives(reward, group, valid, torch.Generator().manual_seed(0))
    assert kept.tolist() == [True] * 6  # 0.5 is at the mean: two positives, one negative; equal rewards are positive


def test_dropped_rows_are_drawn_uniformly_and_from_the_valid_ones():
    reward = torch.tensor([1.0, 0, 0, 0, 0, 0])
    valid = torch.tensor([True, True, True, True, True, False])
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([drop_negatives(reward, torch.zeros(6).long(), valid, generator) for _ in range(2000)])
    assert kept[:, 0].all()
    assert not kept[:, 5].any()
    assert (kept.sum(1) == 2).all()
    np.testing.assert_allclose(kept[:, 1:5].double().mean(0), 0.25, atol=0.04)


def test_failed_rows_are_in_no_statistic(float64):
    batch, log_prob = made(failed=(1, 6))
    found, _ = gradient(method(), batch, log_prob)
    whole = np.setdiff1d(np.arange(8), [1, 6])
    smaller = batch[torch.from_numpy(whole)]
    leaf = log_prob.detach()[whole].requires_grad_()
    expected, _ = gradient(method(), smaller, leaf)
    np.testing.assert_allclose(found[whole], expected, atol=1e-15)
    assert not found[[1, 6]].any()


@pytest.mark.parametrize("data", ["all", "drop", "weight"])
@pytest.mark.parametrize("baseline", ["mean", "leave-one-out", "log-avg-exp", "batch", "none"])
def test_baselines_against_numpy(baseline, data, float64):
    batch, _ = made(failed=(3,))
    learner = method(data=data, **{"baseline.baseline": baseline})
    valid, found = kept_and_advantage(learner, batch)
    expected = np.zeros(8)
    for row in np.flatnonzero(valid):
        rest = valid & (GROUP[row] == GROUP)
        others = rest & (np.arange(8) != row)
        expected[row] = (
            REWARD[row]
            - {
                "mean": REWARD[rest].mean(),
                "leave-one-out": REWARD[others].mean(),
                "log-avg-exp": np.log(np.exp(REWARD[rest]).mean()),
                "batch": REWARD[valid].mean(),
                "none": 0.0,
            }[baseline]
        )
    if data == "weight":
        expected = expected * np.exp(expected)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def kept_and_advantage(learner, batch):
    """(which rows stay, their advantages) of the batch of `made` without row 3, in numpy."""
    generator = torch.Generator()
    generator.set_state(learner.generator.get_state())
    found = learner.evaluate_groups(batch)["advantage"].numpy()
    valid = ~batch["failed"]
    if learner.config.data == "drop":  # of group 0 rewards 1, 0, 1/4 are left, and two of them are below their mean
        valid = drop_negatives(batch["reward"], batch["group"], valid, generator)
        assert valid.tolist() in ([True, False, True, False, *[True] * 4], [True, True, False, False, *[True] * 4])
    return valid.numpy(), found


@pytest.mark.parametrize(("data", "ddof"), [("all", 0), ("all", 1), ("drop", 0), ("drop", 1)])
def test_the_deviation_is_that_of_the_rows_that_stay(data, ddof, float64):
    learner = method(data=data, baseline="rec" if ddof == 0 else "grpo")
    valid, found = kept_and_advantage(learner, made(failed=(3,))[0])
    expected = np.zeros(8)
    for row in np.flatnonzero(valid):
        rest = REWARD[valid & (GROUP[row] == GROUP)]
        expected[row] = (REWARD[row] - rest.mean()) / (rest.std(ddof=ddof) + 1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-12)


# Off-policy


def test_must_4_the_sampler_is_stale_and_its_log_probs_are_recorded(float64):
    learner = method(sync_interval=3, surrogate="reinforce", lr=3e-2)
    start = [p.clone() for p in learner.policy.parameters()]
    for update in range(5):
        batch = learner.collect()
        stale, mask = learner.behavior, batch["mask"]
        assert stale is not learner.policy
        with torch.no_grad():
            torch.testing.assert_close(batch["log_prob"], stale.log_prob(batch))
            moved = (batch["log_prob"] - learner.policy.log_prob(batch)).abs()[mask].max()
        fresh = update % 3 == 0
        assert (moved < 1e-9) if fresh else (moved > 1e-4)
        same = all(torch.equal(p, q) for p, q in zip(start, stale.parameters()))
        assert same == (update < 3)
        metrics = learner.update(batch)
        assert (abs(metrics["approx_kl"]) < 1e-9) if fresh else (metrics["approx_kl"] > 0)
    assert learner.behavior_lag.calls == 5


@pytest.mark.parametrize("name", ["rec", "grpo"])
def test_the_sampler_and_the_reference_begin_with_the_weights_of_init(name, tmp_path):
    common = {"task_options": {"pool": 8, "score_truncated": True}, "loggers": (), "eval_every": 100}
    common |= {"model": str(tiny_folder()), "policy.max_tokens": WIDTH}
    far = polopt.train("sft", "vowels", out=tmp_path / "far", steps=2, batch_size=4, lr=0.3, **common)
    settings = {
        "batch_prompts": 2,
        "samples_per_prompt": 4,
        "steps": 8,
        "sync_interval": 3,
        "reference_kl": "reference-kl",
    }
    run = polopt.train(name, "vowels", out=tmp_path / "run", init=far.folder, **settings, **common)
    (row,) = [row for row in run.rows if "approx_kl" in row]
    assert abs(row["approx_kl"]) < 1e-6
    assert abs(row["reference_kl"]) < 1e-6


def test_must_4_without_lag_and_with_one_step_all_gates_coincide(float64):
    results = {}
    for name in SURROGATES:
        learner = method(surrogate=name, seed=3, aggregate="token", task_options={"pool": 8, "score_truncated": True})
        metrics = advance(learner, 10**6, updates=3)
        assert all(row["clip_fraction"] == 0 for row in metrics)
        results[name] = torch.cat([p.detach().flatten() for p in learner.policy.parameters()])
    one = results.pop("reinforce")
    assert all(torch.allclose(one, other, atol=1e-7) for other in results.values())


@pytest.mark.usefixtures("vllm")
def test_an_engine_lags_too():
    learner = method(sync_interval=2, lr=1e-1, **{"policy.engine": "vllm"})
    reloaded = []
    for _ in range(4):
        batch = learner.collect()
        engine = learner.behavior._engine  # it begins where it acts
        assert isinstance(engine, LLM)
        assert (batch["log_prob"] - batch["engine_log_prob"]).abs().max() < 1e-3
        reloaded.append(len(engine.calls))
        learner.update(batch)
    assert reloaded == [0, 0, 2, 2]


def test_off_policy_within_a_batch(float64):
    learner = method(updates_per_batch=3, lr=3e-2)
    batch = learner.collect()
    batch["reward"] = torch.arange(8.0)  # the tiny model's own rewards may all be equal
    batch["row"] = torch.arange(8)
    seen, original = [], learner.policy_loss

    def spy(part):
        loss, metrics = original(part)
        seen.append((part["row"].tolist(), part["weight"].sum().item(), metrics["approx_kl"].item()))
        return loss, metrics

    learner.policy_loss = spy
    learner.update(batch)
    rows, weights, kl = zip(*seen)
    assert sorted(row for part in rows for row in part) == list(range(8))
    assert [len(part) for part in rows] == [3, 3, 2]
    assert weights == pytest.approx([1, 1, 1])
    assert abs(kl[0]) < 1e-9
    assert kl[1] > 0


# Shapes of groups and means


@pytest.mark.parametrize("settings", [{}, {"data": "drop"}, {"data": "weight"}, {"baseline.std": "group"}])
def test_must_5_single_sample_groups(settings, float64):
    learner = method(batch_prompts=3, samples_per_prompt=1, **settings)
    batch = learner.collect()
    batch["reward"] = torch.tensor([1.0, 0.0, -0.5])
    advantage = learner.evaluate_groups(batch)["advantage"]
    expected = batch["reward"] * batch["reward"].exp() if "data" in settings and settings["data"] == "weight" else None
    torch.testing.assert_close(advantage, batch["reward"] if expected is None else expected)
    assert all(value.isfinite() for value in learner.update(batch).values())


def test_must_5_mean_over_tokens_and_over_sequences_in_the_sequence_variant(float64):
    batch, log_prob = made(seed=2)
    new, old, mask = arrays(batch, log_prob)
    advantage = centered(REWARD, GROUP)
    weights = {"reinforce": mask / mask.sum(), "sequence": mask / mask.sum(1, keepdims=True) / 8}
    for name, weight in weights.items():
        settings = {"preset": "sequence"} if name == "sequence" else {"surrogate": name}
        found, _ = gradient(method(**settings), batch, log_prob)
        surrogate = {"sequence": "rec-seq-one-side-is"}.get(name, name)
        gate, factor = gate_and_weight(surrogate, new, old, mask, advantage)
        np.testing.assert_allclose(found, -weight * gate * factor * advantage[:, None], atol=1e-15)


@pytest.mark.parametrize(("name", "preset"), [(m.slug, p) for m in (REC, GRPO) for p in (None, *m.presets)])
def test_presets_build_and_learn(name, preset):
    learner = method(name, preset=preset, batch_prompts=2, samples_per_prompt=4)
    before = [p.clone() for p in learner.policy.parameters()]
    batch = learner.collect()
    batch["reward"] = torch.from_numpy(REWARD).float()
    metrics = learner.update(batch)
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["informative"] > 0
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.policy.parameters()))


# GRPO


def grpo_loss(new, old, reference, mask, reward, group, kl):
    """Equation 3 of its paper, negative, with the advantage standardized within groups."""
    advantage = np.array(
        [(r - reward[group == g].mean()) / reward[group == g].std(ddof=1) for r, g in zip(reward, group)]
    )
    ratio = np.exp(new - old)
    gain = np.minimum(ratio * advantage[:, None], ratio.clip(0.8, 1.2) * advantage[:, None])
    penalty = np.exp(reference - new) - (reference - new) - 1
    return -(((gain - kl * penalty) * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("kl", [0.04, 1.5])
def test_grpo_against_numpy(kl, float64):
    batch, log_prob = made(seed=4)
    new, old, mask = arrays(batch, log_prob)
    reference = np.where(mask, old + 0.5 * np.random.default_rng(9).normal(size=mask.shape), 0.0)
    learner = method("grpo", **{"reference_kl.coefficient": kl})
    learner.reference_policy.log_prob = lambda rows: torch.from_numpy(reference)
    found, metrics = gradient(learner, batch, log_prob)
    expected, step = np.zeros_like(new), 1e-6
    for index in zip(*np.nonzero(mask)):
        shift = np.zeros_like(new)
        shift[index] = step
        rise = [grpo_loss(new + s * shift, old, reference, mask, REWARD, GROUP, kl) for s in (1, -1)]
        expected[index] = (rise[0] - rise[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=2e-6)  # the scale has 1e-6 added
    penalty = (np.exp(reference - new) - (reference - new) - 1) * mask
    assert metrics["reference_kl"].item() == pytest.approx((penalty.sum(1) / mask.sum(1)).mean())


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_the_reference_is_the_model_at_the_start(estimator, float64):
    learner = method("grpo", lr=3e-2, **{"reference_kl.estimator": estimator})
    start = [p.clone() for p in learner.policy.parameters()]
    divergence = []
    for _ in range(3):
        batch = learner.collect()
        batch["reward"] = torch.from_numpy(REWARD)
        divergence.append(learner.update(batch)["reference_kl"].item())
    assert all(torch.equal(p, q) for p, q in zip(start, learner.reference_policy.parameters()))
    assert abs(divergence[0]) < 1e-9
    assert divergence[2] > divergence[1] > 0
    assert method("rec").reference_policy is None


# Engines and metrics


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_engine_correction_against_numpy(level, float64):
    batch, log_prob = made(seed=5)
    learner = method(surrogate="reinforce", engine_correction=level, engine_cap=1.3)
    found, _ = gradient(learner, batch, log_prob)
    plain, _ = gradient(method(surrogate="reinforce"), batch, log_prob)
    _, old, mask = arrays(batch, log_prob)
    difference = np.where(mask, old - batch["engine_log_prob"].numpy(), 0.0)
    if level == "sequence":
        difference = np.broadcast_to(difference.sum(1, keepdims=True), mask.shape)
    weight = np.exp(difference).clip(max=1.3)
    np.testing.assert_allclose(found, plain * weight, atol=1e-15)
    assert len(np.unique(weight[mask].round(9))) > 3
    assert weight.max() == 1.3


def test_metrics_by_hand(float64):
    batch, _ = made(failed=(1,))
    metrics = {name: value.item() for name, value in method().batch_metrics(batch).items()}
    scored = np.arange(8) != 1
    assert metrics["reward"] == pytest.approx(REWARD[scored].mean())
    assert metrics["accuracy"] == pytest.approx(2 / 7)
    assert metrics["completion_length"] == pytest.approx(TOKENS[scored].mean())
    assert metrics["truncated"] == pytest.approx(2 / 7)
    assert metrics["failed"] == pytest.approx(1 / 8)
    mask, gap = batch["mask"].numpy(), np.abs((batch["log_prob"] - batch["engine_log_prob"]).numpy())
    assert metrics["engine_gap"] == pytest.approx(gap[mask].mean())
    assert metrics["engine_gap_max"] == pytest.approx(gap[mask].max())


def test_derived_numbers():
    config = method(batch_prompts=5, samples_per_prompt=3, updates_per_batch=2).config
    assert REC.derived(config, 31) == {
        "completions per batch": 15,
        "per optimizer step": 8,
        "optimizer steps": 6,
    }


# Learning


@pytest.mark.parametrize(
    ("name", "settings"), [("rec", {"sync_interval": 5, "lr": 3e-3}), ("grpo", {"preset": "small", "lr": 3e-3})]
)
def test_the_reward_rises(name, settings):
    sizes = {"batch_prompts": 8, "samples_per_prompt": 8}
    learner = method(name, model="tiny", seed=0, **{**settings, **sizes, "policy.max_tokens": 4})
    reward = [row["reward"] for row in advance(learner, 10**6, updates=60)]
    assert np.mean(reward[:5]) < 0.25
    assert np.mean(reward[-5:]) > 0.6

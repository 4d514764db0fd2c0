"""SPO against numpy: baselines, memories and whitening, what is stored when, and which prompts are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.methods.language.single_stream_po import LastVisits, drift, whiten
from polopt.training.api import plan
from tests.policies.language_models import tiny_folder

MUST = 5
POOL, BATCH = 12, 6


def make(initial_samples=0, **settings):
    """SPO on a pool of words, with four tokens to write; without a phase before the first step unless asked (None:
    the default)."""
    task_options = settings.pop("task_options", {"pool": POOL, "score_truncated": True})
    settings = {"model": str(tiny_folder()), "policy.max_tokens": 4, "updates_per_batch": 1, "lr": 1e-2} | settings
    start = {} if initial_samples is None else {"initial_samples": initial_samples}
    settings = {"batch_prompts": BATCH, **start} | settings
    return plan("single-stream-po", "vowels", task_options=task_options, **settings).build()


def collected(method, reward=None, index=None, failed=()):
    """A batch with these rewards, of these prompts, in which the rows `failed` could not be scored."""
    batch = method.collect()
    batch["reward"] = torch.tensor(reward or [1, 0, 0, 1, 0, 0]).to(batch["reward"])
    if index is not None:
        batch["index"] = torch.tensor(index)
    batch["failed"][list(failed)] = True
    for name in ("mask", "log_prob", "engine_log_prob"):
        batch[name][list(failed)] = 0
    return batch


def counted(method, seed=0):
    """Trackers with random counts, given back as numpy arrays (alpha, beta)."""
    alpha, beta = np.random.default_rng(seed).uniform(0.5, 8, (2, POOL))
    method.tracker.alpha, method.tracker.beta = torch.tensor(alpha), torch.tensor(beta)
    return alpha, beta


def counts(method):
    return method.tracker.alpha.numpy().copy(), method.tracker.beta.numpy().copy()


def standardized(x):
    return (x - x.mean()) / (x.std(ddof=1) + 1e-8)


def move(method, scale=0.05):
    """Another policy."""
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


# The baseline


def test_must_1_the_baseline_is_the_tracker_before_the_reward(float64):
    method = make(whiten=False)
    alpha, beta = counted(method)
    batch = collected(method)
    index, reward = batch["index"].numpy(), batch["reward"].numpy()
    advantage = method.evaluate_prompts(batch)["advantage"].numpy()
    np.testing.assert_allclose(advantage, reward - alpha[index] / (alpha[index] + beta[index]), rtol=1e-12)
    np.testing.assert_array_equal(counts(method), (alpha, beta))


def test_must_1_a_reward_does_not_move_its_own_baseline(float64):
    used = []
    for reward in (0.0, 1.0):
        method = make(seed=3, whiten=False)
        counted(method)
        batch = collected(method, [reward, 0, 0, 1, 0, 0])
        original = method.policy_loss

        def spy(part, original=original, method=method):
            used.append((part["advantage"].numpy(), counts(method)[0]))
            return original(part)

        method.policy_loss = spy
        method.update(batch)
        assert not np.array_equal(counts(method)[0], used[-1][1])  # the trackers move after the policy
    (low, before), (high, _) = used
    np.testing.assert_allclose(high - low, [1, 0, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(before, counted(method)[0])


# The memory


def test_drift_by_hand(float64):
    last, now = torch.tensor([[-1.0, -2, -3], [-1, -1, 9]]), torch.tensor([[-1.5, -1, -3], [-1, -2, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(drift(last, now, mask), [(0.5 + 1 + 0) / 3, (0 + 1) / 2])
    assert drift(last, now, torch.zeros_like(mask)).tolist() == [0, 0]


def test_must_2_memory_from_the_drift_of_the_stored_response_clipped_on_both_sides(float64):
    method = make()
    first = collected(method, index=[0, 1, 2, 3, 4, 5])
    method.track(first)
    shift = {0: 0.0, 1: 0.06 * math.log2(1 / 0.93), 2: -0.06 * math.log2(1 / 0.9), 3: 0.06, 4: 3.0}
    for number, by in shift.items():  # as if the policy had moved by so much per token
        row = method.visits._rows[number]
        row["log_prob"] += by * row["mask"]
    alpha, beta = counted(method)
    second = collected(method, index=[0, 1, 2, 3, 4, 11])  # 11 is visited for the first time
    metrics = method.track(second)
    rho = np.array([0.96, 0.93, 0.9, 0.875, 0.875, 0.96])
    index, reward = second["index"].numpy(), second["reward"].numpy()
    alpha[index], beta[index] = rho * alpha[index] + reward, rho * beta[index] + 1 - reward
    np.testing.assert_allclose(counts(method), (alpha, beta), rtol=1e-12)
    assert float(metrics["forgetting"]) == pytest.approx(rho.mean())
    assert float(metrics["drift"]) == pytest.approx(sum(map(abs, shift.values())) / 6)


def test_must_2_the_drift_is_that_of_the_policy_on_the_response_of_the_visit_before(float64):
    method = make(rho_min=1e-6, rho_max=1 - 1e-9)
    first = collected(method)
    method.track(first)
    index = first["index"].tolist()
    method.track(collected(method, index=[number for number in range(POOL) if number not in index]))
    before = method.policy.log_prob(first).detach().numpy()
    move(method, 0.01)
    after = method.policy.log_prob(first).detach().numpy()
    distance = np.abs(before - after).sum(1) / first["mask"].numpy().sum(1)
    assert distance.min() > 0
    counted(method)
    alpha, _ = counts(method)
    again = collected(method, index=index)
    assert not torch.equal(again["completion"], first["completion"])
    metrics = method.track(again)
    np.testing.assert_allclose(float(metrics["drift"]), distance.mean(), rtol=1e-6)
    rho = (counts(method)[0][index] - again["reward"].numpy()) / alpha[index]
    np.testing.assert_allclose(rho, np.exp2(-distance / 0.06), rtol=1e-6)


def test_what_is_stored_is_the_new_response_with_its_log_probs_just_after_the_visit(float64):
    method = make()
    for _ in range(2):  # the second visit replaces the first
        batch = method.collect()
        method.update(batch)
        stored = method.visits.get(batch["index"])
        width = stored["completion"].shape[1]
        assert torch.equal(stored["completion"], batch["completion"][:, :width])
        torch.testing.assert_close(stored["log_prob"], method.policy.log_prob(batch)[:, :width])
        assert not torch.allclose(stored["log_prob"], batch["log_prob"][:, :width])


def test_constant_forgetting():
    method = make(forgetting="constant", rho_min=0.8)
    alpha, _ = counted(method)
    batch = collected(method)
    assert float(method.track(batch)["forgetting"]) == pytest.approx(0.8)
    index = batch["index"].numpy()
    np.testing.assert_allclose(counts(method)[0][index], 0.8 * alpha[index] + batch["reward"].numpy(), rtol=1e-6)


def test_must_5_repeated_prompts_are_tracked_one_after_the_other(float64):
    method = make()
    method.track(collected(method, index=[7, 0, 1, 2, 3, 4]))
    move(method)
    last = method.visits.get(torch.tensor([7]))
    distance = drift(last["log_prob"], method.policy.log_prob(last), last["mask"]).item()
    rho = float(np.clip(np.exp2(-distance / 0.06), 0.875, 0.96))
    alpha, beta = counted(method)
    batch = collected(method, [1, 1, 0, 1, 0, 0], index=[7, 5, 7, 7, 5, 6])
    method.track(batch)
    for i, reward, keep in [(7, 1, rho), (5, 1, 0.96), (7, 0, rho), (7, 1, rho), (5, 0, 0.96), (6, 0, 0.96)]:
        alpha[i], beta[i] = keep * alpha[i] + reward, keep * beta[i] + 1 - reward
    np.testing.assert_allclose(counts(method), (alpha, beta), rtol=1e-12)
    assert torch.equal(method.visits.get(torch.tensor([7]))["completion"][0], _trimmed(batch, 3))


def _trimmed(batch, row):
    return batch["completion"][row, : int(batch["attention"][row].sum())]


# Advantages


@pytest.mark.parametrize("parts", [1, 3])
def test_must_3_whitening_over_the_full_batch_once(parts, float64):
    method = make(updates_per_batch=parts)
    alpha, beta = counted(method)
    batch, used = collected(method), {}
    original = method.policy_loss

    def spy(part):
        used.update(zip(part["index"].tolist(), part["advantage"].tolist()))
        return original(part)

    method.policy_loss = spy
    metrics = method.update(batch)
    index, reward = batch["index"].numpy(), batch["reward"].numpy()
    expected = standardized(reward - alpha[index] / (alpha[index] + beta[index]))
    np.testing.assert_allclose([used[number] for number in index], expected, rtol=1e-10)
    assert float(metrics["informative"]) == 1.0  # each prompt has one completion, and all of them teach


def test_whitening_leaves_out_rows_that_failed(float64):
    valid = torch.tensor([True, False, True, True])
    found = whiten(torch.tensor([0.3, 50.0, -0.2, 0.9]), valid).numpy()
    np.testing.assert_allclose(found[[0, 2, 3]], standardized(np.array([0.3, -0.2, 0.9])), rtol=1e-12)
    assert found[1] == 0
    assert whiten(torch.tensor([0.3, 50.0]), torch.tensor([True, False])).tolist() == [0, 0]
    assert whiten(torch.full((3,), 0.5), torch.ones(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_loss_by_hand(float64):
    """Asymmetric and dual clipping of token ratios, averaged over the tokens of the optimizer step."""
    method = make()
    batch = method.weigh(method.evaluate_prompts(collected(method)))
    mask, advantage = batch["mask"].numpy(), batch["advantage"].numpy()[:, None]
    ratio = np.random.default_rng(0).choice([0.5, 0.85, 1.1, 1.35, 12.0], mask.shape)
    new = torch.tensor((batch["log_prob"].numpy() + np.log(ratio)) * mask).requires_grad_()
    method.policy.log_prob = lambda rows: new
    (found,) = torch.autograd.grad(method.policy_loss(batch)[0], [new])
    outside = np.where(advantage > 0, ratio > 1.28, (ratio < 0.8) | (ratio > 10))
    expected = np.where(mask & ~outside, -advantage * ratio / mask.sum(), 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-15)
    assert outside.any()
    assert not outside.all()


@pytest.mark.parametrize("whitened", [True, False])
def test_batch_mean_as_baseline(whitened, float64):
    method = make(baseline="batch", whiten=whitened)
    counted(method)
    batch = collected(method)
    reward = batch["reward"].numpy()
    expected = standardized(reward) if whitened else reward - reward.mean()
    np.testing.assert_allclose(method.evaluate_prompts(batch)["advantage"].numpy(), expected, rtol=1e-10)


def test_failed_rows_move_neither_policy_nor_tracker(float64):
    method = make()
    alpha, beta = counted(method)
    batch = collected(method, failed=[1, 4])
    index, reward = batch["index"].numpy(), batch["reward"].numpy()
    advantage = method.evaluate_prompts(batch)["advantage"].numpy()
    rest = [0, 2, 3, 5]
    expected = standardized((reward - alpha[index] / (alpha[index] + beta[index]))[rest])
    np.testing.assert_allclose(advantage[rest], expected, rtol=1e-10)
    assert (advantage[[1, 4]] == 0).all()
    metrics = method.update(batch)
    assert all(math.isfinite(value) for value in metrics.values())
    assert float(metrics["failed"]) == pytest.approx(1 / 3)
    moved = [number for number in range(POOL) if counts(method)[0][number] != alpha[number]]
    assert moved == sorted(index[rest])
    assert method.visits.known(batch["index"]).tolist() == [True, False, True, True, False, True]


# Before the first step


def test_must_4_the_start_of_the_trackers(float64):
    method = make(initial_samples=4, rho_min=0.9)
    before = {name: value.clone() for name, value in method.policy.state_dict().items()}
    mean, sizes = np.zeros(POOL), []
    while method.initial_source.left:
        batch = method.collect()
        sizes.append(len(batch))
        mean[batch["index"].numpy()[::4]] = batch["reward"].numpy().reshape(-1, 4).mean(1)
        assert (batch["index"].reshape(-1, 4) == batch["index"][::4, None]).all()
        method.update(batch)
    assert sizes == [4] * POOL  # as many completions as a batch has, at most, in whole prompts
    assert method.ledger.completions == 4 * POOL  # charged to the budget
    alpha, beta = counts(method)
    np.testing.assert_allclose(alpha, 10 * (4 * mean + 0.5) / 5, rtol=1e-12)  # 10 = 1 / (1 - 0.9) pseudo-counts
    np.testing.assert_allclose(alpha + beta, 10, rtol=1e-12)
    assert mean.std() > 0
    assert all(torch.equal(value, before[name]) for name, value in method.policy.state_dict().items())
    assert not method.visits._rows
    batch = method.collect()
    assert "initial" not in batch.keys()
    assert len(batch["index"].unique()) == BATCH
    method.update(batch)
    assert method.ledger.completions == 4 * POOL + BATCH


def test_start_by_batches_of_whole_prompts():
    method = make(initial_samples=2, task_options={"pool": 7, "score_truncated": True})
    sizes = []
    while method.initial_source.left:
        batch = method.collect()
        method.update(batch)
        sizes.append((batch["index"].unique().tolist(), len(batch)))
    assert sizes == [([0, 1, 2], 6), ([3, 4, 5], 6), ([6], 2)]


def test_start_with_completions_that_failed(float64):
    method = make(initial_samples=3, batch_prompts=6)
    batch = collected(method, [1.0, 0, 0, 0, 0, 0], failed=[1, 3, 4, 5])
    method.update(batch)
    np.testing.assert_allclose(method.tracker.value()[:2], [(1.5 + 0.5) / 4, 0.5])
    np.testing.assert_allclose((method.tracker.alpha + method.tracker.beta)[:2], 8.0)


def test_without_initial_samples_it_begins_at_once():
    method = make(initial_samples=0)
    assert "initial" not in method.collect().keys()
    assert set(method.tracker.alpha.tolist()) == set(method.tracker.beta.tolist()) == {0.5}


# Which prompts


def test_prompts_are_drawn_by_their_weights(float64):
    method = make(batch_prompts=2)
    alpha, beta = counted(method)
    p = alpha / (alpha + beta)
    weight = np.sqrt(p * (1 - p)) + 0.05
    weight /= weight.sum()
    draws = np.array([method.source.sampler.draw(2) for _ in range(20_000)])
    assert (draws[:, 0] != draws[:, 1]).all()
    np.testing.assert_allclose(np.bincount(draws[:, 0], minlength=POOL) / len(draws), weight, atol=0.01)
    second = sum(weight[i] * np.where(np.arange(POOL) == i, 0, weight) / (1 - weight[i]) for i in range(POOL))
    np.testing.assert_allclose(np.bincount(draws[:, 1], minlength=POOL) / len(draws), second, atol=0.01)


def test_weights_follow_the_trackers():
    method = make(batch_prompts=2, exploration=1e-9)
    method.tracker.alpha[:], method.tracker.beta[:] = 1e-12, 8.0  # never solved
    method.tracker.alpha[3], method.tracker.alpha[8] = 8.0, 4.0
    for _ in range(5):
        assert set(method.collect()["index"].tolist()) == {3, 8}


def test_shuffled_goes_through_the_pool():
    method = make(sampling="shuffled", batch_prompts=4)
    counted(method)
    drawn = torch.cat([method.collect()["index"] for _ in range(3)])
    assert sorted(drawn.tolist()) == list(range(POOL))


def test_trackers_that_nobody_looks_at_cost_no_completions():
    assert "initial" in make(2, baseline="batch").collect().keys()  # the priorities look at them
    assert "initial" not in make(None, baseline="batch", sampling="shuffled").collect().keys()


def test_needs_a_pool():
    with pytest.raises(UsageError, match="it needs finitely many") as caught:
        make(task_options={})
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="batch_prompts 13 is more than the 12 prompts"):
        make(batch_prompts=13)
    with pytest.raises(UsageError, match="rho_min must be at most rho_max"):
        make(rho_min=0.97)


# Saving


@pytest.mark.parametrize("updates", [2, 9], ids=["before the first step", "later"])
def test_a_restored_run_goes_on_exactly(updates):
    def advance(method, count):
        found = []
        for _ in range(count):
            batch = method.collect()
            found.append((batch["index"].tolist(), {k: float(v) for k, v in method.update(batch).items()}))
        return found

    settings = {"initial_samples": 2, "task_options": {"pool": POOL, "levels": (1, 6), "score_truncated": True}}
    one = make(seed=5, **settings)
    advance(one, updates)
    flat = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(one).items()}
    other = make(seed=5, **settings)
    move(other)
    restore(other, flat)
    assert other.initial_source.left == one.initial_source.left == max(POOL - 3 * updates, 0)
    random = torch.get_rng_state()
    expected = advance(one, 6)
    torch.set_rng_state(random)
    assert advance(other, 6) == expected
    assert one.visits._rows.keys() == other.visits._rows.keys()


def test_visits_are_kept_without_the_padding_of_their_batch():
    def rows(index, lengths):
        width, count = max(lengths) + 2, len(index)
        mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        tokens = torch.randint(5, 90, (count, width)) * mask
        prompt = torch.ones(count, 3, dtype=torch.bool)
        columns = {"prompt": prompt.long(), "prompt_mask": prompt, "completion": tokens, "attention": mask}
        columns |= {"mask": mask, "log_prob": -torch.rand(count, width) * mask, "index": torch.tensor(index)}
        return TensorDict(columns, [count])

    visits, other = LastVisits(), LastVisits()
    short, long = rows([3, 0], [2, 1]), rows([5, 3], [7, 4])
    visits.put(short)
    visits.put(long)
    assert visits.known(torch.tensor([0, 1, 3, 5])).tolist() == [True, False, True, True]
    found = visits.get(torch.tensor([0, 3]))
    assert found["completion"].tolist() == [
        [*short["completion"][1, :1].tolist(), 0, 0, 0],
        long["completion"][1, :4].tolist(),
    ]
    short["log_prob"].zero_()  # what is kept is a copy
    assert found["log_prob"][0, 0] == visits.get(torch.tensor([0]))["log_prob"][0, 0] != 0
    other.load_extra_state(visits.extra_state())
    for index in ([0, 3], [5, 0, 3], [0]):
        one, same = visits.get(torch.tensor(index)), other.get(torch.tensor(index))
        assert one.keys() == same.keys()
        assert all(torch.equal(one[name], same[name]) for name in one.keys())
    assert LastVisits().extra_state() == {}


# Learning


def test_learns(tmp_path):
    run = polopt.train(
        "single-stream-po",
        "vowels",
        steps=960,
        out=tmp_path / "run",
        task_options={"pool": 32, "score_truncated": True},
        model="tiny",
        batch_prompts=16,
        initial_samples=2,
        updates_per_batch=2,
        lr=3e-3,
        eval_every=960,
        eval_episodes=32,
        loggers=(),
        **{"policy.max_tokens": 6},
    )
    first, last = run.evaluations[0]["eval/return"], run.evaluations[-1]["eval/return"]
    sampled = [row["reward"] for row in run.rows if "reward" in row]
    assert last > 0.8 > first
    assert np.mean(sampled[-10:]) > np.mean(sampled[:4]) + 0.3

"""D3S against brute force and by hand: which completions, which tokens, of what advantages, and how many when."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.methods.language.d3s import D3S, largest, most_varied
from polopt.training import api
from tests.policies.language_models import full_logits, tiny_folder

MUST = 5
REWARD = [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]  # three groups of four: one right, all right, two right


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name="d3s", **settings):
    """Three prompts, four completions each of up to six tokens."""
    own = {"first_samples": 0.5, "last_samples": 0.5, "first_tokens": 0.5, "last_tokens": 0.5} if name == "d3s" else {}
    settings = {"batch_prompts": 3, "samples_per_prompt": 4, "lr": 1e-2, "loggers": ()} | own | settings
    options = {"pool": 12, "score_truncated": True}
    model = {"model": str(tiny_folder()), "policy.max_tokens": 6}
    return api.plan(name, "vowels", task_options=options, **model, **settings).build()


def collected(method, reward=REWARD, failed=()):
    """A batch with these rewards, in which the rows `failed` could not be scored."""
    batch = method.collect()
    batch["reward"] = torch.tensor(reward).to(batch["reward"])
    batch["failed"][list(failed)] = True
    for name in ("mask", "log_prob", "engine_log_prob"):
        batch[name][list(failed)] = 0
    return batch


def standardized(reward):
    groups = np.array(reward, dtype=float).reshape(-1, 4)
    deviation = groups.std(1, ddof=1, keepdims=True)
    return ((groups - groups.mean(1, keepdims=True)) / (deviation + 1e-6)).reshape(-1)


# Which completions


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=12), st.data())
def test_must_2_the_largest_variance_of_any_subset(values, data):
    count = data.draw(st.integers(1, len(values)))
    chosen = most_varied(torch.tensor(values), count, generator())
    assert int(chosen.sum()) == count
    best = max(np.var([values[i] for i in subset]) for subset in itertools.combinations(range(len(values)), count))
    assert np.var(np.array(values)[chosen.numpy()]) == pytest.approx(best, abs=1e-9)


def test_two_ends_by_hand():
    x = torch.tensor([0.0, 3.0, -1.0, 0.1, -1.2, 0.0])
    assert most_varied(x, 3, generator()).nonzero().flatten().tolist() == [1, 2, 4]
    assert most_varied(x, 1, generator()).sum() == 1
    assert most_varied(x, 6, generator()).all()


def test_large_numbers_lose_no_digits():
    x = 1e4 + torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert most_varied(x, 4, generator()).tolist() == [True, True, False, False, True, True]


def test_must_5_luck_decides_between_equals():
    """Of 4 equal small and 4 equal large ones each is taken about equally often; of three, two of either side."""
    x = torch.tensor([1.0, -1.0] * 4)
    draws = torch.stack([most_varied(x, 3, generator(seed)) for seed in range(800)])
    assert (draws.double().mean(0) - 3 / 8).abs().max() < 0.07
    assert (draws[:, ::2].sum(1) == 2).double().mean().item() == pytest.approx(0.5, abs=0.07)


def test_must_2_across_groups_what_teaches_nothing_is_left_out():
    """The group of which all are right has advantages 0: no completion of it is learned from while others are there."""
    method = make()
    batch = method.evaluate_groups(collected(method))
    selected = batch["selected"]
    assert selected.sum() == 6
    assert not selected[4:8].any()
    assert selected[0]  # the one right of four has the largest advantage of all
    assert float(method.batch_metrics(batch)["useful"]) == 1.0
    variance = float(method.batch_metrics(batch)["advantage_variance"])
    assert variance == pytest.approx(np.var(standardized(REWARD)[selected.numpy()]), rel=1e-5)
    assert variance > np.var(standardized(REWARD))


def test_in_each_group_as_many():
    method = make(selection="group")
    batch = method.evaluate_groups(collected(method))
    selected = batch["selected"].reshape(3, 4)
    assert selected.sum(1).tolist() == [2, 2, 2]
    assert selected[0, 0]
    assert float(method.batch_metrics(batch)["useful"]) == pytest.approx(4 / 6)


def test_the_largest_variance_of_advantages_in_a_group_is_that_of_rewards():
    """PODS, which looks at the rewards of a group: standardizing changes their order and scale only."""
    reward = torch.tensor([0.1, 0.9, 0.4, 0.2, 0.8, 0.3])
    advantage = (reward - reward.mean()) / reward.std()
    assert torch.equal(most_varied(reward, 3, generator()), most_varied(advantage, 3, generator()))


def test_random_completions_and_tokens_are_as_many():
    method, useful, kept = make(selection="random", token_choice="random"), [], []
    collection = collected(method)
    for _ in range(60):
        batch = method.evaluate_groups(collection)
        tokens = int(batch["mask"][batch["selected"]].sum())
        assert batch["selected"].sum() == 6
        assert batch["learned"].sum() == math.ceil(0.5 * tokens)
        assert not batch["learned"][~batch["selected"]].any()
        useful.append(float(method.batch_metrics(batch)["useful"]))
        kept.append(batch["learned"][batch["selected"]].sum(1).tolist())
    assert np.mean(useful) == pytest.approx(8 / 12, abs=0.1)  # the share of the pool
    assert len(set(map(tuple, kept))) > 30


# Which tokens


def test_must_3_the_largest_products_over_the_whole_batch(float64):
    method = make(**{"policy.temperature": 0.7})
    batch = method.evaluate_groups(collected(method))
    rows = batch["selected"]
    log_p = (full_logits(method.policy, batch) / 0.7).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    key = (batch["advantage"].abs().unsqueeze(1) * entropy)[rows]
    mask = batch["mask"][rows]
    count = math.ceil(0.5 * int(mask.sum()))
    least = key[mask].sort(descending=True).values[count - 1]
    assert torch.equal(batch["learned"][rows], mask & (key >= least))
    assert len(set(batch["learned"][rows].sum(1).tolist())) > 1  # of the batch, not of each row
    assert not batch["learned"][~rows].any()


def test_must_3_both_factors_count(float64):
    """With one factor alone other tokens would be taken."""
    method = make(first_tokens=0.3, last_tokens=0.3)
    batch = method.evaluate_groups(collected(method))
    rows, mask = batch["selected"], batch["mask"][batch["selected"]]
    entropy = method.policy.entropy(batch[rows])
    for key in (entropy, batch["advantage"][rows].abs().unsqueeze(1).expand_as(entropy)):
        count = int(batch["learned"].sum())
        least = key[mask].sort(descending=True).values[count - 1]
        assert not torch.equal(batch["learned"][rows], mask & (key >= least))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=10), st.integers(1, 12), st.integers(0, 9))
def test_largest_of_some(keys, count, seed):
    key, among = torch.tensor(keys), torch.rand(len(keys), generator=generator(seed)) < 0.7
    chosen = largest(key, among, count, generator(seed))
    assert int(chosen.sum()) == min(count, int(among.sum()))
    assert not chosen[~among].any()
    rest = among & ~chosen
    assert not rest.any() or key[chosen].min() >= key[rest].max()


def test_tokens_without_advantage_come_last():
    method = make(first_samples=1.0, last_samples=1.0, first_tokens=0.6, last_tokens=0.6)
    batch = method.evaluate_groups(collected(method))
    taught = batch["advantage"] != 0
    assert batch["learned"].sum() == math.ceil(0.6 * int(batch["mask"].sum()))
    assert batch["learned"].sum() < batch["mask"][taught].sum()
    assert not batch["learned"][~taught].any()


def test_at_least_two_completions_of_a_prompt_and_one_token():
    batch = (method := make(first_samples=0.01, last_samples=0.01)).evaluate_groups(collected(method))
    assert batch["selected"].sum() == 6
    method = make(first_tokens=1e-6, last_tokens=1e-6)
    assert method.evaluate_groups(collected(method))["learned"].sum() == 1


def test_entropy_is_that_of_the_policy_that_sampled(float64):
    """With a sampler whose weights are kept, the chosen tokens do not move with the policy."""
    method = make(sync_interval=3, selection="group")
    batch = collected(method)
    state = method.generator.get_state()
    before = method.evaluate_groups(batch)["learned"]
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    method.generator.set_state(state)
    assert torch.equal(method.evaluate_groups(batch)["learned"], before)


# Of what advantages, and the loss


def test_must_1_advantages_are_those_of_all_completions(float64):
    method = make()
    found = method.evaluate_groups(collected(method))["advantage"].numpy()
    np.testing.assert_allclose(found, standardized(REWARD), rtol=1e-9)
    seen = []
    method.policy_loss = lambda part, original=method.policy_loss: (seen.append(part), original(part))[1]
    batch = collected(method)
    method.update(batch)
    (part,) = seen
    for row in part:
        place = (batch["completion"] == row["completion"]).all(1) & (batch["group"] == row["group"])
        assert float(row["advantage"]) in [pytest.approx(standardized(REWARD)[i]) for i in place.nonzero().flatten()]


@pytest.mark.parametrize(("surrogate", "parts"), [("grpo", 1), ("gspo", 1), ("grpo", 2)])
def test_loss_by_hand(surrogate, parts, float64):
    """The mean over the learned tokens; GSPO's ratio is one of all tokens of a completion, learned from or not."""
    method = make(surrogate=surrogate, updates_per_batch=parts)
    clip = method.config.surrogate
    batch = method.evaluate_groups(collected(method))
    for part in method.optimizer_batches(batch):
        assert part["selected"].all()
        assert len(part) == 6 // parts
        mask, learned = part["mask"].numpy(), part["learned"].numpy()
        change = np.random.default_rng(0).choice([-0.3, -0.05, 0.1, 0.3], mask.shape) * mask
        mean = change.sum(1, keepdims=True) / mask.sum(1, keepdims=True)
        ratio, advantage = np.exp(change if surrogate == "grpo" else mean * mask), part["advantage"].numpy()[:, None]
        out = np.where(advantage > 0, ratio > 1 + clip.clip_high, ratio < 1 - clip.clip_low)
        expected = np.where(learned & ~out, -advantage * ratio / learned.sum(), 0)
        new = torch.tensor(part["log_prob"].numpy() + change).requires_grad_()
        method.policy.log_prob = lambda rows, new=new: new
        (found,) = torch.autograd.grad(method.policy_loss(part)[0], [new])
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-15)
        assert 0 < learned.sum() < mask.sum()
        assert (learned & out).any()


def test_failed_rows_teach_nothing():
    method = make(first_samples=1.0, last_samples=1.0)
    batch = method.evaluate_groups(collected(method, failed=[0, 9]))
    assert not batch["learned"][[0, 9]].any()
    assert all(math.isfinite(value) for value in method.update(collected(method, failed=[0, 9])).values())


def test_passes_are_made_of_the_selected_only():
    method, rows = make(), []
    original = method.policy.log_prob
    batch = collected(method)
    method.policy.log_prob = lambda part: (rows.append(len(part)), original(part))[1]
    method.update(batch)
    assert rows == [6]


# When


def test_must_4_counts_grow_along_a_line():
    """Of 16 completions of 3 prompts from 4 to 12, and from a tenth to half of their tokens."""
    method = make(samples_per_prompt=16, first_samples=0.25, last_samples=0.75, first_tokens=0.1, last_tokens=0.5)
    reward = np.random.default_rng(0).integers(0, 2, 48).tolist()
    for progress, each, share in ((0.0, 4, 0.1), (0.3, 6, 0.22), (0.5, 8, 0.3), (0.99, 12, 0.496)):
        method.progress = progress  # 0.3: 16 (0.7 / 4 + 0.3 * 3 / 4) = 6.4, rounded
        batch = method.evaluate_groups(collected(method, reward))
        assert batch["selected"].sum() == 3 * each
        tokens = int(batch["mask"][batch["selected"]].sum())
        assert batch["learned"].sum() == math.ceil(share * tokens - 1e-9)
        metrics = method.batch_metrics(batch)
        assert float(metrics["trained_tokens"]) == pytest.approx(int(batch["learned"].sum()) / int(batch["mask"].sum()))


def test_settings_that_cannot_be():
    with pytest.raises(UsageError, match="first_tokens"):
        D3S.Config(model="tiny", first_tokens=0.0)
    with pytest.raises(UsageError, match="token_choice has no effect where all tokens are learned from"):
        D3S.Config(model="tiny", first_tokens=1.0, last_tokens=1.0, token_choice="random")


@pytest.mark.parametrize("preset", ["paper", "gspo", "d1s", "d1s-cross", "d2s", "d3s-intra", "small"])
def test_presets(preset):
    """With a tiny model in place of Qwen's, and few tokens."""
    options = {"pool": 12, "score_truncated": True}
    few = {"model": "tiny", "policy.max_tokens": 4, "batch_prompts": 1, "loggers": ()}
    planned = api.plan("d3s", "vowels", preset=preset, task_options=options, **few)
    method = planned.build()
    batch = method.collect()
    method.update(batch)
    assert planned.config.samples_per_prompt == 16
    assert planned.config.surrogate.level == ("sequence" if preset == "gspo" else "token")

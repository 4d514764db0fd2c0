"""VADE against numpy: what is believed, which prompts are chosen, and what is never paid for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.data.curricula import Best
from polopt.data.samplers import Sequential
from polopt.methods.language.vade import information
from polopt.training.api import plan
from polopt.values.tracker import BetaBelief
from tests.guards.harness import reseed
from tests.policies.language_models import tiny_folder

MUST = 4
POOL, BATCH, GROUP = 12, 3, 4


def make(name="vade", pool=POOL, **settings):
    """A method on a pool of words, with four tokens to write."""
    options = settings.pop("task_options", {"pool": pool, "score_truncated": True})
    defaults = {"model": str(tiny_folder()), "policy.max_tokens": 4, "lr": 1e-2, "reference_kl": None}
    defaults |= {"batch_prompts": BATCH, "samples_per_prompt": GROUP}
    return plan(name, "vowels", task_options=options, **{**defaults, **settings}).build()


@pytest.mark.parametrize("preset", ["gspo", "paper", "small"])
def test_presets_run(preset):
    small = {"model": str(tiny_folder()), "policy.max_tokens": 4, "batch_prompts": 2, "samples_per_prompt": 2}
    options = {"pool": 4, "score_truncated": True}
    method = plan("vade", "vowels", preset=preset, task_options=options, **small).build()
    assert (method.config.surrogate.level == "sequence") == (preset == "gspo")
    assert (method.reference_policy is None) == (preset != "paper")
    assert all(math.isfinite(value) for value in method.update(method.collect()).values())


def believing(method, seed=0):
    """Random counts, given back as numpy arrays (a, b)."""
    a, b = np.random.default_rng(seed).uniform(0, 9, (2, method.belief.size))
    method.belief.alpha, method.belief.beta = torch.tensor(a), torch.tensor(b)
    return a, b


def collected(method, right, failed=()):
    """A batch of which these completions are right, in which the rows `failed` could not be scored."""
    batch = method.collect()
    batch["correct"] = torch.tensor(right, dtype=torch.bool)
    batch["reward"] = batch["correct"].to(batch["reward"])
    batch["failed"][list(failed)] = True
    for name in ("mask", "log_prob", "engine_log_prob"):
        batch[name][list(failed)] = 0
    return batch


# What is believed


def test_must_3_the_updates_of_the_figure(float64):
    belief = BetaBelief(3, tried=0.2, untried=0.999)
    belief.alpha, belief.beta = torch.tensor([0.1, 2.7, 9.0]), torch.tensor([8.4, 5.0, 1.0])
    index = torch.tensor([0] * 8 + [1] * 8)
    belief.update(index, torch.tensor([1.0] + [0] * 7 + [1.0] * 4 + [0] * 4))
    np.testing.assert_allclose(belief.alpha, [1.02, 4.54, 8.991], rtol=1e-12)
    np.testing.assert_allclose(belief.beta, [8.68, 0.2 * 5 + 4, 0.999], rtol=1e-12)


def test_must_3_the_prior_does_not_fade(float64):
    belief = BetaBelief(2, tried=0.2, untried=0.5)
    assert belief.value().tolist() == [0.5, 0.5]
    for _ in range(60):
        belief.update(torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 0, 0, 0]))
    np.testing.assert_allclose(belief.alpha + belief.beta, [4 / (1 - 0.2), 0], atol=1e-12)  # the steady memory
    np.testing.assert_allclose(belief.value(), [(1.25 + 1) / (5 + 2), 0.5], rtol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_the_order_of_rows_does_not_matter(rows):
    index, success = [torch.tensor([row[at] for row in rows], dtype=torch.int64) for at in (0, 1)]
    one, other = (BetaBelief(5, tried=0.25, untried=0.5) for _ in range(2))
    for belief, order in ((one, slice(None)), (other, torch.arange(len(rows)).flip(0))):
        belief.alpha, belief.beta = torch.arange(5.0), torch.arange(5.0).flip(0)
        belief.update(index[order], success[order].to(torch.get_default_dtype()))
    assert torch.equal(one.alpha, other.alpha)
    assert torch.equal(one.beta, other.beta)
    count = np.bincount(index.numpy(), minlength=5)
    np.testing.assert_allclose(one.alpha + one.beta, np.where(count, 0.25, 0.5) * 4 + count)


def test_must_1_draws_are_of_the_beliefs_and_new_every_time(float64):
    belief, generator = BetaBelief(3, tried=0.2, untried=0.999), torch.Generator().manual_seed(0)
    belief.alpha, belief.beta = torch.tensor([0.0, 3.0, 0.5]), torch.tensor([0.0, 1.0, 8.0])
    draws = np.stack([belief.draw(generator).numpy() for _ in range(20_000)])
    a, b = belief.alpha.numpy() + 1, belief.beta.numpy() + 1
    np.testing.assert_allclose(draws.mean(0), a / (a + b), atol=0.01)
    np.testing.assert_allclose(draws.var(0), a * b / (a + b) ** 2 / (a + b + 1), rtol=0.05)
    assert len(np.unique(draws)) > 59_000
    assert (
        belief.draw(torch.Generator().manual_seed(5)).tolist() == belief.draw(torch.Generator().manual_seed(5)).tolist()
    )


def test_a_batch_moves_the_beliefs(float64):
    method = make()
    a, b = believing(method)
    batch = collected(method, [1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1], failed=[0, 4, 5, 6, 7])
    index = batch["index"].numpy()[::GROUP]
    assert len(set(index)) == 3
    found = method.track(batch)
    chosen, value = [index[0], index[2]], (a + 1) / (a + b + 2)
    expected_a, expected_b = 0.999 * a, 0.999 * b  # of the prompt whose completions all failed, too
    expected_a[chosen], expected_b[chosen] = 0.2 * a[chosen] + [1, 4], 0.2 * b[chosen] + [2, 0]
    np.testing.assert_allclose(method.belief.alpha, expected_a, rtol=1e-12)
    np.testing.assert_allclose(method.belief.beta, expected_b, rtol=1e-12)
    error = 3 / 7 * abs(value[index[0]] - 1 / 3) + 4 / 7 * abs(value[index[2]] - 1)  # of 7 completions
    assert float(found["estimate_error"]) == pytest.approx(error)
    assert float(found["believed"]) == pytest.approx(((expected_a + 1) / (expected_a + expected_b + 2)).mean())
    assert float(found["visited"]) == 1.0


def test_what_is_right_is_the_verifiers_or_a_reward():
    rewards = torch.tensor([0.0, 0.25, 0.7, 1.0] * BATCH)
    for right_at, right in ((None, 1), (0.7, 2), (0.25, 3), (0.0, 4)):
        method = make(right_at=right_at)
        batch = collected(method, [0, 0, 0, 1] * BATCH)
        batch["reward"] = rewards
        found = method.track(batch)
        assert method.belief.alpha.sum() == right * BATCH  # 0.7 in single precision is less than 0.7
        assert method.belief.beta.sum() == (GROUP - right) * BATCH
        assert float(found["visited"]) == BATCH / POOL


# Which prompts


def test_must_2_information_by_hand():
    rate = torch.tensor([0.0, 0.5, 1 / 3, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(information(rate), [0, 0.125, 4 / 27, 0], rtol=1e-12)
    np.testing.assert_allclose(information(rate, 1.0), [0, 0.25, 2 / 9, 0], rtol=1e-12)
    grid = torch.linspace(0, 1, 3001, dtype=torch.float64)
    assert grid[information(grid).argmax()].item() == pytest.approx(1 / 3, abs=1e-3)
    assert grid[information(grid, 1.0).argmax()].item() == pytest.approx(1 / 2, abs=1e-3)


@pytest.mark.parametrize(("estimate", "hardness"), [("sampled", 2.0), ("sampled", 1.0), ("mean", 2.0)])
def test_must_2_the_batch_has_the_most_information(estimate, hardness, float64):
    method = make(estimate=estimate, hardness=hardness, batch_prompts=5)
    a, b = believing(method)
    seen = set()
    for _ in range(4):
        twin = torch.Generator()
        twin.set_state(method.generator.get_state())
        p = method.belief.draw(twin).numpy() if estimate == "sampled" else (a + 1) / (a + b + 2)
        expected = sorted(np.argsort(-p * (1 - p) ** hardness)[:5])
        assert method.source.sampler.draw(5) == expected
        seen.add(tuple(expected))
    assert (len(seen) > 1) == (estimate == "sampled")  # the beliefs stay the same; only draws differ


def test_of_equal_scores_the_first_and_then_the_untried():
    method = make(estimate="mean")
    drawn = []
    for _ in range(4):
        batch = collected(method, [0] * (BATCH * GROUP))
        drawn.append(batch["index"].tolist()[::GROUP])
        method.track(batch)
    assert drawn == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_must_4_nothing_is_spent_on_estimates_and_the_untried_come_soon():
    method = make(pool=32, batch_prompts=8, seed=1)
    seen = set()
    for update in range(12):
        batch = collected(method, [0] * (8 * GROUP))
        assert len(batch) == 8 * GROUP
        assert len(set(batch["index"].tolist())) == 8  # no prompt twice
        seen |= set(batch["index"].tolist())
        found = method.update(batch)
        assert method.ledger.completions == 8 * GROUP * (update + 1)
        assert float(found["visited"]) == len(seen) / 32
    assert len(seen) == 32


def test_beliefs_of_a_frozen_policy_find_its_pass_rates(float64):
    """With evidence that does not fade, visited prompts are known and those near 1 / 3 are taken."""
    rates, rng = torch.linspace(0.02, 0.98, 25), np.random.default_rng(0)
    belief, generator = BetaBelief(25, tried=1.0, untried=1.0), torch.Generator().manual_seed(0)
    sampler = Best(25, lambda: information(belief.draw(generator)))
    taken = np.zeros(25)
    for step in range(600):
        index = torch.tensor(sampler.draw(4)).repeat_interleave(8)
        belief.update(index, torch.tensor(rng.random(32) < rates[index].numpy()).double())
        taken[index.numpy()[::8]] += step >= 300
    often = taken > 100
    np.testing.assert_allclose(belief.value()[often], rates[often], atol=0.04)
    assert np.average(np.abs(rates.numpy() - 1 / 3), weights=taken) < 0.06
    assert taken[rates.numpy() > 0.6].sum() < 0.02 * taken.sum()


# The limit


def after(method, updates=3):
    """The weights after updates on batches that the method collects itself, from one seed."""
    for _ in range(updates):
        reseed()
        method.update(method.collect())
        method.ledger.updates += 1
    return {name: value.clone() for name, value in method.policy.state_dict().items()}


@pytest.mark.parametrize("surrogate", ["grpo", "gspo"])
def test_a_batch_of_the_whole_pool_is_grpo(surrogate, float64):
    settings = {"batch_prompts": 6, "surrogate": surrogate}
    base = make("grpo", pool=6, **settings)
    base.source.sampler = Sequential(6)
    expected = after(base)
    found = after(make(pool=6, **settings))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(found[name], value) for name, value in make().policy.state_dict().items())
    apart = after(make(pool=24, **settings))  # of a larger pool it takes others than the first
    assert any(not torch.equal(apart[name], value) for name, value in expected.items())


# Where it could break


def test_refuses_what_it_cannot_remember_or_count():
    for settings, said in (
        ({"task_options": {}}, "vade remembers every prompt: it needs finitely many"),
        ({"batch_prompts": 13}, "batch_prompts 13 is more than the 12 prompts of vowels"),
        ({"tried_memory": 1.5}, "tried_memory"),
        ({"dynamic_sampling": 2}, "dynamic_sampling has no effect where beliefs are to learn from every group"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            make(**settings)
        assert "\n" not in str(caught.value)


def test_counts_rewards_where_nothing_verifies(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text("".join(f'{{"prompt": "{word}:"}}\n' for word in ("ab", "cd", "ef", "gh", "ij", "kl")))

    def length(completion, **columns):
        return len(completion) / 4

    def one(**settings):
        options = {"rewards": length, "score_truncated": True, "heldout": 0}
        defaults = {"model": str(tiny_folder()), "policy.max_tokens": 4, "batch_prompts": 2, "samples_per_prompt": 2}
        return plan("vade", str(path), task_options=options, **{**defaults, **settings}).build()

    with pytest.raises(UsageError, match="does not verify any: say with --right-at"):
        one()
    method = one(right_at=0.5)
    method.update(method.collect())
    assert float(method.belief.alpha.sum()) > 0


def test_an_epoch_in_which_nothing_is_learned(float64):
    method = make()
    before = {name: value.clone() for name, value in method.policy.state_dict().items()}
    for right in ([0] * 12, [1] * 12) * 4:
        found = method.update(collected(method, right))
        assert float(found["informative"]) == 0
        assert all(math.isfinite(value) for value in found.values())
    assert all(torch.equal(value, before[name]) for name, value in method.policy.state_dict().items())


def test_a_run_restored_within_an_epoch_goes_on_exactly():
    def advance(method, count):
        found = []
        for _ in range(count):
            batch = method.collect()
            found.append((batch["index"].tolist(), {k: float(v) for k, v in method.update(batch).items()}))
        return found

    one = make(seed=5, right_at=0.3)
    advance(one, 2)
    flat = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(one).items()}
    other = make(seed=5, right_at=0.3)
    advance(other, 3)
    restore(other, flat)
    random = torch.get_rng_state()
    expected = advance(one, 6)
    torch.set_rng_state(random)
    assert advance(other, 6) == expected
    assert torch.equal(one.belief.alpha, other.belief.alpha)

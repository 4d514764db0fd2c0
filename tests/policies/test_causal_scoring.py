"""The logits of a batch never stand whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polopt.core.errors import UsageError
from polopt.policies import causal_scoring
from polopt.policies.causal_lm import entropy_of
from tests.policies.language_models import tiny_policy, wide_folder


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


def test_logits_never_stand_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(causal_scoring, "SMALL", 0)  # those of this model may
    vocabulary, rows = 4000, 16
    policy = tiny_policy(wide_folder(tmp_path, vocabulary))
    batch = policy.tokenize(["ab"] * rows, ["cdefghijklmnopqrstuvwxyz"] * rows)
    whole = 4 * batch["mask"].numel() * vocabulary
    for compute in (policy.log_prob, policy.entropy, lambda b: policy.kl(b, policy)):
        with Largest() as seen:
            compute(batch).sum().backward()
        assert seen.largest < whole / 4
    with Largest() as seen:
        policy.act(["ab"] * rows)
    assert seen.largest < whole / 4


def test_peak_memory_grows_by_less_than_the_logits(tmp_path):
    vocabulary, rows = 20_000, 16
    policy = tiny_policy(wide_folder(tmp_path, vocabulary))
    batch = policy.tokenize(["ab"] * rows, ["cdefghijklmnopqrstuvwxyz"] * rows)
    whole = 4 * batch["mask"].numel() * vocabulary
    policy.log_prob(batch).sum().backward()  # the gradients are there before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        policy.log_prob(batch).sum().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    assert 0 < peak < whole


@pytest.mark.parametrize("small", [0, causal_scoring.SMALL])
@pytest.mark.parametrize("headed", [True, False])
def test_values_of_logits_have_columns_and_several_outputs(monkeypatch, headed, small):
    monkeypatch.setattr(causal_scoring, "SMALL", small)
    policy = tiny_policy()
    monkeypatch.setattr(policy.passes, "headed", headed)
    batch = policy.tokenize(["ab", "abcd", "a"], ["cdefg", "a", "bb"])
    batch["mask"][0, 1] = False
    weight = torch.randn(*batch["mask"].shape, 2)

    def value(logits, token, weight):
        log_p = logits.log_softmax(-1)
        return torch.stack([log_p.gather(1, token.unsqueeze(1)).squeeze(1), entropy_of(logits)], -1) * weight

    found = policy.of_logits(batch, value, weight)
    expected = torch.stack([policy.log_prob(batch), policy.entropy(batch)], -1) * weight
    expected = torch.where(batch["mask"].unsqueeze(-1), expected, 0.0)
    torch.testing.assert_close(found, expected)
    parameters = list(policy.parameters())
    for one, other in zip(
        torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("small", [0, causal_scoring.SMALL])
@pytest.mark.parametrize("shared", [True, False])
def test_the_state_of_a_decision_is_the_one_that_predicts_its_token(monkeypatch, small, shared):
    monkeypatch.setattr(causal_scoring, "SMALL", small)
    policy = tiny_policy(temperature=0.5)
    batch = policy.tokenize(
        ["ab"] * 4 if shared else ["ab", "abcd", "a"], ["cdefg", "a", "bb", "b"][: 4 if shared else 3]
    )
    batch["mask"][0, 1] = False
    weight = torch.randn(*batch["mask"].shape, 3)
    matrix = policy.passes.head.weight

    def value(states, logits, token, weight):
        assert states.shape == (len(token), matrix.shape[1])
        assert weight.shape == (len(token), 3)
        torch.testing.assert_close(policy.scaled(states @ matrix.T), logits)
        log_prob = logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)
        return torch.stack([log_prob, states.square().sum(-1), weight[:, 0]], -1)

    found = policy.of_states(batch, value, weight)
    torch.testing.assert_close(found[..., 0], policy.log_prob(batch))
    for row in range(len(batch)):  # one row at a time, without padding
        real = batch["prompt_mask"][row]
        tokens = torch.cat((batch["prompt"][row][real], batch["completion"][row][batch["attention"][row]]))
        states = policy.bare.base_model(tokens.unsqueeze(0))[0][0, real.sum() - 1 : -1]
        norms = torch.where(batch["mask"][row, : len(states)], states.square().sum(-1), 0.0)
        torch.testing.assert_close(found[row, : len(states), 1], norms, rtol=1e-4, atol=1e-5)
    assert (found[~batch["mask"]] == 0).all()
    torch.testing.assert_close(found[..., 2], weight[..., 0] * batch["mask"])
    assert found[..., 1].sum().requires_grad


def test_states_are_those_of_a_plain_head(monkeypatch):
    policy = tiny_policy()
    monkeypatch.setattr(policy.passes, "headed", False)
    with pytest.raises(UsageError, match="output embeddings"):
        policy.of_states(policy.tokenize(["a"], ["b"]), lambda states, logits, token: states.sum(-1))


def test_values_of_logits_are_at_the_temperature():
    policy = tiny_policy(temperature=0.5)
    batch = policy.tokenize(["ab"], ["cd"])
    hot = policy.of_logits(batch, lambda logits, token: logits.gather(1, token.unsqueeze(1)).squeeze(1))
    policy.config = dataclasses.replace(policy.config, temperature=1.0)
    cold = policy.of_logits(batch, lambda logits, token: logits.gather(1, token.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(hot, 2 * cold)

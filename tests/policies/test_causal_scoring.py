"""The logits of a batch never stand whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_values_of_logits_are_at_the_temperature():
    policy = tiny_policy(temperature=0.5)
    batch = policy.tokenize(["ab"], ["cd"])
    hot = policy.of_logits(batch, lambda logits, token: logits.gather(1, token.unsqueeze(1)).squeeze(1))
    policy.config = dataclasses.replace(policy.config, temperature=1.0)
    cold = policy.of_logits(batch, lambda logits, token: logits.gather(1, token.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(hot, 2 * cold)

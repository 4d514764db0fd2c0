"""The logits of a batch never stand whole."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polopt.policies import causal_scoring
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

"""Which models `--shard` divides; what becomes of them is in test_ranks.py."""

from __future__ import annotations

import torch

from polopt.core import shards
from polopt.training.sharding import shard
from tests.guards.harness import built


def test_a_model_that_two_parts_hold_is_divided_once(monkeypatch):
    """The policy of rec is held by the wrapper that lags behind it, too, which has a copy of its own."""
    divided = []

    def divide(model, layers, device):
        divided.append(model)
        setattr(model, shards.PASS, None)
        return {parameter: parameter for parameter in model.parameters()}

    monkeypatch.setattr(shards, "divide", divide)
    with built("rec") as method:
        shard(method, torch.device("cpu"))
        held = [method.policy.bare, method.behavior_lag.stale.bare]
    assert {*map(id, divided)} == {*map(id, held)}
    assert len(divided) == 2

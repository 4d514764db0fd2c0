"""`--shard`: the language models of a method are divided among the processes that share its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.core import shards
from polopt.core.random import paired
from polopt.core.state import restore
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.policies.pretrained import kept_model


def shard(method: Method, device: torch.device) -> None:
    """Divides all language models that the method has built, copies among them, before its first step; its optimizers
    go on with the parts. Raises UsageError for models that cannot be divided."""
    new: dict[Tensor, Tensor] = {}
    for _, module in method.modules():
        for part in module.modules():
            if isinstance(part, CausalLMPolicy) and not shards.is_divided(part.bare):  # others may hold it, too
                new |= part.shard(device)
    for optimizer in method.optimizers():
        optimizer.replace(new)


def export_whole(policy: Any, state: dict[str, Any], place: Path) -> Path:
    """`policy.export(place)` of a divided policy, of which `state` has all tensors and `place` what is no tensor."""
    with kept_model(place), paired():
        whole = policy.config.build(policy.spec)
    restore(whole, state)
    found: Path = whole.export(place)
    return found

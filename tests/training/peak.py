"""How much memory an optimizer step and a batch of samples take, of two processes that train a model whole or divided,
and how much `polopt plan` says."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from polopt.core import ranks, shards
from polopt.policies.shapes import counted
from polopt.training.sizes import Work, need
from tests.guards.harness import advance, built

SETTINGS: dict[str, Any] = {"model": "10m", "batch_size": 2, "policy.gradient_checkpointing": True}
SENT = 1 << 18  # numbers at once: as little beside this model as what is sent is beside a large one


def most(work: Callable[[], Any]) -> int:
    """Bytes of memory that this process had at the fullest moment of `work`, as the kernel counts, beside what it had
    before. What was freed goes back first: a process that was forked from a long one would fill its holes unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].removesuffix("kB")) * 1024


def held(tensors: list[Tensor]) -> int:
    return sum(shards.local(one).nbytes for one in tensors)


def peaks(shard: bool) -> dict[str, tuple[int, float]]:
    """Of learning and sampling: the bytes that a process had of tensors that stay, with what it took more at the
    fullest moment, and what `polopt plan` says."""
    torch.set_default_dtype(torch.float32)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what a tensor had is given back, not kept for later
    with patch.object(ranks, "BUCKET", SENT), built("sft", shard=shard, **SETTINGS) as method:
        policy, optimizer = method.policy, method.optimizer  # type: ignore[attr-defined]
        weights = [*policy.parameters()]
        advance(method, 10**9, 1)  # which makes the moments
        moments = [state[name] for state in optimizer.torch.state.values() for name in ("exp_avg", "exp_avg_sq")]
        optimizer._zero_grad()
        batch = method.collect()
        learning = held([*weights, *moments]) + most(lambda: method.update(batch))
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        prompts = [problem.prompt for problem in method.task.problems(range(2))]  # type: ignore[attr-defined]
        policy.act(prompts)
        sampling = held([*weights, *moments, *gradients]) + most(lambda: policy.act(prompts))
        shape = counted("it", policy.bare)
    length = batch["prompt"].shape[1] + batch["completion"].shape[1]
    asked = need(shape, Work(devices=ranks.count(), dtype="float32", rows=2, length=length), shard=shard)
    always = sum(asked.held.values())
    return {
        "learning": (learning, always + sum(asked.learning.values())),
        "sampling": (sampling, always + sum(asked.sampling.values())),
    }

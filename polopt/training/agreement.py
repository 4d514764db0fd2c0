"""Processes that share a run hold the same state: where one does not, the run ends and says what differs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.core import ranks, shards
from polopt.core.errors import RunError
from polopt.core.state import Blob, gather
from polopt.training.checkpoints import random_state

SMALL = 1 << 16  # numbers of a tensor that are compared one by one; of a larger one, the norm


def check_agreement(method: Method) -> None:
    """Raises RunError in every process when their methods or random generators differ, naming the first that does."""
    if ranks.count() == 1:
        return
    own = fingerprints(method)
    whole = _code(json.dumps(own).encode())
    if len(set(ranks.each(lambda: whole))) == 1:
        return
    said = ranks.each(lambda: own)
    place = f"at {method.ledger[method.unit]:,} {method.unit}"
    for path in dict.fromkeys(path for one in said for path in one):
        codes = [one.get(path) for one in said]
        if len(set(codes)) > 1:
            other = next(rank for rank, code in enumerate(codes) if code != codes[0])
            raise RunError(f"processes 0 and {other} disagree about {path} {place}: what they compute must be the same")


def fingerprints(method: Method) -> dict[str, str]:
    """A few letters for every leaf of the state of a method, and for the global random generators. What is divided
    among the processes is held by one of them, so that there is nothing to agree about."""
    held = {path: leaf for path, leaf in gather(method, "method").items() if not shards.divided(leaf)}
    state = held | {name: leaf for name, leaf in random_state().items() if "cuda" not in name}
    if torch.cuda.is_available():
        state["random/cuda"] = torch.cuda.get_rng_state()
    return {path: _code(_told(leaf)) for path, leaf in state.items()}


def _told(leaf: Any) -> bytes:
    if isinstance(leaf, Blob):
        return leaf.key.encode()
    if not isinstance(leaf, Tensor):
        return json.dumps(leaf, default=str).encode()
    shape = f"{leaf.dtype} {tuple(leaf.shape)} ".encode()
    if leaf.numel() <= SMALL:
        return shape + leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return shape + str(torch.linalg.vector_norm(leaf.detach(), dtype=torch.float64).item()).encode()


def _code(said: bytes) -> str:
    return hashlib.blake2b(said, digest_size=8).hexdigest()

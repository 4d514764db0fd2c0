"""A pool in parts: all of it, in order, once a sweep, and paid for."""

from __future__ import annotations

import torch

from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data.sweeps import Sweep
from polopt.tasks import make_task
from tests.policies.language_models import tiny_policy


def made(prompts, pool=5):
    return Sweep(make_task("vowels", pool=pool, score_truncated=True), prompts, 2, ledger=Ledger())


def swept(sweep, actor):
    """The ids of each part of a sweep."""
    sweep.begin()
    parts = []
    while sweep.left:
        batch = sweep.next(actor)
        assert torch.equal(batch["index"][::2], batch["index"][1::2])
        parts.append(batch["index"].tolist()[::2])
    return parts


def test_a_sweep_has_every_prompt_once():
    actor = tiny_policy(max_tokens=2)
    sweep = made(2)
    assert sweep.left == 0
    assert swept(sweep, actor) == swept(sweep, actor) == [[0, 1], [2, 3], [4]]
    assert sweep.ledger.completions == 20
    assert swept(made(9), actor) == [[0, 1, 2, 3, 4]]
    assert swept(made(0), actor) == [[0], [1], [2], [3], [4]]


def test_a_sweep_goes_on_where_it_was():
    actor = tiny_policy(max_tokens=2)
    one, other = made(2), made(2)
    one.begin()
    one.next(actor)
    restore(other, gather(one))
    assert other.left == 3
    assert other.next(actor)["index"].tolist() == [2, 2, 3, 3]

"""What is covered: what was seen, to the share that was asked for."""

from __future__ import annotations

import copy

import numpy as np
import torch
from gymnasium import spaces

from polopt.core.spec import Spec
from polopt.models.coverage import Coverage
from polopt.networks import Network

SPEC = Spec(spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2))


def fitted(quantile: float = 0.95) -> Coverage:
    torch.manual_seed(0)
    seen = torch.randn(4_000, 2) * torch.tensor([1.0, 10.0]) + torch.tensor([0.0, 50.0])
    coverage = Coverage(SPEC, Network((64, 64), "relu"))
    coverage.fit(seen, updates=400, quantile=quantile, generator=torch.Generator().manual_seed(1))
    return coverage


def test_it_covers_the_share_of_what_it_saw_and_little_of_the_rest() -> None:
    coverage = fitted()
    fresh = torch.randn(4_000, 2) * torch.tensor([1.0, 10.0]) + torch.tensor([0.0, 50.0])
    assert 0.92 < coverage(fresh).float().mean() < 0.98
    assert coverage(torch.randn(500, 2) * torch.tensor([1.0, 10.0])).float().mean() < 0.05  # five deviations away
    half = fitted(0.5)
    assert 0.4 < half(fresh).float().mean() < 0.6


def test_the_embedding_rests_and_a_copy_says_the_same() -> None:
    coverage = Coverage(SPEC, Network((16,), "relu"), outputs=3)
    before = [value.clone() for value in coverage.embedding.trunk.parameters()]
    obs = torch.randn(50, 2)
    assert coverage.error(obs).shape == (50,)
    torch.testing.assert_close(
        coverage.error(obs)[7], ((coverage.predictor(obs[7]) - coverage.embedding(obs[7])) ** 2).sum() / 3
    )
    coverage.fit(obs, updates=20, generator=torch.Generator())
    assert all(torch.equal(one, other) for one, other in zip(before, coverage.embedding.trunk.parameters()))
    twin = Coverage(SPEC, Network((16,), "relu"), outputs=3)
    twin.load_state_dict(coverage.state_dict())
    assert torch.equal(twin.error(obs), coverage.error(obs))
    assert twin.threshold == coverage.threshold > 0


def test_the_threshold_is_that_of_states_from_which_nothing_was_learned() -> None:
    """A tenth, the first in the order that the generator draws: other states there change nothing but the threshold."""
    torch.manual_seed(0)
    seen = torch.randn(40, 2)
    out = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:4]
    other = seen.clone()
    other[out] += 9.0
    coverage = Coverage(SPEC, Network((64, 64), "relu"))
    twin = copy.deepcopy(coverage)
    for each, states in ((coverage, seen), (twin, other)):
        each.fit(states, updates=30, quantile=0.5, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(each.threshold, torch.quantile(each.error(states[out]), 0.5))
    assert torch.equal(twin.error(seen), coverage.error(seen))
    assert twin.threshold > coverage.threshold

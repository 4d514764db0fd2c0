"""Each policy of a population acts, and has the gradient, as it would alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.functional import assign, flatten
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Deterministic
from polopt.policies.population import Population

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32))


def policies(count):
    return [Deterministic().build(SPEC, network=Network((8, 8), "relu")) for _ in range(count)]


def test_every_row_acts_with_its_own_parameters(float64):
    each = policies(4)
    population = Population(policies(1)[0])
    population.genotypes = torch.stack([flatten(one.parameters()) for one in each]).detach()
    obs = torch.randn(4, 3)
    record, carry = population.act(obs)
    alone = torch.cat([one.act(obs[row : row + 1])[0]["action"] for row, one in enumerate(each)])
    torch.testing.assert_close(record["action"], alone)
    assert not carry
    shared = population.actions(population.genotypes, obs[:2])
    torch.testing.assert_close(shared[3], each[3].act(obs[:2])[0]["action"])


def test_gradients_are_those_of_each_by_itself(float64):
    each, obs = policies(3), torch.randn(5, 3)
    population = Population(policies(1)[0])
    genotypes = torch.stack([flatten(one.parameters()) for one in each]).detach().requires_grad_()
    (grad,) = torch.autograd.grad(population.actions(genotypes, obs).square().mean((1, 2)).sum(), genotypes)
    for row, one in enumerate(each):
        alone = torch.autograd.grad(one.rsample(obs)[0].square().mean(), list(one.parameters()))
        torch.testing.assert_close(grad[row], flatten(alone))


def test_a_child_is_the_policy_that_its_numbers_say(float64):
    one, population = policies(1)[0], Population(policies(1)[0])
    child = torch.randn(1, flatten(one.parameters()).numel())
    assign(list(one.parameters()), child[0])
    obs = torch.randn(1, 3)
    population.genotypes = child
    torch.testing.assert_close(population.act(obs)[0]["action"], one.act(obs)[0]["action"])


def test_rows_and_members_are_as_many():
    population = Population(policies(1)[0])
    population.genotypes = torch.zeros(2, flatten(population.actor.parameters()).numel())
    with pytest.raises(UsageError, match=r"^a population of 2 acts in as many rows, not in 3$"):
        population.act(torch.zeros(3, 3))
    recurrent = Deterministic().build(SPEC, network=Network((8,), recurrent="gru", recurrent_size=4))
    with pytest.raises(UsageError, match="feed-forward"):
        Population(recurrent)

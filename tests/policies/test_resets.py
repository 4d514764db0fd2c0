"""PSDP and CPI: where their classes are complete, where they are not, and each rule by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.policies.listed import probabilities
from polopt.policies.resets import cpi, psdp
from polopt.tasks.tabular import NamedMDP, TabularMDP, random_mdp


def fork() -> TabularMDP:
    """Whatever is done in state 0 leads to v (2), never to u (1); rewards there are u: (1, 0) and v: (0, 0.6)."""
    transition = torch.zeros(2, 3, 2, 3)
    transition[0, :, :, 2] = transition[1, :, :, 0] = 1.0
    reward = torch.zeros(2, 3, 2)
    reward[1, 1, 0], reward[1, 2, 1] = 1.0, 0.6
    return TabularMDP(transition, reward, 2)


class Fork(NamedMDP):
    model = staticmethod(fork)


ALWAYS = torch.tensor([[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]])
RESET = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)


def every_table(horizon, states, actions):
    digits = torch.cartesian_prod(*[torch.arange(actions)] * (horizon * states))
    return digits.reshape(-1, horizon, states)


def uniform(mdp):
    return torch.full((mdp.horizon, mdp.states), 1 / mdp.states, dtype=torch.float64)


def start_value(mdp, policy):
    return float(mdp.value(policy)[0, mdp.start])


def test_psdp_without_a_complete_class_fails_however_exact():
    """Under the resets action 0 is worth 0.5 and action 1 is worth 0.3, but u is never met."""
    mdp = fork()
    assert start_value(mdp, psdp(mdp, ALWAYS, RESET)) == 0.0
    assert start_value(mdp, probabilities(ALWAYS[1], 2)) == pytest.approx(0.6)
    complete = torch.cat((ALWAYS, torch.tensor([[[0, 0, 0], [0, 0, 1]]])))
    assert start_value(mdp, psdp(mdp, complete, RESET)) == pytest.approx(0.6)
    there = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.4, 0.6]], dtype=torch.float64)  # 0.4 against 0.36: still not enough
    assert start_value(mdp, psdp(mdp, ALWAYS, there)) == 0.0
    there[1] = torch.tensor([0.0, 0.3, 0.7])  # 0.3 against 0.42
    assert start_value(mdp, psdp(mdp, ALWAYS, there)) == pytest.approx(0.6)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 999))
def test_psdp_is_backward_induction_in_a_complete_class(seed):
    mdp = random_mdp(states=2, actions=2, horizon=3, mdp_seed=seed, reward_rate=1.0)
    optimal, value = mdp.optimal()
    found = psdp(mdp, every_table(3, 2, 2), uniform(mdp))
    assert torch.equal(found, optimal)
    assert start_value(mdp, found) == pytest.approx(float(value[0, mdp.start]))


def test_cpi_by_hand():
    """Visits from resets to a uniform step: 1/2 at the start, 1/4 in u and 3/4 in v at step 1, 3/2 in all. So
    `always 1` gains (3/4 0.6 - 1/4 1) / (3/2) = 2/15 over `always 0`; a larger eps stops."""
    mdp = fork()
    policy, advantages = cpi(mdp, ALWAYS, RESET, alpha=0.25, rounds=1)
    assert advantages == [pytest.approx(2 / 15)]
    assert policy[1].tolist() == [[0.75, 0.25]] * 3  # mixed in every decision
    assert policy[0].tolist() == [[1.0, 0.0]] * 3
    stopped, advantages = cpi(mdp, ALWAYS, RESET, alpha=0.25, eps=0.2)
    assert torch.equal(stopped, probabilities(ALWAYS[0], 2))
    assert len(advantages) == 1
    smaller, _ = cpi(mdp, ALWAYS, RESET, rounds=1)
    assert smaller[1, 0, 1].item() == pytest.approx(2 / 15 / 16)  # 4 H^2 R = 16


def test_the_mixture_is_played_in_every_decision_anew():
    """Half and half of two policies that must be followed twice: 1/2 by episode, 1/4 by decision."""
    transition = torch.zeros(2, 2, 2, 2)
    transition[:, :, 0, 1], transition[:, :, 1, 0] = 1.0, 1.0  # action 1 stays in state 0
    reward = torch.zeros(2, 2, 2)
    reward[1, 0, 1] = 1.0
    mdp = TabularMDP(transition, reward, 2)
    tables = torch.stack((torch.zeros(2, 2), torch.ones(2, 2))).long()
    policy, _ = cpi(mdp, tables, torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), alpha=0.5, rounds=1)
    assert start_value(mdp, policy) == pytest.approx(0.25)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 999))
def test_cpi_with_alpha_1_is_greedy_policy_iteration(seed):
    """Over all policies of a class, whose step is the greedy one where resets come everywhere."""
    mdp = random_mdp(states=2, actions=2, horizon=3, mdp_seed=seed, reward_rate=1.0)
    tables, policy = every_table(3, 2, 2), probabilities(torch.zeros(3, 2).long(), 2)
    for rounds in range(1, 4):
        value = mdp.value(policy)
        greedy = torch.stack([mdp.q(value[step + 1], step) for step in range(3)]).argmax(-1)
        policy = probabilities(greedy, 2)
        found, _ = cpi(mdp, tables, uniform(mdp), alpha=1.0, eps=-1.0, rounds=rounds)
        assert torch.equal(found, policy)
    assert torch.equal(policy, mdp.optimal()[0])


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 999))
def test_no_conservative_round_does_harm_where_it_is_reset_to(seed):
    mdp = random_mdp(states=3, actions=2, horizon=3, mdp_seed=seed, reward_rate=1.0)
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randint(2, (6, 3, 3), generator=generator)
    reset = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    reset /= reset.sum(1, keepdim=True)
    values = [
        float((mdp.value(cpi(mdp, tables, reset, rounds=rounds)[0])[:-1] * reset).sum()) for rounds in (0, 1, 2, 10, 40)
    ]
    assert values == sorted(values)

"""APO: between which policies the momentum is, what the next round begins with, and what it does to exact solutions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from polopt.core.errors import UsageError
from polopt.methods.language.apo import extrapolate, extrapolated
from polopt.training import api
from tests.guards.harness import built, plan

MUST = 5

PER_ROUND = 4  # of the smoke run: two minibatches of four, twice


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# The extrapolation


def test_must_4_tables_are_normalized(float64):
    """By hand: (0.6, 0.3, 0.1) after (0.5, 0.25, 0.25), with momentum 1/2."""
    new, old = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    found = extrapolated(new, old, 0.5)
    expected = np.array([0.6 * 1.2**0.5, 0.3 * 1.2**0.5, 0.1 * 0.4**0.5])
    np.testing.assert_allclose(found.exp().numpy(), expected / expected.sum(), rtol=1e-12)
    torch.testing.assert_close(extrapolated(new + 3.0, old - 2.0, 0.5), found)  # logits will do
    torch.testing.assert_close(extrapolated(new, old, 0.0), new)


def test_must_4_weights_are_tables_where_logits_are_linear(float64):
    """Both modes agree: a table of logits, and features times weights."""
    torch.manual_seed(0)
    features = torch.randn(5, 3)
    policy = nn.Linear(3, 1, bias=False)
    solution = copy.deepcopy(policy)
    with torch.no_grad():
        policy.weight += torch.randn(1, 3)
    new, old = ((features @ module.weight.T).squeeze(1).log_softmax(0).detach() for module in (policy, solution))
    extrapolate(policy, solution, 0.7)
    found = (features @ policy.weight.T).squeeze(1).log_softmax(0)
    torch.testing.assert_close(found, extrapolated(new, old, 0.7))
    torch.testing.assert_close((features @ solution.weight.T).squeeze(1).log_softmax(0), new)


def test_weights_that_are_not_trained_stay(float64):
    policy = nn.Linear(2, 2)
    solution = copy.deepcopy(policy)
    with torch.no_grad():
        policy.weight += 1.0
        policy.bias += 1.0
    policy.bias.requires_grad_(False)
    bias = policy.bias.clone()
    extrapolate(policy, solution, 0.5)
    torch.testing.assert_close(policy.weight, solution.weight + 0.5)
    assert torch.equal(policy.bias, bias)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.7])
def test_must_1_exact_rounds_step_by_the_geometric_sum(float64, momentum):
    """An exact round tilts pi_t by exp(reward / beta): the steps of pi^ are (1 - momentum^t) / (1 - momentum)."""
    torch.manual_seed(1)
    reward, start, beta = torch.randn(6), torch.randn(6).log_softmax(0), 2.0
    now = before = start
    for t in range(1, 6):
        solution = (now + reward / beta).log_softmax(0)
        step = (solution - before) * beta
        step = ((step - step.mean()) @ (reward - reward.mean()) / (reward - reward.mean()).square().sum()).item()
        assert step == pytest.approx((1 - momentum**t) / (1 - momentum))
        now, before = extrapolated(solution, before, momentum), solution


# The rounds


def test_must_2_the_momentum_is_between_solutions_and_the_next_round_begins_past_them(float64):
    with built("apo", momentum=0.5) as method:
        before = weights(method.policy)  # pi^_0 = pi_0
        begun = before
        for _ in range(3):
            for number in range(PER_ROUND):
                batch = method.collect()
                if number == 0:
                    assert same(weights(method.round_policy), begun)  # the reference
                    assert method.behavior is method.policy  # which sampled
                assert same(weights(method.solution), before)
                method.update(batch)
                if number < PER_ROUND - 1:
                    assert not same(weights(method.policy), begun)
            solution, begun = weights(method.solution), weights(method.policy)
            for name, value in begun.items():
                torch.testing.assert_close(value, solution[name] + 0.5 * (solution[name] - before[name]))
            assert not same(solution, before)
            assert not same(solution, begun)
            before = solution


def test_must_1_the_solution_is_what_the_last_minibatch_made(float64):
    """Beside a method without momentum: in the first round the two are one, and pi^_1 is its policy."""
    with built("apo", momentum=0.5) as method, built("iterative-dpo") as base:
        for each in (method, base):
            torch.manual_seed(3)
            each.generator.manual_seed(3)
            for _ in range(PER_ROUND):
                each.update(each.collect())
        assert same(weights(method.solution), weights(base.policy))
        assert not same(weights(method.policy), weights(base.policy))


def test_must_3_the_reference_is_that_of_the_round(float64):
    """What pairs are scored with is pi_t of every round, and no other policy."""
    with built("apo", momentum=0.5, start_weight=0.0) as method:
        assert method.reference_policy is None
        for _ in range(2):
            batch = method.collect()
            begun = copy.deepcopy(method.policy)
            for number in range(PER_ROUND):
                with torch.no_grad():
                    expected = method.scores(begun, batch)
                found = method.score_reference(batch)
                for side, value in zip(("chosen", "rejected"), expected):
                    torch.testing.assert_close(found[side, "reference_log_prob"], value)
                method.update(batch)
                if number < PER_ROUND - 1:
                    batch = method.collect()


def test_must_5_adams_momenta_are_another_thing(float64):
    """The extrapolation leaves them alone, and the next round begins without them."""
    with built("apo", momentum=0.5) as method, built("apo", momentum=0.0) as still:
        for each in (method, still):
            torch.manual_seed(3)
            each.generator.manual_seed(3)
            for _ in range(PER_ROUND):
                each.update(each.collect())
        states = [[state["exp_avg"] for state in each.optimizer.torch.state.values()] for each in (method, still)]
        assert states[0]
        assert all(torch.equal(one, other) for one, other in zip(*states))
        method.collect()
        assert not method.optimizer.torch.state


@pytest.mark.parametrize("loss", ["ipo-sum", "sppo"])
def test_without_momentum_it_is_iterative_whatever_the_loss(float64, loss):
    found = []
    for name, own in (("apo", {"momentum": 0.0}), ("iterative-dpo", {})):
        with built(name, loss=loss, **own) as method:
            torch.manual_seed(3)
            method.generator.manual_seed(3)
            for _ in range(PER_ROUND + 2):
                method.update(method.collect())
            found.append(weights(method.policy))
    assert same(*found)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_without_limit_is_refused(momentum):
    with pytest.raises(UsageError, match="momentum"):
        plan("apo", momentum=momentum)


def test_the_papers_stage():
    """With a tiny model in place of Mistral's."""
    own = {"task_options": {"score_truncated": True}, "steps": 939, "loggers": ()}
    planned = api.plan("apo", "vowels", preset="paper", model="tiny", **{"policy.max_tokens": 4}, **own)
    config, method = planned.config, planned.build()
    assert (config.samples_per_prompt, config.pairs, config.batch_size, config.epochs) == (5, 20_000, 64, 1)
    assert (config.lr, config.momentum, config.start_weight, config.loss) == (5e-7, 0.3, 0.0, "sigmoid")
    assert method.derived(config, 939)["rounds"] == 3
    assert method.optimizer.schedule(0.0) < method.optimizer.schedule(0.1) == 1.0

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.functional import flatten, gradient
from polopt.methods.control.reinforce import gpomdp, over_baseline, reward_to_go, whole_return
from polopt.tasks.tabular_sets import finite_value, paths
from polopt.training import api
from tests.guards.harness import built

REWARD = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0], [0.5, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
SMALL = {"task_options": {"states": 2, "actions": 2, "horizon": 2, "mdp_seed": 3, "reward_rate": 1.0}}


def test_credits_by_hand():
    """Discount 0.5."""
    assert reward_to_go(REWARD, 0.5, MASK).tolist() == [[3, 4, 4], [5.5, 5, 0], [0.5, 0, 0]]
    assert gpomdp(REWARD, 0.5, MASK).tolist() == [[3, 2, 1], [5.5, 2.5, 0], [0.5, 0, 0]]
    assert whole_return(REWARD, 0.5, MASK).tolist() == [[3, 3, 3], [5.5, 5.5, 0], [0.5, 0, 0]]


def test_baselines_by_hand():
    """Of those that reached the step: at the last one an episode is alone."""
    credit = reward_to_go(REWARD, 0.5, MASK)
    assert over_baseline(credit, MASK, "none").tolist() == credit.tolist()
    assert over_baseline(credit, MASK, "leave-one-out").tolist() == [[0, -1, 4], [3.75, 1, 0], [-3.75, 0, 0]]
    assert over_baseline(credit, MASK, "time-mean").tolist() == [[0, -0.5, 4], [2.5, 0.5, 0], [-2.5, 0, 0]]


def tabular(**settings: Any) -> Any:
    """The method on an MDP of 2 states, 2 actions and 2 steps."""
    common = {"steps": 100, "seed": 3, "loggers": (), "network.sizes": (3,)}
    return api.plan("reinforce", "random-mdp", **SMALL, **{**common, **settings}).build()


def exact(method: Any) -> tuple[Tensor, Tensor]:
    """The policy's table [H, S, A], with gradients, and the exact gradient [P] of its discounted return."""
    mdp = method.spec.info["mdp"]
    table = method.policy.logits(TensorDict({"obs": mdp.observations()}, [mdp.horizon, mdp.states])).softmax(-1)
    value = finite_value(mdp.transition, mdp.reward, table, method.config.discount)[0, mdp.start]
    return table, gradient(value, list(method.policy.parameters()))


def expected_slope(method: Any, table: Tensor) -> Tensor:
    """The mean gradient [P] of the loss, without a baseline: every path counts with its probability."""
    found = paths(method.spec.info["mdp"])
    batch = method.evaluate_episodes(found.episodes(method.spec.info["mdp"].reward))
    assert batch["weight"].eq(1 / len(found.state)).all()
    batch["weight"] = found.probability(table).detach().unsqueeze(-1).expand_as(batch["weight"])
    return gradient(method.policy_loss(batch)[0], list(method.policy.parameters()))


@pytest.mark.parametrize(("credit", "discount"), [("gpomdp", 0.7), ("return", 0.7), ("reward-to-go", 1.0)])
def test_the_expected_gradient_is_that_of_the_return(float64, credit, discount):
    """Against dynamic programming."""
    method = tabular(credit=credit, discount=discount, baseline="none")
    table, slope = exact(method)
    torch.testing.assert_close(expected_slope(method, table), -slope)
    assert slope.norm() > 0.01


def test_of_a_table_it_is_occupancy_times_advantage(float64):
    """d J / d logits = Pr(s_h) pi(a|s) (Q(s, a) - V(s)), at every step."""
    method = tabular(policy="tabular-softmax", baseline="none", discount=1.0)
    mdp = method.spec.info["mdp"]
    with torch.no_grad():
        method.policy.table.copy_(torch.arange(8.0).sin().reshape(2, 2, 2))
    table = method.policy.table.detach().softmax(-1)
    value = mdp.value(table)
    advantage = torch.stack([mdp.q(value[h + 1], h) for h in range(2)]) - value[:2].unsqueeze(-1)
    expected = mdp.occupancy(table).unsqueeze(-1) * table * advantage
    torch.testing.assert_close(expected_slope(method, table).reshape(2, 2, 2), -expected)


@pytest.mark.parametrize(("baseline", "length"), [("leave-one-out", 1.0), ("time-mean", 0.5), ("none", 1.0)])
def test_the_others_are_a_baseline_without_bias(float64, baseline, length):
    """All pairs of paths with their probabilities: the mean of both makes the gradient half as long."""
    method = tabular(baseline=baseline, discount=1.0)
    own = list(method.policy.parameters())
    table, slope = exact(method)
    found = paths(method.spec.info["mdp"])
    probability = found.probability(table).detach()
    every, total = found.episodes(method.spec.info["mdp"].reward), torch.zeros_like(slope)
    for i, j in itertools.product(range(len(found.state)), repeat=2):
        loss, _ = method.policy_loss(method.evaluate_episodes(every[[i, j]]))
        total -= probability[i] * probability[j] * gradient(loss, own)
    torch.testing.assert_close(total, length * slope)


def test_an_episode_is_a_sum_and_the_batch_their_mean(float64):
    """The loss of episodes of different lengths, by hand from their log-probabilities."""
    for over in ("episodes", "decisions"):
        with built("reinforce", average_over=over, entropy_coefficient=0.3) as method:
            batch = method.evaluate_episodes(method.collect())
            mask = batch["mask"]
            assert 0 < mask.sum() < mask.numel()  # some are shorter
            loss, metrics = method.policy_loss(batch)
            log_prob, entropy = method.policy.log_prob(batch), method.policy.entropy(batch)
            term = (-batch["advantage"] * log_prob - 0.3 * entropy)[mask].sum()
            torch.testing.assert_close(loss, term / (len(mask) if over == "episodes" else mask.sum()))
            torch.testing.assert_close(metrics["entropy"], entropy[mask].mean())


def test_the_entropy_bonus_raises_the_entropy(float64):
    method = tabular(entropy_coefficient=0.5)
    batch = method.collect()
    batch["reward"] = torch.zeros_like(batch["reward"])
    before = flatten(method.policy.parameters()).detach()
    evaluated = method.evaluate_episodes(batch)
    entropy = method.policy.entropy(evaluated).sum(-1).mean()
    slope = gradient(entropy, list(method.policy.parameters()))
    torch.testing.assert_close(
        gradient(method.policy_loss(evaluated)[0], list(method.policy.parameters())), -0.5 * slope
    )
    method.update(batch)
    assert (flatten(method.policy.parameters()) - before) @ slope > 0


def test_standardized_advantages_have_deviation_one_where_there_are_decisions(float64):
    with built("reinforce", standardize=True) as method:
        batch = method.evaluate_episodes(method.collect())
        mask = batch["mask"]
        assert batch["advantage"][mask].std().item() == pytest.approx(1)
        assert batch["advantage"][mask].mean().item() == pytest.approx(0, abs=1e-12)
        assert batch["advantage"][~mask].eq(0).all()


def test_sgd_follows_the_gradient(float64):
    method = tabular(optimizer="sgd", lr=0.1)
    own = list(method.policy.parameters())
    batch, before = method.collect(), flatten(own).detach()
    slope = gradient(method.policy_loss(method.evaluate_episodes(batch))[0], own)
    method.update(batch)
    torch.testing.assert_close(flatten(own).detach(), before - 0.1 * slope)


def test_it_learns_a_small_mdp():
    method = tabular(lr=0.05, **{"network.sizes": (16,)}, episodes=32, envs=32)
    mdp = method.spec.info["mdp"]
    best = mdp.optimal()[1][0, mdp.start]
    observations = TensorDict({"obs": mdp.observations()}, [mdp.horizon, mdp.states])
    at_first = mdp.value(method.policy.logits(observations).softmax(-1))[0, mdp.start]
    for _ in range(60):
        method.update(method.collect())
    value = mdp.value(method.policy.logits(observations).softmax(-1))[0, mdp.start]
    assert value > 0.97 * best > 1.1 * at_first

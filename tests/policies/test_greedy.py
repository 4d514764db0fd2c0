import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical
from polopt.policies.greedy import BestAction, EpsilonGreedy
from polopt.values.finite import FiniteQ

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
SPEC = Spec(VECTOR, spaces.Discrete(4, start=2), "Toy-v0")


class Fixed(nn.Module):
    """Two members that disagree: their mean is largest at action 1, that of the first at 0, of the second at 2."""

    normalizer = None

    def forward(self, obs):
        first = torch.tensor([5.0, 4.0, 0.0, 1.0])
        second = torch.tensor([0.0, 4.0, 5.0, 1.0])
        lead = (obs["state"] if isinstance(obs, dict) else obs).shape[:-1]
        return torch.stack([first, second]).unsqueeze(1).expand(2, *lead, 4)


def test_it_takes_the_best_of_the_mean_and_counts_from_the_start_of_the_space():
    policy = BestAction(SPEC, Fixed())
    action = policy.act(torch.zeros(3, 3))[0]["action"]
    assert action.tolist() == [1, 1, 1]
    assert policy.env_action(action).tolist() == [3, 3, 3]
    assert policy.own_action(torch.tensor([3])).tolist() == [1]
    assert policy.predict(np.zeros(3, np.float32)) == 3


def test_forbidden_actions_are_never_taken_neither_by_it_nor_by_chance():
    policy = BestAction(SPEC, Fixed())
    obs = {"state": torch.zeros(2_000, 3), "action_mask": torch.tensor([0, 0, 1, 1]).expand(2_000, 4)}
    assert policy.act(obs)[0]["action"].unique().tolist() == [2]
    assert policy.values(obs)[0].tolist() == [-torch.inf, -torch.inf, 2.5, 1.0]
    explored = EpsilonGreedy(policy, 1.0).act(obs)[0]["action"]
    assert explored.bincount(minlength=4)[2:].tolist() == pytest.approx([1_000, 1_000], rel=0.15)


def test_it_explores_with_its_probability_and_not_when_greedy():
    policy = BestAction(SPEC, FiniteQ(SPEC, Network(sizes=(8,))))
    obs = torch.zeros(20_000, 3)
    best = policy.act(obs)[0]["action"]
    explorer = EpsilonGreedy(policy, 0.4)
    other = (explorer.act(obs)[0]["action"] != best).float().mean()
    assert float(other) == pytest.approx(0.4 * 3 / 4, rel=0.05)
    assert torch.equal(explorer.act(obs, greedy=True)[0]["action"], best)
    assert torch.equal(EpsilonGreedy(policy, 0.0).act(obs)[0]["action"], best)


def test_what_it_explores_has_no_density():
    policy = Categorical().build(SPEC, Network(sizes=(8,)))
    obs = torch.zeros(5, 3)
    assert policy.act(obs)[0].keys() == {"action", "log_prob"}
    assert EpsilonGreedy(policy, 0.5).act(obs)[0].keys() == {"action"}

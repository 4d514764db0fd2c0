"""A decision of several parts, each taken by an actor of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical
from polopt.policies.factored import Factored, factors

OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)
SPACE = spaces.MultiDiscrete([[2, 3], [5, 2]], start=[[0, 1], [-2, 7]])


def team(space: spaces.Space) -> Factored:
    torch.manual_seed(0)
    actors = [
        Categorical().build(Spec(OBS, spaces.Discrete(count), "part"), Network((4,)))
        for count in factors(space)  # type: ignore[arg-type]
    ]
    return Factored(Spec(OBS, space, "whole"), actors)


def test_each_part_is_taken_and_scored_by_its_own_actor(float64: None) -> None:
    policy = team(SPACE)
    assert factors(SPACE) == [2, 3, 5, 2]
    obs = torch.randn(50, 3)
    record, carry = policy.act(obs)
    assert carry == {}
    assert record["action"].shape == record["log_prob"].shape == (50, 4)
    assert record["action"].max(0).values.tolist() == [1, 2, 4, 1]
    for place, actor in enumerate(policy.actors):
        batch = TensorDict({"obs": obs, "action": record["action"][:, place]}, batch_size=[50])
        torch.testing.assert_close(record["log_prob"][:, place], actor.log_prob(batch))
        assert torch.equal(policy.act(obs, greedy=True)[0]["action"][:, place], actor.logits(batch).argmax(1))


def test_actions_of_the_environment_have_its_shape_and_start() -> None:
    policy = team(SPACE)
    action = torch.tensor([[1, 0, 4, 0], [0, 2, 0, 1]])
    there = policy.env_action(action)
    assert there.tolist() == [[[1, 1], [2, 7]], [[0, 3], [-2, 8]]]
    assert torch.equal(policy.own_action(there), action)
    window = policy.env_action(action.expand(3, 2, 4))
    assert window.shape == (3, 2, 2, 2)
    assert torch.equal(policy.own_action(window), action.expand(3, 2, 4))
    assert SPACE.contains(policy.predict(np.zeros(3, np.float32)))


def test_a_discrete_space_has_one_part() -> None:
    space = spaces.Discrete(4, start=3)
    policy = team(space)
    record, _ = policy.act(torch.zeros(5, 3))
    assert record["action"].shape == (5, 1)
    there = policy.env_action(record["action"])
    assert there.shape == (5,)
    assert there.min() >= 3
    assert torch.equal(policy.own_action(there), record["action"])
    assert space.contains(policy.predict(np.zeros(3, np.float32)))


def test_a_part_without_an_actor_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs 4 actors, not 1"):
        Factored(Spec(OBS, SPACE, "whole"), list(team(spaces.Discrete(2)).actors))  # type: ignore[arg-type]

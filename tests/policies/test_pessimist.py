"""Who acts, by hand: experts whose actions, values and coverage are set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.models.coverage import Coverage
from polopt.networks import Network
from polopt.policies import SquashedGaussian
from polopt.policies.pessimist import Expert, Pessimist
from polopt.values.critics import QEnsemble

SPEC = Spec(spaces.Box(-np.inf, np.inf, (1,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32))
NETWORK = Network((4,))


def make() -> Expert:
    return Expert(SquashedGaussian().build(SPEC, network=NETWORK), QEnsemble(SPEC, NETWORK), Coverage(SPEC, NETWORK))


class Fixed(nn.Module):
    """An expert that means to act as `mode`, values actions by a function, and covers observations up to `reach`."""

    def __init__(self, mode: float, value: Any, reach: float, doubt: float = 1.0) -> None:
        super().__init__()
        self.mode, self.value, self.reach, self.doubt = mode, value, reach, doubt
        self.actor = self

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
        action = torch.full((len(obs), 1), self.mode)
        return {"action": action if greedy else action + 0.1}, {}

    def critic(self, obs: Any, action: Any) -> Any:
        value = self.value(obs.squeeze(-1), action.squeeze(-1))
        return torch.stack([value + self.doubt, value])  # the least of its members counts

    def coverage(self, obs: Any) -> Any:
        return obs.squeeze(-1) <= self.reach


def pessimist(*experts: Fixed, **options: Any) -> Pessimist:
    policy = Pessimist(make().actor, make, **options)
    policy.experts = nn.ModuleList(experts)
    policy.count = policy.used = len(experts)
    return policy


FIRST = Fixed(-0.5, lambda obs, action: obs + 0 * action, reach=2.0)  # worth what is observed
SECOND = Fixed(0.25, lambda obs, action: 1.0 - obs + 0 * action, reach=3.0)
OBS = torch.tensor([[0.0], [0.4], [0.6], [2.5], [9.0]])


def test_the_most_pessimistic_of_those_that_cover_a_state_acts() -> None:
    """Values 0, 0.4, 0.6 and 2.5 against 1, 0.6, 0.4 and -1.5; the fourth is unknown to the first, the last to both."""
    policy = pessimist(FIRST, SECOND)
    record, _ = policy.act(OBS, greedy=True)
    assert record["chosen"].tolist() == [0, 0, 1, 1, 1]
    assert record["action"].flatten().tolist() == [-0.5, -0.5, 0.25, 0.25, 0.25]
    drawn, _ = policy.act(OBS)
    torch.testing.assert_close(drawn["action"], record["action"] + 0.1)
    policy = pessimist(SECOND, FIRST)
    assert policy.act(OBS, greedy=True)[0]["chosen"].tolist() == [1, 1, 0, 0, 1]  # the latest where none covers
    policy.used = 1
    assert policy.act(OBS, greedy=True)[0]["chosen"].tolist() == [0] * 5


def test_an_expert_is_as_pessimistic_as_its_least_critic() -> None:
    """Worth 0.5 to one critic and 3.5 to the other, against 1 and 1."""
    doubtful = Fixed(0.1, lambda obs, action: 0.5 + 0 * obs, reach=9.0, doubt=3.0)
    sure = Fixed(0.2, lambda obs, action: 1.0 + 0 * obs, reach=9.0, doubt=0.0)
    assert pessimist(sure, doubtful).act(OBS, greedy=True)[0]["chosen"].tolist() == [1] * 5
    policy = pessimist(sure, doubtful, rule="q-min", samples=1)
    doubtful.value = lambda obs, action: torch.where(action < 0.15, 0.9, 0.8) + 0 * obs
    sure.value = lambda obs, action: torch.where(action < 0.15, 0.85, 1.0) + 0 * obs
    # least values of 0.2: min(1, 0.8); of 0.1: min(0.85, 0.9)
    torch.testing.assert_close(policy.act(OBS)[0]["action"], torch.full((5, 1), 0.1))


def test_without_coverage_the_least_value_would_mislead() -> None:
    lying = Fixed(0.9, lambda obs, action: -100.0 + 0 * action, reach=-1.0)
    assert pessimist(lying, FIRST).act(OBS, greedy=True)[0]["chosen"].tolist() == [1] * 5


def test_q_min_takes_the_action_whose_least_value_is_largest() -> None:
    """One wants actions near -0.5, the other near 0.25, whose values are worse: of -0.5, 0.25 and the draws 0.1 above
    them, -0.4 and 0.35, it takes the best one for the other."""
    first = Fixed(-0.5, lambda obs, action: -(action + 0.5).abs() + 0 * obs, reach=2.0)
    second = Fixed(0.25, lambda obs, action: -4 * (action - 0.25).abs() + 0 * obs, reach=3.0)
    policy = pessimist(first, second, rule="q-min", samples=2)
    record, _ = policy.act(OBS, greedy=True)
    # least values: -0.5: min(0, -3); 0.25: min(-0.75, 0); -0.4: min(-0.1, -2.6); 0.35: min(-0.85, -0.4)
    torch.testing.assert_close(record["action"].flatten(), torch.tensor([0.25] * 5))
    second.value = lambda obs, action: -1.0 - (action - 0.25).abs() + 0 * obs
    record, _ = policy.act(OBS, greedy=True)  # least: -1.75, -1.0, -1.65, -1.1
    assert record["action"].flatten().tolist() == [0.25] * 5
    first.value = lambda obs, action: -4 * (action + 0.4).abs() + 0 * obs  # least: -1.75, -2.6, -1.65, -3.0
    record, _ = policy.act(OBS, greedy=True)
    torch.testing.assert_close(record["action"].flatten(), torch.tensor([-0.4, -0.4, -0.4, 0.25, 0.25]))
    assert set(record) == {"action"}
    one = pessimist(first, second, rule="q-min", samples=1)
    torch.testing.assert_close(one.act(OBS[:1])[0]["action"].flatten(), torch.tensor([-0.5]))  # -0.4 is not there


def test_it_begins_as_the_actor_and_its_experts_are_copies_that_are_saved() -> None:
    torch.manual_seed(1)
    learner, policy = make(), Pessimist(make().actor, make)
    obs = torch.randn(6, 1)
    assert torch.equal(policy.act(obs, greedy=True)[0]["action"], policy.actor.act(obs, greedy=True)[0]["action"])
    learner.coverage.threshold.fill_(1e9)
    policy.keep(learner.actor, learner.critic, learner.coverage)
    before = policy.act(obs, greedy=True)[0]["action"]
    assert torch.equal(before, learner.actor.act(obs, greedy=True)[0]["action"])
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    assert torch.equal(policy.act(obs, greedy=True)[0]["action"], before)
    assert not any(parameter.requires_grad for parameter in policy.experts.parameters())
    policy.keep(learner.actor, learner.critic, learner.coverage)
    assert (policy.count, policy.used) == (2, 2)
    twin = Pessimist(make().actor, make)
    restore(twin, gather(policy))
    assert torch.equal(twin.act(obs, greedy=True)[0]["action"], policy.act(obs, greedy=True)[0]["action"])
    assert len(twin.experts) == 2


def test_recurrent_actors_are_refused() -> None:
    actor = SquashedGaussian().build(SPEC, network=Network((4,), recurrent="gru"))
    with pytest.raises(UsageError, match="experts take turns at single observations: use a feed-forward network"):
        Pessimist(actor, make)

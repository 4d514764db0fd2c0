from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.policies import TabularSoftmax
from polopt.tasks import make_task


def observations(step: list[int], state: list[int]) -> TensorDict:
    return TensorDict({"step": torch.tensor(step), "state": torch.tensor(state)}, [len(step)])


def test_a_tabular_task_has_a_logit_for_every_step_state_and_action(float64):
    spec = make_task("random-mdp", states=3, actions=2, horizon=4).spec
    policy = TabularSoftmax().build(spec)
    assert policy.table.shape == (4, 3, 2)
    assert policy.table.eq(0).all()
    with torch.no_grad():
        policy.table.copy_(torch.arange(24.0).sin().reshape(4, 3, 2))
    obs = observations([0, 3, 3], [2, 0, 1])
    batch = TensorDict({"obs": obs, "action": torch.tensor([1, 0, 1])}, [3])
    rows = policy.table[[0, 3, 3], [2, 0, 1]]
    torch.testing.assert_close(policy.logits(batch), rows)
    torch.testing.assert_close(policy.log_prob(batch), rows.log_softmax(-1)[range(3), [1, 0, 1]])
    (slope,) = torch.autograd.grad(policy.log_prob(batch)[1], [policy.table])
    probability = rows[1].softmax(-1).detach()
    torch.testing.assert_close(slope[3, 0], torch.tensor([1.0, 0.0]) - probability)
    assert slope.count_nonzero() == 2
    assert policy.act(obs, greedy=True)[0]["action"].tolist() == rows.argmax(-1).tolist()


def test_with_discrete_observations_it_is_a_table_of_states():
    policy = TabularSoftmax().build(Spec(spaces.Discrete(3, start=5), spaces.Discrete(2)))
    assert policy.table.shape == (3, 2)
    with torch.no_grad():
        policy.table.copy_(torch.arange(6.0).reshape(3, 2))
    assert policy.logits(TensorDict({"obs": torch.tensor([5, 7])}, [2])).tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize("more", [{"other": spaces.Discrete(2)}, {"step": spaces.Box(0, 1)}])
def test_what_a_table_would_not_see_is_refused(more):
    obs = spaces.Dict({"state": spaces.Discrete(2), "step": spaces.Discrete(3), **more})
    with pytest.raises(UsageError, match="needs a Discrete observation space, or state and step; this task has Dict"):
        TabularSoftmax().build(Spec(obs, spaces.Discrete(2)))

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Deterministic

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), "Toy-v0")


def test_it_is_the_tanh_of_its_network():
    policy = Deterministic().build(SPEC, Network())
    obs = torch.randn(5, 3)
    record, carry = policy.act(obs)
    assert list(record) == ["action"]
    assert carry == {}
    torch.testing.assert_close(record["action"], policy.net(obs).tanh())
    action, log_prob = policy.rsample(obs)
    assert log_prob is None
    assert action.requires_grad
    assert policy.rsample(obs, 4)[0].shape == (4, 5, 2)


def test_imitation_loss_is_the_mean_squared_error():
    policy = Deterministic().build(SPEC, Network())
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    loss = policy.imitation_loss(TensorDict({"obs": obs, "action": action}, batch_size=5))
    expected = ((policy.net(obs).tanh() - action).detach().numpy() ** 2).mean(-1)
    assert loss.detach().numpy() == pytest.approx(expected)

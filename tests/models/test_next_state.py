"""The plain model of the next state, on a line whose successors are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.next_state import NextState
from polopt.networks import Network

BOX = spaces.Box(-5.0, 5.0, (2,), np.float32)
ACT = spaces.Box(-1.0, 1.0, (1,), np.float32)
SPEC = Spec(BOX, ACT, "a line")


def linear(weight: torch.Tensor, bias: torch.Tensor) -> NextState:
    """s' = W (s, a) + b."""
    model = NextState(SPEC, Network(()))
    (layer,) = model.net.trunk.layers
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return model


WEIGHT, BIAS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]]), torch.tensor([0.25, -1.0])


def test_states_are_imagined_one_after_the_other(float64):
    model, obs, actions = linear(WEIGHT, BIAS), torch.randn(6, 2), torch.rand(6, 3, 1, requires_grad=True)
    states = model.imagine(obs, actions)
    assert states.shape == (3, 6, 2)
    assert not states.requires_grad
    expected = [obs.numpy()]
    for place in range(2):
        both = np.concatenate([expected[-1], actions.detach()[:, place].numpy()], 1)
        expected.append(both @ WEIGHT.double().numpy().T + BIAS.double().numpy())
    np.testing.assert_allclose(states.numpy(), expected)


def test_an_error_is_the_mean_over_coordinates(float64):
    model, obs, action = linear(WEIGHT, BIAS), torch.zeros(2, 2), torch.zeros(2, 1)
    errors = model.errors(obs, action, torch.tensor([[0.25, -1.0], [2.25, 2.0]]))
    assert errors.tolist() == [0.0, pytest.approx((2.0**2 + 3.0**2) / 2)]


def test_observations_in_a_dict_are_vectors_and_back():
    spec = Spec(spaces.Dict({"place": BOX, "speed": spaces.Box(-1, 1, (), np.float32)}), ACT, "a dict")
    model = NextState(spec, Network((8,)))
    obs = TensorDict({"place": torch.randn(4, 2), "speed": torch.randn(4)}, [4])
    states = model.imagine(obs, torch.randn(4, 2, 1))
    assert states.batch_size == (2, 4)
    assert states["place"][0].equal(obs["place"])
    after = model(obs, torch.zeros(4, 1))
    assert after.shape == (4, 3)
    assert model.errors(obs, torch.zeros(4, 1), obs).shape == (4,)


@pytest.mark.parametrize(
    ("spec", "network", "said"),
    [
        (Spec(spaces.Discrete(3), ACT, "a table"), Network(), "real numbers"),
        (SPEC, Network(recurrent="gru"), "recurrent to none"),
    ],
)
def test_what_no_model_predicts_is_said(spec, network, said):
    with pytest.raises(UsageError, match=said):
        NextState(spec, network)

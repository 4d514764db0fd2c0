import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values.finite import FiniteQ, gap_to_softmax, mean_value, taken

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(4), "Toy-v0")
NETWORK = Network(sizes=(8,))


def test_every_member_values_every_action():
    critic = FiniteQ(SPEC, NETWORK, members=2)
    q = critic(torch.randn(5, 3))
    assert q.shape == (2, 5, 4)
    assert not torch.equal(q[0], q[1])
    assert critic(torch.randn(6, 5, 3)).shape == (2, 6, 5, 4)
    obs, action = torch.randn(5, 3), torch.tensor([0, 3, 1, 2, 2])
    assert torch.equal(critic(obs, action), critic(obs)[:, torch.arange(5), action])


def test_dueling_values_are_a_value_and_advantages_of_mean_zero(float64):
    critic = FiniteQ(SPEC, Network(sizes=()), dueling=True)
    obs = torch.randn(5, 3)
    weight, bias = (parameter[0].detach() for parameter in critic.parameters())
    outputs = obs @ weight + bias
    outputs = outputs if outputs.shape[-1] == 5 else obs @ weight.T + bias
    q = critic(obs)[0]
    torch.testing.assert_close(q.mean(-1), outputs[:, 4])
    torch.testing.assert_close(q - q[:, :1], outputs[:, :4] - outputs[:, :1])


def test_what_it_cannot_value_is_refused():
    with pytest.raises(UsageError, match="values of all actions need a Discrete space; Toy-v0 has Box"):
        FiniteQ(Spec(SPEC.obs, SPEC.obs, "Toy-v0"), NETWORK)
    with pytest.raises(UsageError, match="a Q function is feed-forward"):
        FiniteQ(SPEC, Network(sizes=(8,), recurrent="gru"))


def test_values_of_actions_by_hand():
    q = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[0.0, -1.0, -2.0], [7.0, 8.0, 9.0]]])
    assert taken(q, torch.tensor([2, 0])).tolist() == [[3.0, 4.0], [-2.0, 7.0]]
    assert taken(q[0], torch.tensor([1, 1])).tolist() == [2.0, 5.0]
    probability = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    log_prob = torch.tensor([[0.25, 0.75, 1.0], [1.0, 1.0, 1.0]]).log()  # 0 where the probability is
    plain, soft = (mean_value(q[0], probability, log_prob, temperature) for temperature in (0.0, 2.0))
    assert plain.tolist() == [1.75, 4.0]
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    np.testing.assert_allclose(soft, [1.75 + 2.0 * entropy, 4.0], rtol=1e-6)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.integers(0, 1))
def test_the_gap_is_minus_the_log_probability_of_a_softmax(values, action):
    q, chosen = torch.tensor([values], dtype=torch.float64), torch.tensor([action])
    gap = gap_to_softmax(q, chosen)
    expected = np.log(np.sum(np.exp(np.array(values) - values[action])))
    assert float(gap) == pytest.approx(expected, abs=1e-9)
    assert float(gap) >= 0.0
    forbidden = torch.cat([q, torch.full((1, 1), -torch.inf, dtype=torch.float64)], -1)
    torch.testing.assert_close(gap_to_softmax(forbidden, chosen), gap)

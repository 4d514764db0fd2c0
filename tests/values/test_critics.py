import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.values.critics import QEnsemble, StateValue

torch.set_num_threads(1)
VECTOR = spaces.Box(-np.inf, np.inf, (3,))
SPEC = Spec(VECTOR, spaces.Box(-1, 1, (2,)), name="toy")
SMALL = Network(sizes=(8,))


def test_q_ensemble_shapes_and_members():
    torch.manual_seed(0)
    q = QEnsemble(SPEC, SMALL, members=3)
    assert q(torch.randn(5, 3), torch.randn(5, 2)).shape == (3, 5)
    assert q(torch.randn(4, 5, 3), torch.randn(4, 5, 2)).shape == (3, 4, 5)
    assert q(torch.randn(5, 3), torch.randn(7, 5, 2)).shape == (3, 7, 5)
    obs, action = torch.randn(5, 3), torch.randn(5, 2)
    values = q(obs, action)
    assert not torch.allclose(values[0], values[1])
    assert not torch.allclose(values, q(obs, action + 1))
    one_row = torch.stack([q(obs[i : i + 1], action[i : i + 1])[:, 0] for i in range(5)], 1)
    torch.testing.assert_close(values, one_row)


def test_gaussian_head():
    q = QEnsemble(SPEC, SMALL, head="gaussian")
    mean, std = q(torch.randn(5, 3), torch.randn(5, 2))
    assert mean.shape == std.shape == (2, 5)
    assert (std > 0).all()
    outputs = q.network(torch.zeros(1, 3), torch.zeros(1, 2))
    torch.testing.assert_close(q(torch.zeros(1, 3), torch.zeros(1, 2))[1], (1 + outputs[..., 1].exp()).log())


def test_refusals():
    with pytest.raises(UsageError, match=r"bits has MultiBinary\(2\)"):
        QEnsemble(Spec(VECTOR, spaces.MultiBinary(2), name="bits"), SMALL)
    with pytest.raises(UsageError, match="feed-forward"):
        QEnsemble(SPEC, Network(recurrent="gru"))
    with pytest.raises(ValueError, match="head"):
        QEnsemble(SPEC, SMALL, head="quantile")
    with pytest.raises(TypeError, match="no memory"):
        StateValue(SPEC, SMALL).step(torch.zeros(1, 3), torch.zeros(1, 4))


def window(shape=(3, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    terminated, truncated = (torch.rand(shape, generator=generator) < 0.25 for _ in range(2))
    first = torch.zeros(shape, dtype=torch.bool)
    first[..., 1:] = (terminated | truncated)[..., :-1]
    first[0, 0] = True
    obs, final_obs = (torch.randn(*shape, 3, generator=generator) for _ in range(2))
    return TensorDict(
        {"obs": obs, "final_obs": final_obs, "terminated": terminated, "truncated": truncated, "first": first}, shape
    )


def test_values_of_a_window():
    critic, batch = StateValue(SPEC, SMALL), window()
    done = batch["terminated"] | batch["truncated"]
    assert done[:, :-1].any()
    batch["final_obs"][~done & (torch.arange(6) < 5)] = torch.nan  # valid at ends and in the last column only
    before = batch.clone()
    value, next_value = critic.values(batch)
    assert value.shape == next_value.shape == (3, 6)
    assert not value.requires_grad
    for row in range(3):
        for t in range(6):
            successor = batch["final_obs"][row, t] if done[row, t] or t == 5 else batch["obs"][row, t + 1]
            torch.testing.assert_close(next_value[row, t], critic(successor[None])[0].detach())
            torch.testing.assert_close(value[row, t], critic(batch["obs"][row, t][None])[0].detach())
    for key in ("obs", "terminated", "truncated"):
        assert torch.equal(batch[key], before[key])
    assert critic.value(batch).requires_grad


def test_values_with_dict_observations_and_a_shared_normalizer():
    space = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(2)})
    normalizer = Normalizer(space)
    critic = StateValue(Spec(space, SPEC.action), SMALL, normalizer)
    assert critic.network.normalizer is normalizer
    batch = window()
    for key in ("obs", "final_obs"):
        batch[key] = TensorDict({"a": batch[key], "b": torch.ones(3, 6, dtype=torch.int64)}, (3, 6))
    value, next_value = critic.values(batch)
    assert value.shape == next_value.shape == (3, 6)
    torch.testing.assert_close(next_value[:, -1], critic(batch["final_obs"][:, -1]).detach())


def test_a_recurrent_critic_follows_its_memory():
    """Window and step by step agree; the value at an end is that of the final observation with the memory up to it."""
    critic, batch = StateValue(SPEC, Network(sizes=(8,), recurrent="gru", recurrent_size=4)), window()
    assert critic.recurrent
    start = torch.randn(3, 4)
    batch["critic_hidden"] = torch.full((3, 6, 4), torch.nan)
    batch["critic_hidden"][:, 0] = start
    value, next_value = critic.values(batch)
    torch.testing.assert_close(critic.value(batch).detach(), value)
    done, hidden = batch["terminated"] | batch["truncated"], start
    with torch.no_grad():
        for t in range(6):
            hidden = hidden * ~batch["first"][:, t : t + 1]
            expected, hidden = critic.step(batch["obs"][:, t], hidden)
            torch.testing.assert_close(value[:, t], expected)
            final, _ = critic.step(batch["final_obs"][:, t], hidden)
            ends = done[:, t] if t < 5 else torch.ones(3, dtype=torch.bool)
            torch.testing.assert_close(next_value[ends, t], final[ends])
            if t < 5:
                torch.testing.assert_close(next_value[~ends, t], value[~ends, t + 1])
    assert torch.equal(critic.new_hidden(batch["obs"][:, 0]), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="hidden"):
        critic(batch["obs"])


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_several_values_stand_in_front(recurrent):
    """Each is what a critic with that row of the last layer alone gives; [outputs, ...] everywhere."""
    size = {} if recurrent == "none" else {"recurrent_size": 4}
    network = Network(sizes=(8,), recurrent=recurrent, **size)
    critic, batch = StateValue(SPEC, network, outputs=3), window()
    batch["critic_hidden"] = torch.randn(3, 6, 4)
    value, next_value = critic.values(batch)
    assert value.shape == next_value.shape == critic.value(batch).shape == (3, 3, 6)
    assert StateValue(SPEC, network, outputs=1).values(batch)[0].shape == (1, 3, 6)
    single = StateValue(SPEC, network)
    for output in range(3):
        state = {
            name: weight[output : output + 1] if weight.shape != single.state_dict()[name].shape else weight
            for name, weight in critic.state_dict().items()
        }
        single.load_state_dict(state)
        for one, several in zip(single.values(batch), (value, next_value), strict=True):
            torch.testing.assert_close(several[output], one)
    if recurrent == "gru":
        value, hidden = critic.step(batch["obs"][:, 0], torch.zeros(3, 4))
        assert value.shape == (3, 3)
        assert hidden.shape == (3, 4)


def test_critics_on_an_environment():
    env = gymnasium.make("Pendulum-v1")
    spec = Spec(env.observation_space, env.action_space, name="Pendulum-v1")
    obs = torch.as_tensor(env.reset(seed=0)[0])
    assert QEnsemble(spec, SMALL)(obs[None], torch.zeros(1, 1)).shape == (2, 1)
    assert StateValue(spec, SMALL)(obs[None]).shape == (1,)
    env.close()


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Discrete(3, start=5), torch.tensor([0, 2, 1])),
        (spaces.MultiDiscrete([2, 3]), torch.tensor([[0, 2], [1, 0], [1, 1]])),
    ],
)
def test_discrete_actions_are_one_hot_inputs(space, actions):
    q = QEnsemble(Spec(VECTOR, space), SMALL)
    obs = torch.randn(3, 3)
    seen = []
    forward = q.network.forward
    q.network.forward = lambda obs, extra: seen.append(extra) or forward(obs, extra)
    assert q(obs, actions).shape == (2, 3)
    assert q(obs, actions.expand(4, *actions.shape)).shape == (2, 4, 3)
    expected = (
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]] if space.shape == () else [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0]]
    )
    assert seen[0].tolist() == expected
    assert seen[0].dtype == torch.get_default_dtype()

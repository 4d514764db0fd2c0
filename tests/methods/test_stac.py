"""STAC: each mechanism against numbers, and against formulas in NumPy that use nothing of polopt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.control.sac import SAC
from polopt.methods.control.stac import LEAST_STD, STAC, gaussian_nll
from polopt.networks import Network
from polopt.networks.dropping import SwitchedDropout, drop_before_normalization, dropping
from polopt.networks.layers import MLP, ResidualMLP
from polopt.regularizers import Fixed, Learned
from polopt.tasks import make_task
from polopt.training import api

NETWORK = Network(sizes=(16,), activation="relu", normalization="layer")
MUST = 5
SMALL = {"network": NETWORK, "warmup": 64, "batch_size": 32, "replay_size": 1_000}


@pytest.fixture(autouse=True)
def double(float64: None) -> None:
    """Everything here in double precision."""


def make(cls: Any = STAC, **settings: Any) -> Any:
    torch.manual_seed(0)
    return cls(cls.Config(**(SMALL | settings)), make_task("Pendulum-v1", num=1, seed=0))


def sample(rows: int = 6, seed: int = 1) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch = TensorDict(
        {
            "obs": normal(rows, 3),
            "action": normal(rows, 1).tanh(),
            "reward": 3 * normal(rows),
            "next_obs": normal(rows, 3),
            "terminated": torch.arange(rows) % 3 == 0,
            "truncated": torch.arange(rows) % 3 == 1,
            "discount": torch.full((rows,), 0.9),
        },
        batch_size=[rows],
    )
    return weigh(batch)


class Table(torch.nn.Module):
    """A critic whose outputs are parameters: gradients of a loss with respect to them can be written down."""

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.as_tensor(mean))
        self.std = torch.nn.Parameter(torch.as_tensor(std))

    def forward(self, obs: Any, action: Any) -> Any:
        return self.mean, self.std


class Draws:
    """A policy with one known action and log-density per row."""

    def __init__(self, log_prob: Any) -> None:
        self.log_prob = torch.as_tensor(log_prob)

    def rsample(self, obs: Any) -> Any:
        return torch.zeros(len(obs), 1), self.log_prob


def test_must_3_the_likelihood_by_hand() -> None:
    target, mean, std = np.array([1.0, -2.0]), np.array([[0.5, 1.0], [0.0, -2.0]]), np.array([[0.5, 2.0], [1.0, 0.1]])
    weight = np.array([0.25, 0.75])
    density = np.exp(-(((target - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    expected = (weight * -np.log(density)).sum() - math.log(2 * math.pi)  # half of it for each member
    tensors = [torch.as_tensor(each) for each in (target, mean, std, weight)]
    for each in tensors:
        each.requires_grad_()
    loss = gaussian_nll(*tensors)
    assert loss.item() == pytest.approx(expected)
    of_target, of_mean, of_std, _ = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert of_target is None
    assert np.allclose(of_mean, weight * (mean - target) / std**2)
    assert np.allclose(of_std, weight * (1 / std - (target - mean) ** 2 / std**3))


def test_must_1_the_target_is_pessimistic_and_holds_no_sample() -> None:
    method = make(pessimism=0.5, entropy=Fixed())
    batch, log_prob = sample(), np.linspace(-1, 2, 6)
    mean, std = np.linspace(-3, 5, 6), np.linspace(0.1, 2, 6)
    method.policy, method.target_critic = Draws(log_prob), Table(mean[None], std[None])
    value = mean - 0.5 * std - 0.2 * log_prob
    expected = batch["reward"].numpy() + 0.9 * np.where(batch["terminated"].numpy(), 0.0, value)
    assert np.allclose(method.target(batch), expected)
    assert torch.equal(method.target(batch), method.target(batch))
    assert not method.target(batch).requires_grad


def test_two_critics_take_the_smaller_pessimistic_value() -> None:
    method = make(pessimism=1.0, critics=2, entropy=Fixed())
    method.policy = Draws(np.zeros(6))
    method.target_critic = Table(np.array([[1.0] * 6, [2.0] * 6]), np.array([[0.5] * 6, [2.0] * 6]))
    batch = sample()
    batch["terminated"] = torch.zeros(6, dtype=torch.bool)
    assert np.allclose(method.target(batch), batch["reward"].numpy() + 0.9 * 0.0)  # the second: 2 - 2


def test_must_2_the_policy_ascends_the_pessimistic_value_of_the_online_critic() -> None:
    method = make(pessimism=0.5)
    batch = sample()
    for parameter in method.target_critic.parameters():
        parameter.data.mul_(2.0)  # which is not asked
    action = batch["action"].clone().requires_grad_()
    mean, std = method.critic(batch["obs"], action)
    expected = torch.autograd.grad((mean - 0.5 * std).sum(), action)[0]
    found = torch.autograd.grad(method.action_values(batch["obs"], action).sum(), action)[0]
    torch.testing.assert_close(found, expected)
    torch.manual_seed(3)
    loss, metrics = method.policy_loss(batch)
    torch.manual_seed(3)
    chosen, log_prob = method.policy.rsample(batch["obs"])
    mean, std = method.critic(batch["obs"], chosen)
    by_hand = (0.2 * log_prob - mean[0] + 0.5 * std[0]).mean()
    assert loss.item() == pytest.approx(by_hand.item())
    assert metrics["entropy"].item() == pytest.approx(-log_prob.mean().item())


def test_must_1_the_critic_learns_mean_and_spread_of_one_step_only() -> None:
    """Rewards of deviation 2 at each step: std is 2, and not that of the return, 2 / sqrt(1 - 0.9^2) = 4.6."""
    method = make(pessimism=0.0, entropy=Fixed(), lr=2e-2, network=Network(sizes=(16,), activation="relu"))
    method.policy = Draws(np.zeros(256))
    rewards = torch.Generator().manual_seed(0)
    batch = sample(256)
    batch["terminated"] = torch.zeros(256, dtype=torch.bool)
    batch["obs"], batch["next_obs"], batch["action"] = (
        torch.zeros_like(batch[key]) for key in ("obs", "obs", "action")
    )
    for _ in range(500):
        batch["reward"] = 1.0 + 2.0 * torch.randn(256, generator=rewards)
        method.critic_optimizer.minimize(method.critic_loss, batch)
        for copy, online in zip(method.target_critic.parameters(), method.critic.parameters()):
            copy.data.lerp_(online.data, 0.2)
    mean, std = method.critic(batch["obs"][:1], batch["action"][:1])
    assert std.item() == pytest.approx(2.0, abs=0.25)
    assert mean.item() == pytest.approx(10.0, abs=0.7)


def test_the_temperature_moves_as_in_the_official_code() -> None:
    method = make(lr=0.01)
    batch = method.collect()
    before = method.temperature.value.item()
    metrics = method.update(batch)
    expected = before * math.exp(0.01 * before * (-1.0 - metrics["entropy"].item()))
    assert method.temperature.value.item() == pytest.approx(expected, rel=1e-12)
    own = make(lr=0.01, entropy=Learned(initial=0.2, lr=0.5))
    metrics = own.update(own.collect())
    expected = 0.2 * math.exp(0.5 * 0.2 * (-1.0 - metrics["entropy"].item()))
    assert own.temperature.value.item() == pytest.approx(expected, rel=1e-12)
    adam = make(lr=0.01, temperature_step="adam")
    adam.update(adam.collect())
    assert abs(math.log(adam.temperature.value.item() / 0.2)) == pytest.approx(0.01, rel=1e-3)


def test_must_5_the_std_is_a_softplus_that_ends_at_minus_five_and_begins_without_bias() -> None:
    method = make()
    assert method.critic.members == 1
    assert method.critic.network.trunk.head.bias[0, 0, 1].item() == 0.0
    assert method.critic.network.trunk.head.bias[0, 0, 0].item() != 0.0
    with torch.no_grad():
        method.critic.network.trunk.head.bias[..., 1] = -40.0
    batch = sample()
    _, std = method.moments(method.critic, batch["obs"], batch["action"])
    assert std.unique().tolist() == pytest.approx([math.log(1 + math.exp(-5))])
    assert pytest.approx(LEAST_STD) == 0.006715348
    with torch.no_grad():
        method.critic.network.trunk.head.bias[..., 1] = 40.0
    assert method.moments(method.critic, batch["obs"], batch["action"])[1].min() > 30  # no upper bound


def test_must_4_dropout_stands_before_the_normalization() -> None:
    method = make(critic_dropout=0.3, policy_dropout=0.2)
    for net, rate in ((method.critic.network, 0.3), (method.target_critic.network, 0.3), (method.policy.net, 0.2)):
        kinds = [type(layer).__name__ for layer in net.trunk.layers]
        assert [kind.removeprefix("Ensemble") for kind in kinds] == [
            "Linear",
            "SwitchedDropout",
            "LayerNorm",
            "ReLU",
            "Linear",
        ]
        assert net.trunk.layers[1].p == rate
    assert not any(isinstance(part, SwitchedDropout) for part in make().critic.modules())


def test_must_4_dropout_is_on_in_targets_and_while_collecting_and_off_in_evaluations() -> None:
    method = make(critic_dropout=0.5, policy_dropout=0.5, envs=1)
    batch = sample()
    seen: dict[str, list[bool]] = {"critic": [], "target_critic": [], "policy": []}
    for name, found in seen.items():
        layer = next(part for part in getattr(method, name).modules() if isinstance(part, SwitchedDropout))
        layer.register_forward_hook(lambda part, inputs, output, found=found: found.append(part.on))
    method.update(batch)
    assert all(all(found) and found for found in seen.values())
    seen["policy"].clear()
    for _ in range(70):
        method.collect()
    assert all(seen["policy"])
    assert seen["policy"]
    seen["policy"].clear()
    method.evaluate(make_task("Pendulum-v1", num=2, seed=5, evaluation=True), episodes=2)
    assert seen["policy"]
    assert not any(seen["policy"])


def test_the_switch_is_turned_off_by_errors_too() -> None:
    network = torch.nn.Module()
    network.trunk = MLP(3, 2, (8,), normalization="layer")
    drop_before_normalization(network, 0.5)
    x = torch.ones(4, 3)
    assert torch.equal(network.trunk(x), network.trunk(x))
    with dropping(network), torch.no_grad():
        assert not torch.equal(network.trunk(x), network.trunk(x))

    def fail() -> None:
        with dropping(network):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(network.trunk(x), network.trunk(x))
    network.trunk = ResidualMLP(3, 2, (8,), normalization="layer")
    with pytest.raises(UsageError, match="for plain hidden layers: set it to 0 for other ones"):
        drop_before_normalization(network, 0.5)


def test_held_at_one_the_loss_is_half_the_square() -> None:
    method, sac = make(std=1.0, pessimism=0.0), make(SAC, critics=1)
    sac.critic.load_state_dict(method.critic.state_dict())
    batch = sample()
    method.target = sac.target = lambda batch: torch.linspace(-1, 1, 6)
    assert method.critic_loss(batch)[0].item() == pytest.approx(sac.critic_loss(batch)[0].item())
    assert method.critic_loss(batch)[1]["std"].item() == pytest.approx(1.0)


def test_what_it_refuses() -> None:
    for settings, sentence in (
        ({"network.dropout": 0.1}, "before the normalization: critic_dropout and policy_dropout"),
        ({"entropy": "fixed", "temperature_step": "adam"}, "temperature_step .* with a fixed temperature"),
        ({"policy_critic": "mean"}, "policy_critic .* with one critic"),
    ):
        with pytest.raises(UsageError, match=sentence):
            api.train("stac", "Pendulum-v1", steps=64, **settings)

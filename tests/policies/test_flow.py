import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.denoisers import Conv, DiT, Flat
from polopt.policies import Flow, MeanFlow
from polopt.policies.base import Field, Imitates, Reparameterized, Scores
from polopt.policies.fields import sample
from tests.policies.generative import NETWORK, SPEC, batch_of, compiled_difference, imitate, shares

CONFIGS = (Flow, MeanFlow)


def make(config, **options):
    return config(**options).build(SPEC, NETWORK)


@pytest.mark.parametrize("config", CONFIGS)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4))
def test_shapes(config, lead, steps):
    policy = make(config, steps=steps)
    batch = batch_of(*lead)
    record, carry = policy.act(batch["obs"])
    assert carry == {}
    assert list(record) == ["action"]
    assert record["action"].shape == (*lead, 2)
    assert float(record["action"].abs().max()) <= 1.0
    assert policy.imitation_loss(batch).shape == tuple(lead)
    action, log_prob = policy.rsample(batch["obs"], 3)
    assert log_prob is None
    assert action.shape == (3, *lead, 2)
    assert policy.field(batch["obs"], batch["action"], torch.full((*lead, 1), 0.5)).shape == (*lead, 2)
    assert isinstance(policy, Reparameterized)
    assert isinstance(policy, Imitates)
    assert isinstance(policy, Field)
    assert not isinstance(policy, Scores)


def test_rectified_flow_regresses_the_velocity_of_straight_lines(float64):
    policy, batch = make(Flow), batch_of(6)
    noise = policy.draw_noise(batch)
    x = (1 - noise["time"]) * batch["action"] + noise["time"] * noise["noise"]
    predicted = policy.net.predict(policy.net.features(batch["obs"]), x, noise["time"])
    expected = ((predicted - (noise["noise"] - batch["action"])) ** 2).mean(-1)
    torch.testing.assert_close(policy.imitation_loss(batch, noise), expected)
    uniform = policy.draw_noise(batch_of(4000))["time"]
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert uniform.min() >= 0
    assert uniform.max() <= 1


def test_sampling_is_eulers_method_on_the_field(float64):
    policy = make(Flow, steps=4, greedy="center")
    obs, x = torch.randn(5, 3), torch.randn(5, 2)
    expected = sample(policy, obs, x, torch.linspace(1, 0, 5)).clamp(-1, 1)
    torch.testing.assert_close(policy.generate(policy.net.features(obs), x.unsqueeze(-2)), expected)
    greedy = policy.act(obs, greedy=True)[0]["action"]
    assert torch.equal(greedy, policy.generate(policy.net.features(obs), torch.zeros(5, 1, 2)))


def test_times_are_ordered_logit_normal_numbers_and_equal_as_often_as_said():
    policy = make(MeanFlow, flow_ratio=0.3)
    since, time = policy.draw_noise(batch_of(20_000))["time"].unbind(-1)
    assert (since <= time).all()
    assert float((since == time).double().mean()) == pytest.approx(0.3, abs=0.01)
    pair = torch.stack([since, time])[:, since < time].logit()
    assert float(pair.mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(pair.std()) == pytest.approx(1.0, abs=0.02)
    for ratio, share in ((0.0, 0.0), (1.0, 1.0)):
        since, time = make(MeanFlow, flow_ratio=ratio).draw_noise(batch_of(500))["time"].unbind(-1)
        assert float((since == time).double().mean()) == share


@pytest.mark.parametrize("denoiser", [Flat(), DiT(16, 1, 2), Conv((8, 8), 3)], ids=["flat", "dit", "conv"])
def test_the_derivative_along_the_path_is_that_of_finite_differences(denoiser, float64):
    policy = make(MeanFlow, denoiser=denoiser)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    features = policy.net.features(torch.randn(5, 3))
    x, velocity = torch.randn(5, 2), torch.randn(5, 2)
    since, time = torch.full((5, 1), 0.2), torch.full((5, 1), 0.7)

    def u(step):
        return policy.mean_velocity(features, x + step * velocity, since, time + step * torch.ones_like(time))

    slope = policy.slope(features, x, since, time, velocity)
    torch.testing.assert_close(slope, (u(1e-6) - u(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)
    assert not slope.requires_grad


def test_the_mean_flow_loss_by_hand_and_its_gradient_ends_at_the_target(float64):
    policy, batch = make(MeanFlow), batch_of(6)
    noise = policy.draw_noise(batch)
    since, time = noise["time"].split(1, -1)
    features = policy.net.features(batch["obs"])
    x = (1 - time) * batch["action"] + time * noise["noise"]
    velocity = noise["noise"] - batch["action"]
    step = 1e-6
    ahead = policy.mean_velocity(features, x + step * velocity, since, time + step)
    behind = policy.mean_velocity(features, x - step * velocity, since, time - step)
    target = velocity - (time - since) * (ahead - behind).detach() / (2 * step)
    expected = (policy.mean_velocity(features, x, since, time) - target).square().mean(-1)
    loss = policy.imitation_loss(batch, noise)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    parameters = list(policy.parameters())
    ours = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_at_equal_times_it_is_flow_matching(float64):
    policy, batch = make(MeanFlow), batch_of(6)
    noise = policy.draw_noise(batch, torch.full((6, 2), 0.6))
    x = 0.4 * batch["action"] + 0.6 * noise["noise"]
    time = torch.full((6, 1), 0.6)
    velocity = policy.mean_velocity(policy.net.features(batch["obs"]), x, time, time)
    expected = (velocity - (noise["noise"] - batch["action"])).square().mean(-1)
    torch.testing.assert_close(policy.imitation_loss(batch, noise), expected)
    torch.testing.assert_close(policy.field(batch["obs"], x, time), x - 0.6 * velocity)


def test_one_step_of_the_true_mean_velocity_is_the_whole_flow(float64):
    """Data N(m, s^2): the flow from noise e ends at m + s e, and u follows from it in closed form."""
    policy = make(MeanFlow)
    mean, std = torch.tensor([0.2, -0.1]), 0.15

    def deviation(time):
        return ((1 - time).square() * std**2 + time.square()).sqrt()

    def u(features, x, since, time):
        z = (x - (1 - time) * mean) / deviation(time)  # constant along the flow
        earlier = (1 - since) * mean + deviation(since) * z
        return (x - earlier) / (time - since)

    policy.mean_velocity = u
    noise = torch.randn(50, 2)
    features = policy.net.features(torch.zeros(50, 3))
    whole = policy.generate(features, noise.unsqueeze(-2))
    torch.testing.assert_close(whole, mean + std * noise)
    policy.grid = torch.linspace(1.0, 0.0, 5)
    policy.steps = 4
    torch.testing.assert_close(policy.generate(features, noise.unsqueeze(-2)), whole)
    # ... and it is a fixed point of the training target: u = v - (t - r) du/dt with the velocity of the flow.
    x, since, time = noise, torch.full((50, 1), 0.3), torch.full((50, 1), 0.8)
    z = (x - 0.2 * mean) / deviation(time)
    velocity = -mean + (time - (1 - time) * std**2) / deviation(time) * z
    target = velocity - (time - since) * policy.slope(features, x, since, time, velocity)
    torch.testing.assert_close(u(features, x, since, time), target)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_reach_every_parameter_through_the_action(config):
    policy = make(config)
    action, _ = policy.rsample(torch.randn(64, 3))
    action.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


@pytest.mark.parametrize(("config", "steps"), [(Flow, 10), (MeanFlow, 1)])
def test_it_imitates_both_modes(config, steps):
    torch.manual_seed(1)
    policy = config(steps=steps).build(SPEC, Network((64, 64), "mish"))
    imitate(policy, 600)
    one, other, elsewhere = shares(policy)
    assert min(one, other) > 0.3
    assert elsewhere < 0.2


@pytest.mark.parametrize(
    ("config", "denoiser"),
    [
        (Flow, Flat()),
        (MeanFlow, Flat()),
        pytest.param(MeanFlow, DiT(8, 1, 2), marks=pytest.mark.exhaustive),
        pytest.param(MeanFlow, Conv((8,), 3), marks=pytest.mark.exhaustive),
    ],
)
def test_the_loss_compiles_in_one_graph(config, denoiser):
    assert compiled_difference(make(config, denoiser=denoiser), batch_of(8)) < 1e-6


@pytest.mark.parametrize("config", CONFIGS)
def test_recurrent_networks_are_refused(config):
    with pytest.raises(UsageError, match="flow policy is feed-forward: set the network's recurrent to none"):
        config().build(SPEC, Network((8,), recurrent="gru"))
    assert SPEC.action.contains(make(config).predict(np.zeros(3, np.float32)))

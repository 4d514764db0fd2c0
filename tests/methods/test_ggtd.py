"""GGTD: its likelihoods, weights and targets against SciPy and formulas in NumPy that use nothing of polopt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from tensordict import TensorDict
from torch.nn import functional

from polopt.config import InvalidValue
from polopt.methods.control.ggtd import (
    GGTD,
    error_terms,
    error_variance,
    gaussian_nll,
    generalized_nll,
    inverse_weights,
)
from polopt.networks import Network
from polopt.regularizers import Fixed
from polopt.tasks import make_task

MUST = 5
SMALL = {"network": Network(sizes=(8,)), "warmup": 32, "batch_size": 16, "replay_size": 200}


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here in double precision."""


def make(**settings):
    torch.manual_seed(0)
    return GGTD(GGTD.Config(**(SMALL | settings)), make_task("Pendulum-v1", num=1, seed=0))


def sample(rows=6):
    generator = torch.Generator().manual_seed(1)
    return TensorDict(
        {
            "obs": torch.randn(rows, 3, generator=generator),
            "action": torch.randn(rows, 1, generator=generator).tanh(),
            "reward": torch.randn(rows, generator=generator),
            "next_obs": torch.randn(rows, 3, generator=generator),
            "terminated": torch.arange(rows) % 3 == 0,
            "discount": torch.full((rows,), 0.9),
        },
        batch_size=[rows],
    )


class Table(torch.nn.Module):
    """A critic whose outputs are parameters [members of all critics, B]."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = torch.nn.ParameterList([torch.as_tensor(each, dtype=torch.float64) for each in outputs])

    def forward(self, obs, action):
        return tuple(self.outputs)


class Draws:
    def rsample(self, obs):
        return torch.zeros(len(obs), 1), torch.full((len(obs),), -2.0)


# Likelihoods


def test_must_1_the_likelihood_is_that_of_scipy():
    error, shape = torch.tensor([-3.0, -0.5, 0.2, 1.5, 4.0]), torch.tensor([0.5, 1.0, 1.7, 2.0, 6.0])
    expected = -stats.gennorm.logpdf(error.numpy(), shape.numpy())
    np.testing.assert_allclose(generalized_nll(error, shape) + math.log(2), expected, rtol=1e-12)
    scale = torch.tensor([0.3, 2.0, 1.0, 5.0, 0.7])
    expected = -stats.gennorm.logpdf(error.numpy(), shape.numpy(), scale=scale.numpy())
    np.testing.assert_allclose(generalized_nll(error, shape, scale) + math.log(2), expected, rtol=1e-12)


def test_the_product_form_has_a_product():
    error, shape = torch.tensor([-3.0, 0.5]), torch.tensor([0.5, 4.0])
    expected = [3 * 0.5 - np.log(0.5) + special.gammaln(2), 0.5 * 4 - np.log(4) + special.gammaln(0.25)]
    np.testing.assert_allclose(generalized_nll(error, shape, form="product"), expected)


def test_small_errors_have_no_endless_slope_and_shape_2_is_the_square():
    error = torch.tensor([0.0, 1e-5, 1e-5, 0.5], requires_grad=True)
    shape = torch.tensor([0.5, 0.5, 2.0, 2.0], requires_grad=True)
    generalized_nll(error, shape).sum().backward()
    assert error.grad.tolist() == pytest.approx([0.0, 0.0, 2e-5, 1.0])
    assert torch.isfinite(shape.grad).all()


def test_a_gaussian_likelihood_is_that_of_scipy():
    error, variance = torch.tensor([-3.0, 0.5]), torch.tensor([0.5, 4.0])
    expected = -stats.norm.logpdf(error.numpy(), scale=np.sqrt(variance.numpy())) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(gaussian_nll(error, variance), expected)


# Weights


def test_must_3_the_variance_of_errors_is_corrected_as_in_scipy():
    error = np.random.default_rng(0).standard_t(4, size=(2, 5, 7))
    kurtosis = stats.kurtosis(error, axis=1, bias=False)
    expected = error.var(axis=1) / (kurtosis / 5 + 6 / 4)
    np.testing.assert_allclose(error_variance(torch.as_tensor(error)), expected)
    assert error_variance(torch.ones(5, 3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("effective", [4, 16, 100])
def test_must_4_weights_leave_enough_rows(effective):
    variance = torch.as_tensor(np.exp(8 * np.random.default_rng(1).normal(size=(3, 32))))
    weights = inverse_weights(variance, effective)
    np.testing.assert_allclose(weights.sum(-1), 1)
    sizes = 1 / weights.square().sum(-1)
    np.testing.assert_allclose(sizes, min(effective, 31), rtol=1e-5)  # the smallest xi: no more than is asked for
    order = variance.argsort(-1)
    assert (weights.gather(-1, order).diff(dim=-1) <= 0).all()
    # 1 / weight is proportional to variance + xi
    inverse = (1 / weights).gather(-1, order)
    slope = (inverse[:, -1] - inverse[:, 0]) / (variance.amax(-1) - variance.amin(-1))
    middle = inverse[:, 0] + slope * (variance.gather(-1, order)[:, 20] - variance.amin(-1))
    np.testing.assert_allclose(inverse[:, 20], middle, rtol=1e-6)


def test_xi_is_0_where_rows_are_alike_enough():
    variance = torch.tensor([1.0, 2.0, 4.0])
    np.testing.assert_allclose(inverse_weights(variance, 2), np.array([4, 2, 1]) / 7)


def test_a_row_twice_counts_twice():
    variance = torch.tensor([0.1, 0.5, 0.5, 3.0, 9.0])
    twice = inverse_weights(torch.tensor([0.1, 0.5, 3.0]), 2, torch.tensor([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(inverse_weights(variance[:4], 2)[[0, 1, 3]], twice)
    none = inverse_weights(variance, 2, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(none[:4], inverse_weights(variance[:4], 2))


def test_equal_errors_weigh_alike():
    np.testing.assert_allclose(inverse_weights(torch.zeros(2, 8), 4), 1 / 8)
    expected = 0.5 * (math.log(1e-6) + 0.25 / 1e-6)
    assert gaussian_nll(torch.tensor(0.5), torch.tensor(0.0)).item() == pytest.approx(expected)


# The loss


def formula(error, raw, coefficient, averse=True):
    """The loss of [C, E, B] in NumPy, weights uniform over the batch, xi 0."""
    shape = np.clip(np.log1p(np.exp(raw)), 0.2, 8)
    nll = np.abs(error) ** shape - np.log(shape) + special.gammaln(1 / shape)
    omega = shape / shape.sum(1, keepdims=True) if averse else 1 / error.shape[1]
    corrected = error.var(axis=1) / (stats.kurtosis(error, axis=1, bias=False) / 5 + 1.5)
    weight = 1 / corrected / (1 / corrected).sum(1, keepdims=True)
    terms = (omega * nll).sum(1) + coefficient * weight * np.abs(error).sum(1)
    return 0.5 * terms.mean(1).sum()


@pytest.mark.parametrize("averse", [True, False])
def test_must_2_the_loss_is_the_formula(averse):
    rng = np.random.default_rng(2)
    values, raw, target = rng.normal(size=(10, 6)), rng.normal(size=(10, 6)), rng.normal(size=(5, 6))
    method = make(effective_batch=1, risk_averse=averse)
    method.critic = Table(values, np.log1p(np.exp(raw)))
    method.target = lambda batch: torch.as_tensor(target)
    batch = method.evaluate_batch(sample())
    loss, metrics = method.critic_loss(batch)
    error = values.reshape(2, 5, 6) - target
    assert loss.item() == pytest.approx(formula(error, raw.reshape(2, 5, 6), 0.1, averse))
    assert metrics["error_shape"].item() == pytest.approx(np.log1p(np.exp(raw)).clip(0.2, 8).mean())
    assert metrics["q"].item() == pytest.approx(values.mean())


def test_must_2_members_with_light_tails_count_more_and_omega_has_a_gradient():
    error = torch.full((1, 2, 1), 0.7)
    shape = torch.tensor([[[1.0], [3.0]]], requires_grad=True)
    terms, _ = error_terms(GGTD.Config(), error, [shape], None)
    terms.sum().backward()
    nll = generalized_nll(error, shape.detach())
    own = torch.autograd.functional.jacobian(lambda s: generalized_nll(error, s).sum(), shape.detach())
    omega = shape.detach() / 4
    through = (nll - (omega * nll).sum()) / 4
    torch.testing.assert_close(shape.grad, omega * own + through)
    assert terms.item() == pytest.approx((0.25 * nll[0, 0] + 0.75 * nll[0, 1]).item())


def test_must_4_no_gradient_through_weights_and_targets():
    method = make()
    batch = method.evaluate_batch(sample(16))
    assert not batch["target"].requires_grad
    assert not batch["error_weight"].requires_grad
    np.testing.assert_allclose(batch["error_weight"].sum(0), 1)


def test_shapes_stay_in_their_range():
    error, raw = torch.full((1, 5, 2), 0.5), torch.tensor([1e-4, 50.0]).expand(1, 5, 2)
    shape = error_terms(GGTD.Config(), error, [raw], None)[1]["error_shape"]
    assert shape[0, 0].tolist() == [0.2, 8.0]


def test_a_gaussian_likelihood_sums_over_members_and_weighs_squares():
    rng = np.random.default_rng(3)
    values, variance, target = rng.normal(size=(10, 6)), rng.gamma(2, size=(10, 6)), rng.normal(size=(5, 6))
    method = make(likelihood="gaussian", batch_weights="values", effective_batch=1)
    method.critic = Table(values, variance)
    method.target = lambda batch: torch.as_tensor(target)
    loss, metrics = method.critic_loss(method.evaluate_batch(sample()))
    values, variance = values.reshape(2, 5, 6), variance.reshape(2, 5, 6)
    inverse = 1 / (0.81 * values.var(axis=1, ddof=1))
    weight = inverse / inverse.sum(1, keepdims=True)
    error = values - target
    nll = 0.5 * (np.log(variance) + error**2 / variance)
    assert loss.item() == pytest.approx(0.5 * (nll.sum(1) + 0.1 * weight * (error**2).sum(1)).mean(1).sum())
    assert metrics["error_variance"].item() == pytest.approx(variance.mean())


def test_the_scale_may_be_learned():
    method = make(scale_head=True, batch_coefficient=0.0)
    values, shape, scale = method.predict(method.critic, sample()["obs"], sample()["action"])
    assert values.shape == shape.shape == scale.shape == (2, 5, 6)
    error = values.detach() - 1.0
    terms, _ = error_terms(method.config, error, [shape, scale], None)
    nll = -stats.gennorm.logpdf(*(x.detach().numpy() for x in (error, shape.clamp(0.2, 8), torch.zeros(()), scale)))
    omega = (shape / shape.sum(1, keepdim=True)).detach().numpy()
    np.testing.assert_allclose(terms.detach(), (omega * (nll - math.log(2))).sum(1))


# Targets and the policy


def test_must_5_every_member_has_its_own_target():
    """Two critics of two members, three rows; -alpha log pi = 0.5; row 0 ends."""
    method = make(members=2, batch_coefficient=0.0, entropy=Fixed(value=0.25), reward_scale=3.0)
    values = np.array([[1.0, 2.0, 3.0], [5.0, 0.0, 1.0], [4.0, -1.0, 7.0], [2.0, 8.0, 0.5]])
    method.target_critic, method.policy = Table(values, np.ones((4, 3))), Draws()
    batch = sample(3)
    least = np.minimum(values[:2], values[2:])  # member by member
    expected = 3 * batch["reward"].numpy() + 0.9 * np.array([0.0, 1.0, 1.0]) * (least + 0.5)
    np.testing.assert_allclose(method.target(batch), expected)
    assert not np.allclose(expected[0], expected[1])


def test_the_policy_climbs_the_smaller_mean_over_members():
    method = make(members=2, batch_coefficient=0.0)
    values = np.array([[1.0, 2.0], [5.0, 0.0], [4.0, -1.0], [0.0, 8.0]])
    method.critic = Table(values, np.ones((4, 2)))
    found = method.action_values(sample(2)["obs"], sample(2)["action"])
    assert found.tolist() == [[3.0, 1.0], [2.0, 3.5]]


def test_members_are_networks_of_their_own():
    method = make()
    values, shape = method.predict(method.critic, sample()["obs"], sample()["action"])
    assert values.shape == shape.shape == (2, 5, 6)
    values[1, 3].sum().backward()
    for parameter in method.critic.parameters():
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert moved.nonzero().tolist() == [[8]]


def test_the_weights_of_a_batch_count_its_rows():
    method = make()
    batch = sample(8).set("row_weight", torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    batch = method.evaluate_batch(batch)
    np.testing.assert_allclose((batch["row_weight"].unsqueeze(-1) * batch["error_weight"]).sum(0), 1)


def test_critics_then_the_policy_then_the_targets():
    method, reference = make(), make()
    before = {name: value.clone() for name, value in method.target_critic.state_dict().items()}
    torch.manual_seed(3)
    method.update(sample(16))
    torch.manual_seed(3)
    batch = reference.evaluate_batch(sample(16))
    reference.critic_optimizer.minimize(reference.critic_loss, batch)
    reference.improve(batch)
    for name in ("critic", "policy"):
        other = getattr(reference, name).state_dict()
        assert all(torch.equal(value, other[key]) for key, value in getattr(method, name).state_dict().items())
    tau = method.config.tau
    for key, value in method.target_critic.state_dict().items():
        torch.testing.assert_close(value, before[key] + tau * (method.critic.state_dict()[key] - before[key]))
    assert any(not torch.equal(value, before[key]) for key, value in method.critic.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"members": 1},
        {"members": 3},
        {"members": 1, "batch_weights": "values"},
        {"batch_coefficient": 0.0, "effective_batch": 3},
        {"likelihood": "gaussian", "shape": 2.0},
        {"likelihood": "gaussian", "risk_averse": False},
        {"shape": 2.0, "scale_head": True},
        {"members": 1, "batch_coefficient": 0.0, "risk_averse": False},
    ],
)
def test_options_that_do_nothing_are_refused(settings):
    with pytest.raises(InvalidValue):
        GGTD.Config(**settings)


def test_a_table_learns_the_shape_of_its_noise():
    """One value and shape for all: noise of shape 1 (Laplace) and of shape 3 are told apart."""
    rng = np.random.default_rng(0)
    for true in (1.0, 3.0):
        value, raw = torch.zeros(1, 5, 1, requires_grad=True), torch.zeros(1, 5, 1, requires_grad=True)
        optimizer = torch.optim.Adam([value, raw], lr=3e-2)
        for _ in range(400):
            noise = torch.as_tensor(rng.choice([-1, 1], 256) * rng.gamma(1 / true, size=256) ** (1 / true))
            terms, found = error_terms(
                GGTD.Config(), value - (2 + noise), [functional.softplus(raw).expand(1, 5, 256)], None
            )
            optimizer.zero_grad()
            terms.mean().backward()
            optimizer.step()
        assert value.mean().item() == pytest.approx(2, abs=0.1)
        assert found["error_shape"].mean().item() == pytest.approx(true, rel=0.15)

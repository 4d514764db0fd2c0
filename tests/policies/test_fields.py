import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import Diffusion, Flow
from polopt.policies.fields import Composed, Cosine, Linear, VariancePreserving, gradient_of, guide, mix_fields, sample

PATHS = [Linear(), VariancePreserving(0.1, 10.0), VariancePreserving(0.1, 20.0), Cosine()]
pytestmark = pytest.mark.usefixtures("float64")


def mixture(path, means, std):
    """The exact field of a mixture of equal Gaussians on the line: E[x0 | x] by Bayes' rule."""
    centers = torch.tensor(means, dtype=torch.float64)

    def field(obs, x, time):
        alpha, sigma = path.alpha(time), path.sigma(time)
        variance = alpha**2 * std**2 + sigma**2
        share = (-0.5 * (x - alpha * centers) ** 2 / variance).softmax(-1)
        posterior = centers + alpha * std**2 / variance * (x - alpha * centers)
        return (share * posterior).sum(-1, keepdim=True)

    return Composed(path, field)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_a_path_goes_from_data_to_noise_and_knows_its_slopes_and_times(path):
    time = torch.linspace(0.02, 0.98, 49, requires_grad=True)
    alpha, sigma = path.alpha(time), path.sigma(time)
    assert float(path.alpha(torch.zeros(()))) == pytest.approx(1.0)
    assert float(path.sigma(torch.zeros(()))) == pytest.approx(0.0, abs=1e-9)
    assert float(path.alpha(torch.ones(()))) < 0.09
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    slopes = [torch.autograd.grad(value.sum(), time, retain_graph=True)[0] for value in (alpha, sigma)]
    for ours, exact in zip(path.slopes(time), slopes):
        torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(path.time_at(path.ratio(time)), time)
    if not isinstance(path, Linear):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_the_variance_preserving_path_is_the_chain_of_diffusion_q_learning():
    steps = 5
    number = np.arange(1, steps + 1)
    kept = np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * number - 1) / steps**2)  # 1 - beta of each step
    alpha = VariancePreserving(0.1, 10.0).alpha(torch.tensor(number / steps))
    assert alpha.numpy() == pytest.approx(np.sqrt(np.cumprod(kept)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@given(st.floats(0.05, 0.95), st.floats(-2, 2), st.floats(-3, 3))
def test_noise_velocity_and_score_are_conversions_of_one_another(path, time, x0, noise):
    time, x0, noise = (torch.tensor([value], dtype=torch.float64) for value in (time, x0, noise))
    x = path.noised(x0, noise, time)
    torch.testing.assert_close(path.noise(x, x0, time), noise, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(path.from_noise(x, noise, time), x0, rtol=1e-7, atol=1e-7)
    velocity = path.velocity(x, x0, time)
    torch.testing.assert_close(path.from_velocity(x, velocity, time), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(path.score(x, x0, time), -noise / path.sigma(time), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_score_is_the_gradient_of_the_log_density(path):
    field = mixture(path, [-1.0, 0.5], 0.3)
    time, x = torch.tensor([0.4]), torch.linspace(-2, 2, 9)[:, None]

    def log_density(obs, x, time):
        variance = path.alpha(time) ** 2 * 0.3**2 + path.sigma(time) ** 2
        return (-0.5 * (x - path.alpha(time) * torch.tensor([-1.0, 0.5])) ** 2 / variance).logsumexp(-1)

    score = path.score(x, field.field(None, x, time), time)
    torch.testing.assert_close(score, gradient_of(log_density)(None, x, time))


def test_ddpm_steps_have_the_moments_of_bayes_rule():
    path, time, to, x, x0 = VariancePreserving(), torch.tensor(0.6), torch.tensor(0.4), torch.tensor(0.3), 0.7
    a, s, b, r = (float(value) for value in (path.alpha(time), path.sigma(time), path.alpha(to), path.sigma(to)))
    # x_time = (a / b) x_to + noise of variance s^2 - (a r / b)^2, and x_to ~ N(b x0, r^2)
    gain, extra = a / b, s**2 - (a * r / b) ** 2
    precision = 1 / r**2 + gain**2 / extra
    mean = (b * x0 / r**2 + gain * 0.3 / extra) / precision
    assert float(path.posterior(x, torch.tensor(x0), time, to)) == pytest.approx(mean)
    assert float(path.posterior_std(time, to)) == pytest.approx(precision**-0.5)
    assert float(path.posterior_std(time, torch.tensor(0.0))) == 0.0


def test_equal_signal_to_noise_gives_equal_estimates_on_any_path():
    vp, linear = PATHS[1], PATHS[0]
    time = torch.linspace(0.05, 0.95, 10)[:, None]
    own = linear.time_at(vp.ratio(time))
    x = torch.randn(10, 1)
    one = mixture(vp, [-1.0, 1.0], 0.2).field(None, x, time)
    other = mixture(linear, [-1.0, 1.0], 0.2).field(None, x * linear.alpha(own) / vp.alpha(time), own)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    both = mix_fields([mixture(vp, [-1.0, 1.0], 0.2), mixture(linear, [-1.0, 1.0], 0.2)], [0.3, 0.7])
    torch.testing.assert_close(both.field(None, x, time), one, rtol=1e-9, atol=1e-12)


def test_mixing_estimates_is_mixing_noise_and_scores_add_up_with_the_correction():
    path, time, x = PATHS[1], torch.tensor([0.5]), torch.randn(20, 1)
    parts = [mixture(path, [-0.6], 0.4), mixture(path, [0.9], 0.7)]
    noises = [path.noise(x, part.field(None, x, time), time) for part in parts]
    convex = mix_fields(parts, [0.4, 0.6]).field(None, x, time)
    torch.testing.assert_close(path.noise(x, convex, time), 0.4 * noises[0] + 0.6 * noises[1])
    both = mix_fields(parts, [1.0, 1.0]).field(None, x, time)  # the "and" of the two
    torch.testing.assert_close(path.score(x, both, time), -(noises[0] + noises[1]) / path.sigma(time))
    plain = parts[0].field(None, x, time) + parts[1].field(None, x, time)
    assert (plain - both).abs().max() > 0.1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_samples_are_of_the_distribution(path):
    x = torch.randn(4000, 1)
    times = torch.linspace(1.0, 0.0, 101)
    drawn = sample(mixture(path, [-1.0, 1.0], 0.1), None, x, times)
    near = (drawn.abs() - 1).abs() < 0.4
    assert float(near.double().mean()) > 0.98
    assert float((drawn > 0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((drawn.abs() - 1)[near].std()) == pytest.approx(0.1, abs=0.02)


def test_guidance_tilts_the_distribution():
    path = VariancePreserving(0.1, 20.0)
    field = mixture(path, [0.0], 1.0)

    def tilt(obs, x, time):  # log E[exp(0.7 x0) | x] of a standard normal, up to a constant: 0.7 alpha x
        return (0.7 * path.alpha(time) * x).sum(-1)

    with torch.no_grad():
        drawn = sample(guide(field, gradient_of(tilt), 1.0), None, torch.randn(20_000, 1), torch.linspace(1, 0, 101))
    assert float(drawn.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.03)


def test_edits_come_before_every_step():
    field = mixture(Linear(), [0.0], 0.5)
    seen = []

    def edit(index, x):
        seen.append(index)
        return torch.where(torch.tensor([True, False]), 0.25, x)

    drawn = sample(field, None, torch.ones(3, 2), [1.0, 0.5, 0.1], edit)
    assert seen == [0, 1]
    assert drawn.shape == (3, 2)
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("times", [[0.5, 1.0], [0.5], [0.5, 0.5, 0.0], [[0.5, 0.5], [0.2, 0.6]], [[0.5, 0.0]] * 2])
def test_times_that_rise_or_rest_are_refused(times):
    with pytest.raises(ValueError, match="times must not rise, one of them must fall in every step"):
        sample(mixture(Linear(), [0.0], 0.5), None, torch.ones(1, 2), times)


MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.3, 0.4]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T


def joint(path):
    """The exact field of N(MEAN, COVARIANCE) when every coordinate has a time of its own."""

    def field(obs, x, time):
        alpha, sigma = (value.expand(3) for value in (path.alpha(time), path.sigma(time)))
        noisy = alpha[:, None] * COVARIANCE * alpha + torch.diag(sigma**2)
        return MEAN + (x - alpha * MEAN) @ torch.linalg.solve(noisy, alpha[:, None] * COVARIANCE)

    return Composed(path, field)


def conditional(given, value):
    """Mean and covariance of the other coordinates, by the rule of Schur."""
    free = [i for i in range(3) if i not in given]
    gain = COVARIANCE[free][:, given] @ torch.linalg.inv(COVARIANCE[given][:, given])
    rest = COVARIANCE[free][:, free] - gain @ COVARIANCE[given][:, free]
    return free, MEAN[free] + gain @ (value - MEAN[given]), rest


@pytest.mark.parametrize("given", [[0], [2], [0, 1], [1, 2]], ids=str)
@pytest.mark.parametrize("path", [Linear(), VariancePreserving(0.1, 20.0)], ids=["linear", "vp"])
def test_coordinates_held_at_time_0_are_given(path, given):
    """The schedule in which they stay at 0 samples the conditional distribution: as an inverse or a forward model."""
    value = torch.tensor([0.9, -0.4], dtype=torch.float64)[: len(given)]
    free, mean, covariance = conditional(given, value)
    times = torch.linspace(1.0, 0.0, 201)[:, None].repeat(1, 3)
    times[:, given] = 0.0
    x = torch.randn(4000, 3)
    x[:, given] = value
    drawn = sample(joint(path), None, x, times)
    assert torch.equal(drawn[:, given], x[:, given])  # to the bit
    torch.testing.assert_close(drawn[:, free].mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[:, free].T.cov().reshape(covariance.shape), covariance, rtol=0, atol=0.05)


def test_the_center_of_what_is_given_is_followed_exactly():
    """From noise 0 the linear path leads to the conditional mean in any number of steps."""
    value = torch.tensor([0.9], dtype=torch.float64)
    free, mean, _ = conditional([1], value)
    x = torch.tensor([[0.0, 0.9, 0.0]], dtype=torch.float64)
    for steps in (1, 3):
        times = torch.linspace(1.0, 0.0, steps + 1)[:, None].repeat(1, 3)
        times[:, 1] = 0.0
        torch.testing.assert_close(sample(joint(Linear()), None, x, times)[0, free], mean)


def test_a_coordinate_held_at_time_1_is_unknown():
    """What stays noise says nothing: the others follow their own marginal, and it stays as it is."""
    times = torch.linspace(1.0, 0.0, 101)[:, None].repeat(1, 3)
    times[:, 2] = 1.0
    x = torch.randn(4000, 3)
    drawn = sample(joint(Linear()), None, x, times)
    assert torch.equal(drawn[:, 2], x[:, 2])
    torch.testing.assert_close(drawn[:, :2].mean(0), MEAN[:2], rtol=0, atol=0.06)
    torch.testing.assert_close(drawn[:, :2].T.cov(), COVARIANCE[:2, :2], rtol=0, atol=0.08)
    other = x.clone()
    other[:, 2] = torch.randn(4000)
    torch.testing.assert_close(sample(joint(Linear()), None, other, times)[:, :2], drawn[:, :2])


def test_coordinates_may_fall_one_after_the_other():
    """First one, then the others given it: the joint distribution again."""
    down, up = torch.linspace(1.0, 0.0, 101), torch.ones(100)
    times = torch.stack([torch.cat([down[:-1], 0 * down]), torch.cat([up, down]), torch.cat([up, down])], -1)
    drawn = sample(joint(Linear()), None, torch.randn(4000, 3), times)
    torch.testing.assert_close(drawn.mean(0), MEAN, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.T.cov(), COVARIANCE, rtol=0, atol=0.08)


def test_gradients_pass_through_what_is_held():
    x = torch.randn(5, 3, requires_grad=True)
    times = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0], [0.0, 0.0, 0.5]])
    drawn = sample(joint(VariancePreserving()), None, x, times)
    (gradient,) = torch.autograd.grad(drawn.sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().sum(0) > 0).all()


def test_mixtures_of_fields_on_other_paths_know_what_is_given():
    """The product of a field with itself, weights 0.3 and 0.7, is the field: also where coordinates are at time 0."""
    linear, vp = joint(Linear()), joint(VariancePreserving(0.1, 20.0))
    x, time = torch.randn(5, 3), torch.tensor([0.6, 0.0, 0.3])
    mixed = mix_fields([vp, linear], [0.3, 0.7]).field(None, x, time)
    torch.testing.assert_close(mixed, vp.field(None, x, time), rtol=1e-9, atol=1e-9)
    cosine = mix_fields([joint(Cosine()), linear], [0.3, 0.7]).field(None, x, time)
    torch.testing.assert_close(cosine, joint(Cosine()).field(None, x, time), rtol=1e-9, atol=1e-9)


def test_policies_mix_only_with_equal_normalizers():
    spec = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), "Toy-v0")
    normalizer = Normalizer(spec.obs)
    policies = [config.build(spec, Network((8,)), normalizer) for config in (Diffusion(), Flow())]
    mixed = mix_fields(policies, [0.5, 0.5])
    obs, x, time = torch.randn(4, 3), torch.randn(4, 2), torch.tensor([0.5])
    assert mixed.field(obs, x, time).shape == (4, 2)
    other = Flow().build(spec, Network((8,)), Normalizer(spec.obs))
    assert mix_fields([policies[0], other], [0.5, 0.5])
    other.update_normalizer({"obs": 3 * obs})
    with pytest.raises(UsageError, match="same statistics"):
        mix_fields([policies[0], other], [0.5, 0.5])
    with pytest.raises(UsageError, match="one weight for each field, not 1 for 2"):
        mix_fields(policies, [1.0])


def test_mixed_samples_lie_on_modes_where_mixed_actions_do_not():
    fields = [mixture(PATHS[1], [-1.0, 1.0], 0.05), mixture(PATHS[0], [-1.0, 1.0], 0.05)]
    x, y = torch.randn(2000, 1), torch.randn(2000, 1)
    times = torch.linspace(1.0, 0.0, 61)

    def on_modes(actions):
        return float(((actions.abs() - 1).abs() < 0.3).double().mean())

    assert on_modes(sample(mix_fields(fields, [0.5, 0.5]), None, x, times)) > 0.97
    finished = 0.5 * (sample(fields[0], None, x, times) + sample(fields[0], None, y, times))
    assert on_modes(finished) < 0.6
    assert math.isfinite(on_modes(finished))

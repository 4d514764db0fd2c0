import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import distributions

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import Deterministic, Gaussian, SquashedGaussian
from polopt.policies.gaussian import (
    gaussian_kl,
    safe_atanh,
    squashed_log_prob,
    squashed_sample,
    tanh_log_slope,
    unsquash,
)

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), "Toy-v0")
FREE = Spec(SPEC.obs, spaces.Box(-np.inf, np.inf, (2,)), "Free-v0")
NETWORK = Network(sizes=(8,))
CONFIGS = [Gaussian(), Gaussian(std="state-dependent", log_std_init=-0.5), SquashedGaussian()]

pytestmark = pytest.mark.usefixtures("float64")


def make_policy(config, spec=SPEC, network=NETWORK):
    policy = config.build(spec, network)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return policy


def batch_of(policy, lead=(6,)):
    obs = torch.randn(*lead, 3)
    action = torch.rand(*lead, 2) * 1.8 - 0.9
    return TensorDict({"obs": obs, "action": action}, batch_size=lead)


def reference(policy, batch):
    mean, log_std = policy.moments(batch)
    normal = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    if policy.unit:
        return distributions.TransformedDistribution(normal, distributions.TanhTransform())
    return normal


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 1, 3)])
def test_log_prob_equals_torch_distributions(config, lead):
    policy = make_policy(config)
    batch = batch_of(policy, lead)
    expected = reference(policy, batch).log_prob(batch["action"])
    torch.testing.assert_close(policy.log_prob(batch), expected, rtol=1e-10, atol=1e-10)
    assert policy.log_prob(batch).shape == lead


@pytest.mark.parametrize("config", CONFIGS)
def test_kl_equals_torch_distributions_and_differentiates(config):
    one, other = make_policy(config), make_policy(config)
    batch = batch_of(one)
    normals = []
    for policy in (one, other):
        mean, log_std = policy.moments(batch)
        normals.append(distributions.Independent(distributions.Normal(mean, log_std.exp()), 1))
    kl = one.kl(batch, other)
    torch.testing.assert_close(kl, distributions.kl_divergence(*normals), rtol=1e-10, atol=1e-10)
    assert (one.kl(batch, one) == 0).all()
    kl.sum().backward()
    for policy in (one, other):
        assert all(parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_gaussian_kl_gradient_by_finite_differences():
    values = [torch.randn(3, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(gaussian_kl, values)


@pytest.mark.parametrize("std", ["state-independent", "state-dependent"])
def test_gaussian_entropy_equals_torch_distributions(std):
    policy = make_policy(Gaussian(std=std))
    batch = batch_of(policy)
    torch.testing.assert_close(policy.entropy(batch), reference(policy, batch).entropy(), rtol=1e-10, atol=1e-10)


def cells():
    """Midpoints and widths of cells that cover (-1, 1), fine near the ends; no Jacobian is used."""
    edges = torch.linspace(-16.0, 16.0, 8001).tanh()
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


@pytest.mark.parametrize("log_std", [-1.0, 0.0, 0.7])
def test_squashed_density_integrates_to_one_and_its_entropy_is_unbiased(log_std):
    spec = Spec(SPEC.obs, spaces.Box(-3.0, 3.0, (1,)))
    policy = make_policy(SquashedGaussian(log_std_low=log_std, log_std_high=log_std), spec)
    obs = torch.randn(1, 3)
    nodes, widths = cells()
    batch = TensorDict({"obs": obs.expand(len(nodes), 3), "action": nodes[:, None]}, batch_size=len(nodes))
    log_prob = policy.log_prob(batch)
    assert (log_prob.exp() * widths).sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = -(log_prob.exp() * log_prob * widths).sum()
    estimates = policy.entropy(TensorDict({"obs": obs.expand(40_000, 3)}, batch_size=40_000))
    assert (estimates.mean() - exact).abs() < 4 * estimates.std() / math.sqrt(len(estimates))


def test_tanh_slope_is_stable_where_the_plain_formula_is_not():
    value = torch.tensor([0.0, 0.3, -2.0, 4.0])
    torch.testing.assert_close(tanh_log_slope(value), (1 - value.tanh().square()).log(), rtol=1e-10, atol=1e-10)
    far = torch.tensor([-60.0, 60.0], requires_grad=True)
    slope = tanh_log_slope(far)
    torch.testing.assert_close(slope, torch.full((2,), 2 * math.log(2) - 120.0))
    slope.sum().backward()
    torch.testing.assert_close(far.grad, torch.tensor([2.0, -2.0]))


@pytest.mark.parametrize("config", CONFIGS)
def test_log_prob_is_differentiable_in_the_action(config):
    policy = make_policy(config)
    batch = batch_of(policy, (4,))

    def score(action):
        return policy.log_prob(TensorDict({"obs": batch["obs"], "action": action}, batch_size=4))

    assert torch.autograd.gradcheck(score, batch["action"].clone().requires_grad_())


@pytest.mark.parametrize("config", CONFIGS)
def test_recorded_decisions_are_scored_as_recorded(config):
    policy = make_policy(config)
    obs = torch.randn(50, 3)
    for greedy in (False, True):
        record, carry = policy.act(obs, greedy=greedy)
        assert carry == {}
        assert not any(value.requires_grad or value.is_inference() for value in record.values())
        batch = TensorDict({"obs": obs, **record}, batch_size=50)
        torch.testing.assert_close(policy.log_prob(batch), record["log_prob"], rtol=1e-12, atol=1e-12)
    mean = policy.moments(batch)[0]
    torch.testing.assert_close(record["action"], mean.tanh() if policy.unit else mean)


def test_pre_action_is_exact_where_atanh_has_lost_the_digits():
    torch.set_default_dtype(torch.float32)
    policy = make_policy(SquashedGaussian())
    obs = torch.randn(4, 3)
    mean, log_std = policy.moments(TensorDict({"obs": obs}, batch_size=4))
    pre = torch.tensor([[12.0, -9.0]]).expand(4, 2)
    batch = TensorDict({"obs": obs, "action": pre.tanh(), "pre_action": pre}, batch_size=4)
    exact = (distributions.Normal(mean, log_std.exp()).log_prob(pre) - tanh_log_slope(pre)).sum(-1)
    torch.testing.assert_close(policy.log_prob(batch), exact)
    without = policy.log_prob(batch.exclude("pre_action"))
    assert without.isfinite().all()
    assert not torch.allclose(without, exact)


def test_a_stale_pre_action_is_not_believed():
    action = torch.tensor([[0.3, -0.6]], requires_grad=True)
    pre = torch.tensor([[0.3, -0.6]]).atanh()
    right = unsquash(action, pre)
    assert torch.equal(right.detach(), pre)
    wrong = unsquash(action, pre + 1.0)
    torch.testing.assert_close(wrong, action.atanh())
    for value in (right, wrong):
        (gradient,) = torch.autograd.grad(value.sum(), action)
        torch.testing.assert_close(gradient, 1 / (1 - action.detach().square()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_at_the_border_have_finite_scores_and_gradients(dtype):
    torch.set_default_dtype(dtype)
    policy = make_policy(SquashedGaussian())
    action = torch.tensor([[1.0, -1.0], [0.999999999, 0.0], [1.5, 0.0]], requires_grad=True)
    score = policy.log_prob(TensorDict({"obs": torch.randn(3, 3), "action": action}, batch_size=3))
    assert score.isfinite().all()
    score.sum().backward()
    assert action.grad.isfinite().all()
    assert action.grad[0].tolist() == [0.0, 0.0]
    assert safe_atanh(action).isfinite().all()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n", [None, 4])
def test_rsample_density_matches_log_prob_and_gradients_flow(config, n):
    policy = make_policy(config)
    obs = torch.randn(5, 3)
    action, log_prob = policy.rsample(obs, n)
    lead = (5,) if n is None else (n, 5)
    assert action.shape == (*lead, 2)
    assert log_prob.shape == lead
    batch = TensorDict({"obs": obs.expand(*lead, 3), "action": action.detach()}, batch_size=lead)
    torch.testing.assert_close(log_prob, policy.log_prob(batch), rtol=1e-8, atol=1e-8)
    (action.sum() + log_prob.sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_decisions_are_the_samples_of_rsample(config):
    policy = make_policy(config)
    obs = torch.randn(5, 3)
    torch.manual_seed(1)
    action, log_prob = policy.rsample(obs)
    torch.manual_seed(1)
    own = policy.decide(TensorDict({"obs": obs, "reward": torch.zeros(5)}, batch_size=5))
    assert "reward" not in own.keys()
    torch.testing.assert_close((own["obs"], own["action"], own["log_prob"]), (obs, action, log_prob), rtol=0, atol=0)


def test_decisions_of_a_saturated_policy_are_scored_exactly_with_their_gradient():
    """In float32 tanh(u) is 1 from u = 9 on. Scored by N(1, 1) before the tanh, u = m + s x with m = -10 and 10 and
    s = 2 has log N(u; 1, 1) - log(1 - tanh(u)^2), whose gradient in m is -(u - 1) + 2 tanh(u)."""
    torch.set_default_dtype(torch.float32)
    policy, other = (SquashedGaussian().build(SPEC, Network(sizes=())) for _ in range(2))
    with torch.no_grad():
        for each, bias in ((policy, [-10.0, 10.0, math.log(2), math.log(2)]), (other, [1.0, 1.0, 0.0, 0.0])):
            for parameter in each.parameters():
                parameter.zero_()
            next(p for p in each.parameters() if p.shape == (4,)).copy_(torch.tensor(bias))
    own = policy.decide(TensorDict({"obs": torch.zeros(6, 3)}, batch_size=6))
    u = own["pre_action"].detach().double().numpy()
    assert (abs(u) > 9).any()
    score = other.log_prob(own)
    log_slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))
    want = (-0.5 * (u - 1) ** 2 - 0.5 * np.log(2 * np.pi) - log_slope).sum(-1)
    np.testing.assert_allclose(score.detach().numpy(), want, rtol=1e-5)
    bias = next(p for p in policy.parameters() if p.shape == (4,))
    (gradient,) = torch.autograd.grad(score.sum(), bias, retain_graph=True)
    np.testing.assert_allclose(gradient[:2].numpy(), (1 - u + 2 * np.tanh(u)).sum(0), rtol=1e-5)
    torch.testing.assert_close(policy.log_prob(own), own["log_prob"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_rsample_is_the_path_and_not_the_score(config):
    """With the noise fixed, the gradient of a sample is that of the deterministic map noise -> action."""
    policy = make_policy(config)
    obs = torch.randn(1, 3)
    parameter = list(policy.parameters())[-1]

    def sample():
        torch.manual_seed(3)
        action, log_prob = policy.rsample(obs)
        return action.sum() + 0.7 * log_prob.sum()

    (gradient,) = torch.autograd.grad(sample(), parameter)
    step = 1e-6
    with torch.no_grad():
        flat = parameter.view(-1)
        for i in range(len(flat)):
            flat[i] += step
            up = sample()
            flat[i] -= 2 * step
            down = sample()
            flat[i] += step
            assert gradient.view(-1)[i].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-7)


def test_samples_have_the_moments_of_the_policy():
    policy = make_policy(Gaussian(log_std_init=-0.7))
    obs = torch.randn(1, 3)
    mean, log_std = policy.moments(TensorDict({"obs": obs}, batch_size=1))
    action = policy.act(obs.expand(40_000, 3))[0]["action"]
    torch.testing.assert_close(action.mean(0), mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(action.std(0), log_std[0].exp(), atol=0.02, rtol=0)


def test_log_std_is_clamped_and_initialized():
    policy = Gaussian(log_std_init=-1.5).build(SPEC, NETWORK)
    assert policy.log_std.tolist() == [-1.5, -1.5]
    batch = batch_of(policy)
    policy = Gaussian(log_std_init=9.0, log_std_high=0.5).build(SPEC, NETWORK)
    assert (policy.moments(batch)[1] == 0.5).all()
    policy = SquashedGaussian(log_std_low=-3.0, log_std_high=-2.0).build(SPEC, NETWORK)
    assert ((policy.moments(batch)[1] >= -3.0) & (policy.moments(batch)[1] <= -2.0)).all()


@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_squashed_actions_are_rescaled_into_the_bounds(values):
    for config in (SquashedGaussian(), Deterministic()):
        policy = config.build(SPEC, NETWORK)
        out = policy.env_action(torch.tensor([values]))[0].tolist()
        assert out == pytest.approx([2 * values[0], 2.5 * (values[1] + 1)], abs=1e-12)
        assert -2 <= out[0] <= 2
        assert 0 <= out[1] <= 5


def test_gaussian_actions_are_clamped_at_the_environment_only():
    policy = make_policy(Gaussian())
    assert policy.env_action(torch.tensor([[-7.0, 9.0], [1.0, 1.0]])).tolist() == [[-2.0, 5.0], [1.0, 1.0]]
    free = make_policy(Gaussian(), FREE)
    assert free.env_action(torch.tensor([[-7.0, 9e9]])).tolist() == [[-7.0, 9e9]]


def test_actions_get_the_shape_of_the_space():
    spec = Spec(SPEC.obs, spaces.Box(-1.0, 1.0, (2, 3)))
    for config in (Gaussian(), SquashedGaussian(), Deterministic()):
        policy = config.build(spec, NETWORK)
        action = policy.act(torch.randn(4, 3))[0]["action"]
        assert action.shape == (4, 6)
        assert policy.env_action(action).shape == (4, 2, 3)
        assert spec.action.contains(policy.predict(np.zeros(3, np.float32)))


@pytest.mark.parametrize("config", CONFIGS)
def test_imitation_is_maximum_likelihood(config):
    policy = make_policy(config)
    batch = batch_of(policy)
    torch.testing.assert_close(policy.imitation_loss(batch), -policy.log_prob(batch))


def test_families_are_told_apart():
    with pytest.raises(UsageError, match="between a Gaussian policy and a squashed Gaussian policy"):
        make_policy(Gaussian()).kl(batch_of(None), make_policy(SquashedGaussian()))


def test_normalizer_is_used_and_updated_at_the_end():
    normalizer = Normalizer(SPEC.obs)
    policy = Gaussian().build(SPEC, NETWORK, normalizer)
    obs = 5.0 + 3.0 * torch.randn(30, 3)
    batch = TensorDict({"obs": obs, **policy.act(obs)[0]}, batch_size=30)
    torch.testing.assert_close(policy.log_prob(batch), batch["log_prob"])
    policy.update_normalizer(batch)
    assert normalizer.count == 30
    assert not torch.allclose(policy.log_prob(batch), batch["log_prob"])


@pytest.mark.parametrize("config", [Gaussian(), SquashedGaussian()])
def test_no_graph_breaks(config):
    policy = make_policy(config)
    obs = torch.randn(6, 3)
    batch = TensorDict({"obs": obs, **policy.act(obs)[0]}, batch_size=6)
    compiled = torch.compile(lambda b: (policy.log_prob(b), policy.kl(b, policy)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), (policy.log_prob(batch), policy.kl(batch, policy)))
    sample = torch.compile(policy.rsample, fullgraph=True, backend="aot_eager")
    action, log_prob = sample(obs)
    scored = policy.log_prob(TensorDict({"obs": obs, "action": action}, batch_size=6))
    torch.testing.assert_close(log_prob, scored, rtol=1e-8, atol=1e-8)


def test_a_tanh_mean_acts_in_units_and_is_rescaled():
    policy = make_policy(Gaussian(mean="tanh", log_std_low=-5.0))
    batch = batch_of(policy)
    mean, log_std = policy.moments(batch)
    torch.testing.assert_close(mean, policy.net(batch["obs"]).tanh())
    normal = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(policy.log_prob(batch), normal.log_prob(batch["action"]))
    torch.testing.assert_close(policy.entropy(batch), normal.entropy())
    action, log_prob = policy.rsample(batch["obs"])
    torch.testing.assert_close(log_prob, normal.log_prob(action))
    assert policy.env_action(torch.tensor([[-1.0, 0.0], [1.5, 1.0]])).tolist() == [[-2.0, 2.5], [2.0, 5.0]]
    assert policy.own_action(torch.tensor([[-2.0, 2.5]])).tolist() == [[-1.0, 0.0]]
    assert policy.unit
    assert not make_policy(Gaussian()).unit
    with pytest.raises(
        UsageError, match="a Gaussian policy with a tanh mean needs a Box action space with finite bounds"
    ):
        Gaussian(mean="tanh").build(FREE, NETWORK)
    with pytest.raises(UsageError, match="has no closed form"):
        policy.kl(batch, make_policy(Gaussian()))


def test_the_density_of_a_sample_is_exact_where_tanh_rounds_to_one():
    """In single precision, beside the density of its place before the tanh in double precision."""
    mean = torch.linspace(-40.0, 40.0, 81, dtype=torch.float32).unsqueeze(-1).requires_grad_()
    log_std, draw = torch.full_like(mean, -1.0), torch.full_like(mean, 0.7)
    value, log_prob = squashed_sample(mean, log_std, draw)
    exact = squashed_log_prob(value.double(), mean.double(), log_std.double())
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(slope, 2.0 * value.tanh(), rtol=1e-5, atol=1e-5)

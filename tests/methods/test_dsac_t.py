"""DSAC-T and DSACv1: each mechanism against numbers, and against formulas in NumPy that use nothing of polopt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional

from polopt.methods.control.dsac_t import (
    DSACT,
    DSACv1,
    FixedBound,
    HuberVarianceBased,
    Likelihood,
    VarianceBased,
    distribution_loss,
)
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.regularizers import Fixed, Learned
from polopt.tasks import make_task

SMALL = {"network": Network(sizes=(16,)), "warmup": 64, "batch_size": 32, "replay_size": 1_000, "steps_per_update": 1}
EPSILON = 0.1
MUST = 5


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here in double precision."""


def make(cls, **settings):
    torch.manual_seed(0)
    task = make_task("Pendulum-v1", num=1, seed=0)
    return cls(cls.Config(**(SMALL | settings)), task)


def sample(rows=6, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return TensorDict(
        {
            "obs": normal(rows, 3),
            "action": normal(rows, 1).tanh(),
            "reward": 3 * normal(rows),
            "next_obs": normal(rows, 3),
            "terminated": torch.arange(rows) % 3 == 0,
            "discount": torch.full((rows,), 0.9),
        },
        batch_size=[rows],
    )


class Table(torch.nn.Module):
    """A critic whose outputs are parameters: gradients of a loss with respect to them can be written down."""

    def __init__(self, mean, raw):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.as_tensor(mean))
        self.raw = torch.nn.Parameter(torch.as_tensor(raw))

    def forward(self, obs, action):
        return self.mean, functional.softplus(self.raw)


class Draws:
    """A target policy with one known next action and log-density per row."""

    def __init__(self, log_prob):
        self.log_prob = torch.as_tensor(log_prob)

    def rsample(self, obs):
        return torch.zeros(len(obs), 1), self.log_prob


def softplus(x):
    return np.log1p(np.exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def table(members=2, rows=6, seed=3, spread=5.0):
    rng = np.random.default_rng(seed)
    return spread * rng.normal(size=(members, rows)), rng.normal(size=(members, rows)) + 1


def critic_gradients(method, mean, raw, batch):
    """Gradients of the critic loss with respect to (mean, raw) of a tabular critic, as arrays."""
    method.critic = Table(mean, raw)
    method.critic_loss(batch)[0].backward()
    return method.critic.mean.grad.numpy(), method.critic.raw.grad.numpy()


def with_targets(mean_target, std_target):
    batch = sample(len(mean_target))
    batch["weight"] = torch.full((len(mean_target),), 1 / len(mean_target))
    batch["mean_target"], batch["std_target"] = torch.as_tensor(mean_target), torch.as_tensor(std_target)
    return batch


TARGETS = np.array([1.0, -4.0, 20.0, 0.3, -30.0, 2.0]), np.array([2.0, -9.0, 60.0, 0.1, -2.0, 1.0])


# The critic's gradient


def test_gradient_of_v1_is_the_formula():
    mean, raw = table(members=1, spread=8.0)
    method = make(DSACv1, adjustment=FixedBound(10.0))
    got_mean, got_raw = critic_gradients(method, mean, raw, with_targets(TARGETS[1], TARGETS[1]))

    std = softplus(raw)
    bounded = mean + np.clip(TARGETS[1] - mean, -10, 10)
    assert (np.abs(TARGETS[1] - mean) > 10).any()  # the bound is at work
    want_mean = -(TARGETS[1] - mean) / (std**2 + EPSILON) / 6
    want_std = -((mean - bounded) ** 2 - std**2) / (std**3 + EPSILON) / 6
    np.testing.assert_allclose(got_mean, want_mean, rtol=1e-12)  # not clipped in the mean
    np.testing.assert_allclose(got_raw, want_std * sigmoid(raw), rtol=1e-12)


def test_unbounded_v1_has_the_gradient_of_the_gaussian_likelihood():
    mean, raw = table(members=1)
    got = critic_gradients(make(DSACv1, adjustment=Likelihood()), mean, raw, with_targets(TARGETS[1], TARGETS[1]))
    leaves = torch.tensor(mean, requires_grad=True), torch.tensor(raw, requires_grad=True)
    normal = torch.distributions.Normal(leaves[0], functional.softplus(leaves[1]))
    (-normal.log_prob(torch.as_tensor(TARGETS[1])).mean()).backward()
    for mine, leaf in zip(got, leaves):
        np.testing.assert_allclose(mine, leaf.grad.numpy(), rtol=1e-10)


def refined_gradient(mean, raw, running):
    """DSAC-T's critic gradient, written from the equations; mean on TARGETS[0], std on TARGETS[1]."""
    std, m = softplus(raw), running[:, None]
    power = m**2 + EPSILON
    bounded_error = np.clip(TARGETS[1] - mean, -3 * m, 3 * m)
    want_mean = power / (std**2 + EPSILON) * (mean - TARGETS[0])
    want_std = power / (std**3 + EPSILON) * (std**2 - bounded_error**2)
    return want_mean / 6, want_std * sigmoid(raw) / 6


def later_gradient(mean, raw, running, huber):
    """The same in the code of July 2025: a limited omega, and Huber's function and its half squares."""
    std = softplus(raw)
    omega = np.clip(running[:, None] ** 2 / (std**2 + EPSILON), 0.1, 10)
    bound = 3 * running[:, None]
    size = np.abs(np.clip(TARGETS[1] - mean, -bound, bound))
    variance = np.where(size <= huber, size**2 / 2, huber * (size - huber / 2))
    want_std = omega * (std**2 - variance) / (std + EPSILON)
    return omega * np.clip(mean - TARGETS[0], -huber, huber) / 6, want_std * sigmoid(raw) / 6


@pytest.mark.parametrize("later", [False, True])
def test_must_1_mean_takes_the_expected_and_std_the_clipped_sampled_target(later):
    mean, raw = table()
    method = make(DSACT, adjustment=HuberVarianceBased(huber=5.0) if later else VarianceBased())
    running = np.array([1.5, 4.0])
    method.mean_std.update(torch.as_tensor(running))
    got = critic_gradients(method, mean, raw, with_targets(*TARGETS))
    want = later_gradient(mean, raw, running, 5.0) if later else refined_gradient(mean, raw, running)
    for mine, formula in zip(got, want):
        np.testing.assert_allclose(mine, formula, rtol=1e-12)
    swapped = critic_gradients(method, mean, raw, with_targets(*reversed(TARGETS)))
    assert not np.allclose(swapped[0], got[0])


def test_must_1_targets_of_a_batch_by_hand():
    """r + g (1 - terminated) (Q' - alpha log pi) and the same with Z' = Q' + std * noise."""
    batch = sample(2)[:1].clone()
    batch["reward"], batch["terminated"] = torch.tensor([2.0]), torch.tensor([False])
    for cls, columns in ((DSACT, (2 + 0.9 * (5 + 0.5), None)), (DSACv1, (None, None))):
        method = make(cls, entropy=Fixed(value=0.25), critics=1)
        method.target_critic = Table([[5.0]], [[math.log(math.e**2 - 1)]])  # std 2
        method.target_policy = Draws([-2.0])  # - alpha log pi = + 0.5
        torch.manual_seed(4)
        noise = torch.randn(1)
        torch.manual_seed(4)
        mean_target, std_target = method.target(batch)
        sampled = 2 + 0.9 * (5 + 2 * noise.item() + 0.5)
        assert std_target.item() == pytest.approx(sampled)
        assert mean_target.item() == pytest.approx(sampled if columns[0] is None else columns[0])


def test_without_expected_value_substitution_the_mean_takes_the_sample():
    method, batch = make(DSACT, expected_value=False), sample()
    mean_target, std_target = method.target(batch)
    assert torch.equal(mean_target, std_target)


def test_termination_ends_the_target_and_reward_scale_multiplies_rewards():
    method = make(DSACT, reward_scale=7.0)
    batch = sample()
    batch["terminated"] = torch.ones(6, dtype=torch.bool)
    expected, sampled = method.backups(batch)
    torch.testing.assert_close(expected, 7 * batch["reward"])
    torch.testing.assert_close(sampled, 7 * batch["reward"])


# Twin distributions


def test_must_2_sample_belongs_to_the_argmin_critic():
    """Row 0: critic 1 has the smaller mean (1 < 2), and std 10; row 1: critic 0 (-3 < 0), and std 1. With noise z > 0
    the minimum of samples would be another: min(2 + z / 2, 1 + 10 z) in row 0."""
    method = make(DSACT, entropy=Fixed(value=0.0))
    inverse = np.log(np.expm1([[0.5, 1.0], [10.0, 20.0]]))
    method.target_critic = Table([[2.0, -3.0], [1.0, 0.0]], inverse)
    method.target_policy = Draws([0.0, 0.0])
    batch = sample(2)
    batch["reward"], batch["terminated"] = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    torch.manual_seed(2)
    noise = torch.randn(2).numpy()
    assert (noise > 0).any()
    torch.manual_seed(2)
    expected, sampled = method.backups(batch)
    np.testing.assert_allclose(expected.numpy(), [0.9, -2.7])
    np.testing.assert_allclose(sampled.numpy(), 0.9 * (np.array([1.0, -3.0]) + np.array([10.0, 1.0]) * noise))


def test_noise_is_clipped_at_three(monkeypatch):
    method = make(DSACT, entropy=Fixed(value=0.0), critics=1)
    method.target_critic = Table([[0.0, 0.0]], np.log(np.expm1([[1.0, 1.0]])))
    method.target_policy = Draws([0.0, 0.0])
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.tensor([8.0, -5.0]))
    batch = sample(2)
    batch["reward"], batch["terminated"] = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    np.testing.assert_allclose(method.backups(batch)[1].numpy(), [2.7, -2.7])


def test_policy_follows_the_minimum_of_the_means_whatever_the_std():
    method = make(DSACT, entropy=Fixed(value=0.0))
    batch = sample(2)
    batch["weight"] = torch.tensor([0.5, 0.5])
    for raw in ([[0.0, 5.0], [1.0, -2.0]], [[3.0, 3.0], [3.0, 3.0]]):
        method.critic = Table([[2.0, -3.0], [1.0, 4.0]], raw)
        assert method.policy_loss(batch)[0].item() == pytest.approx(-(1.0 - 3.0) / 2)


def test_one_critic_in_v1_and_two_in_dsac_t():
    assert DSACv1.Config().critics == 1
    assert DSACT.Config().critics == 2


# The running mean of std


def test_must_3_running_mean_of_std():
    """The first batch's mean at first, then (1 - rate) m + rate mean(std), per critic."""
    method = make(DSACT, adjustment=VarianceBased(tau=0.25))
    raw = np.array([[0.0, 1.0, 2.0], [-1.0, 3.0, 0.5]])
    first, second = softplus(raw).mean(1), softplus(raw + 1).mean(1)
    batch = sample(3)
    method.critic = Table(np.zeros((2, 3)), raw)
    method.evaluate_batch(batch)
    np.testing.assert_allclose(method.mean_std.value.numpy(), first, rtol=1e-12)
    method.critic = Table(np.zeros((2, 3)), raw + 1)
    method.evaluate_batch(batch)
    np.testing.assert_allclose(method.mean_std.value.numpy(), 0.75 * first + 0.25 * second, rtol=1e-12)


def test_must_3_scales_and_bound_come_from_the_running_mean():
    """m = 2, std = 0.1, 1, 20: (4 + .1) over .01 + .1, 1 + .1, 400 + .1, and over .001 + .1, 1 + .1, 8000 + .1."""
    method = make(DSACT, critics=1)
    method.mean_std.update(torch.tensor([2.0]))
    scale, std_scale, bound = method.scales(torch.tensor([[0.1, 1.0, 20.0]]))
    np.testing.assert_allclose(scale.numpy(), [[4.1 / 0.11, 4.1 / 1.1, 4.1 / 400.1]])  # no limit: 37 and 0.01
    np.testing.assert_allclose(std_scale.numpy(), [[4.1 / 0.101, 4.1 / 1.1, 4.1 / 8000.1]])
    assert bound.item() == 6.0


def test_the_two_weights_are_nearly_equal_where_the_std_is_small():
    """At std = m = .01 the paper's are (.0001 + .1) / (.0001 + .1) = 1 and (.0001 + .1) / (.000001 + .1) = 1.001; in
    the later code the second is the first over .01 + .1, 9.1 times as much."""
    ratios = []
    for adjustment in (VarianceBased(), HuberVarianceBased()):
        method = make(DSACT, critics=1, adjustment=adjustment)
        method.mean_std.update(torch.tensor([0.01]))
        scale, std_scale, _ = method.scales(torch.tensor([[0.01]]))
        ratios.append((std_scale / scale).item())
    assert ratios == pytest.approx([0.1001 / 0.100001, 1 / 0.11])


def test_scales_of_the_code_since_july_2025():
    """m = 2, std = 0.1, 1, 20: omega = 4 / .11 -> 10, 4 / 1.1, 4 / 400.1 -> 0.1; bound 6."""
    method = make(DSACT, critics=1, adjustment=HuberVarianceBased())
    method.mean_std.update(torch.tensor([2.0]))
    omega, std_scale, bound = method.scales(torch.tensor([[0.1, 1.0, 20.0]]))
    np.testing.assert_allclose(omega.numpy(), [[10.0, 4 / 1.1, 0.1]])
    np.testing.assert_allclose(std_scale.numpy(), [[10 / 0.2, 4 / 1.1 / 1.1, 0.1 / 20.1]])
    assert bound.item() == 6.0


def test_must_3_no_gradient_through_scales_targets_or_clip():
    shape = (2, 3)
    leaves = [torch.rand(shape).add(0.5).requires_grad_() for _ in range(5)]
    target = torch.rand(3).requires_grad_()
    mean, std, bounded, scale, std_scale = leaves
    distribution_loss(mean, std, target, bounded, scale, std_scale, None).sum().backward()
    assert [leaf.grad is None for leaf in (target, bounded, scale, std_scale)] == [True] * 4
    # the std's gradient is the constant factor alone, and it sends nothing into the mean
    torch.testing.assert_close(std.grad, (std_scale * (std**2 - (mean - bounded) ** 2)).detach())
    torch.testing.assert_close(mean.grad, (scale * (mean - target)).detach())


def test_removed_adjustment_brings_back_the_gradient_of_v1():
    std = torch.tensor([[0.5, 2.0]])
    scale, std_scale, bound = make(DSACT, adjustment=FixedBound(7.0)).scales(std)
    np.testing.assert_allclose(scale.numpy(), [[1 / 0.35, 1 / 4.1]])
    np.testing.assert_allclose(std_scale.numpy(), [[1 / 0.225, 1 / 8.1]])
    assert bound == 7.0


@pytest.mark.parametrize("adjustment", [VarianceBased(), HuberVarianceBased()])
def test_scale_of_reward_does_not_change_the_gradient_relative_to_its_scale(adjustment):
    """With std far above sqrt(epsilon), rewards times 100 give the mean's scale as before and a hundredth of the
    std's, so that errors times 100 are gradients times 100 in both."""
    std, running = np.array([[40.0, 15.0]]), np.array([25.0])
    found = []
    for k in (1.0, 100.0):
        method = make(DSACT, critics=1, adjustment=adjustment)
        method.mean_std.update(torch.as_tensor(k * running))
        scale, std_scale, _ = method.scales(torch.as_tensor(k * std))
        found.append((scale.numpy(), k * std_scale.numpy()))
    for small, large in zip(*found):
        np.testing.assert_allclose(small, large, rtol=0.01)


# Delays and targets


def test_must_4_policy_temperature_and_all_targets_move_every_second_update():
    method = make(DSACT)
    names = ("policy", "temperature", "target_policy", "target_critic", "critic")
    moved = []
    for _ in range(4):
        batch = method.collect()
        before = {name: [p.detach().clone() for p in getattr(method, name).parameters()] for name in names}
        metrics = method.update(batch)
        moved.append(
            {n: any(not torch.equal(a, b) for a, b in zip(before[n], getattr(method, n).parameters())) for n in names}
        )
        assert ("policy_loss" in metrics) == moved[-1]["policy"]
    for index, flags in enumerate(moved):
        assert flags.pop("critic")
        assert set(flags.values()) == {index % 2 == 0}


def test_must_4_next_action_comes_from_the_target_policy():
    method, batch = make(DSACT), sample()
    torch.manual_seed(5)
    before = method.backups(batch)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(1.0)
    torch.manual_seed(5)
    assert torch.equal(method.backups(batch), before)  # the policy itself plays no part
    with torch.no_grad():
        for parameter in method.target_policy.parameters():
            parameter.add_(1.0)
    torch.manual_seed(5)
    assert not torch.equal(method.backups(batch), before)


def test_must_4_targets_average_with_tau():
    method = make(DSACv1, tau=0.25, delay=1)
    batch = method.collect()
    old = [p.detach().clone() for p in method.target_policy.parameters()]
    method.update(batch)
    for target, was, now in zip(method.target_policy.parameters(), old, method.policy.parameters()):
        torch.testing.assert_close(target, 0.75 * was + 0.25 * now)


def test_temperature_has_its_own_learning_rate_and_starts_at_e():
    method = make(DSACT)
    optimizers = method.critic_optimizer, method.policy_optimizer, method.temperature_optimizer
    assert [optimizer.lr for optimizer in optimizers] == [1e-4, 1e-4, 3e-4]
    follows = make(DSACT, entropy=Learned(lr=None), lr=0.02)
    assert follows.temperature_optimizer.lr == 0.02
    assert method.temperature.value.item() == pytest.approx(math.e)
    assert method.policy.log_std_high == 0.5


def test_one_update_in_twenty_steps_by_default():
    assert DSACT.Config().steps_per_update == 20
    method = make(DSACT, steps_per_update=20)
    method.collect()
    counts = []
    for _ in range(3):
        method.collect()
        counts.append(method.ledger.env_steps)
    assert np.diff(counts).tolist() == [20, 20]


# The std


def test_must_5_std_is_a_softplus_and_its_gradient_stays_bounded():
    """At std -> 0 the factors are 1 / 0.1 in v1, (1 + 0.1) / 0.1 at m = 1 in DSAC-T (later: omega's limit 10, over
    0.1), not 1 / std^3."""
    method = make(DSACT)
    _, std = method.critic(sample()["obs"], sample()["action"])
    raw = method.critic.network(sample()["obs"], sample()["action"])[..., 1]
    np.testing.assert_allclose(std.detach().numpy(), softplus(raw.detach().numpy()), rtol=1e-12)
    tiny = torch.full((1, 1), 1e-9)
    assert [value.item() for value in make(DSACv1).scales(tiny)[:2]] == pytest.approx([10.0, 10.0])
    for adjustment, limits in ((VarianceBased(), [11.0, 11.0]), (HuberVarianceBased(), [10.0, 100.0])):
        method = make(DSACT, critics=1, adjustment=adjustment)
        method.mean_std.update(torch.tensor([1.0]))
        assert [value.item() for value in method.scales(tiny)[:2]] == pytest.approx(limits)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(("huber", "share"), [(None, 1.0), (50.0, None)])
def test_std_settles_at_the_std_of_the_error(scale, huber, share):
    """Errors of constant std and mean 0: std is at rest where std^2 = E[clipped error^2], with the clip at 3 running
    means, which is 3 std there: a share of 1 at any scale. Huber's half square gives .7, less where errors pass 50."""
    errors = scale * torch.from_numpy(np.random.default_rng(0).normal(size=200_000))
    errors -= errors.mean()
    low, high = 0.0, 3 * scale
    for _ in range(60):  # bisection on the gradient, with the running mean at its own fixed point
        middle = (low + high) / 2
        std = torch.full((1, errors.numel()), middle, requires_grad=True)
        mean = torch.zeros_like(std)
        bounded = errors.clamp(-3 * middle, 3 * middle).unsqueeze(0)
        distribution_loss(
            mean, std, errors, bounded, torch.ones_like(std), torch.ones_like(std), huber
        ).sum().backward()
        low, high = (middle, high) if std.grad.sum() < 0 else (low, middle)
    settled = middle / errors.std().item()
    if share is not None:
        assert settled == pytest.approx(share, abs=0.01)
    else:
        assert settled == pytest.approx(0.69 if scale == 1 else 0.51, abs=0.03)


def test_the_critic_learns_mean_and_std_of_a_noisy_return():
    """End to end: every target is 5 + 2 noise (terminal rewards), so the critic must say mean 5 and std 2."""
    method = make(DSACT, lr=1e-2, adjustment=VarianceBased(tau=0.05))
    generator = torch.Generator().manual_seed(0)
    batch = sample(128)
    batch["terminated"] = torch.ones(128, dtype=torch.bool)
    for key in ("obs", "action", "next_obs"):
        batch[key] = torch.zeros_like(batch[key])
    means, stds = [], []
    for step in range(700):
        batch["reward"] = 5 + 2 * torch.randn(128, generator=generator)
        prepared = method.evaluate_batch(batch)
        metrics = method.critic_optimizer.minimize(method.critic_loss, prepared)
        if step >= 500:
            means.append(metrics["q"].item())
            stds.append(metrics["std"].item())
    assert np.mean(means) == pytest.approx(5.0, abs=0.1)
    assert np.mean(stds) == pytest.approx(2.0, abs=0.1)


def test_both_are_sac_elsewhere():
    assert issubclass(DSACv1, SAC)
    assert issubclass(DSACT, DSACv1)
    assert DSACT.policy_loss is SAC.policy_loss
    assert DSACT.improve is SAC.improve

"""MDPO against numpy: the proximal problem on-policy and off-policy, its step size, and when pi_k is refreshed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.optim import polyak_update
from polopt.regularizers import KLPenalty
from polopt.training.api import plan

MUST = 5
STATES, ACTIONS = 3, 4


class Table(gymnasium.Env):
    """Three states and four actions; only its spaces are used."""

    observation_space = spaces.Discrete(STATES)
    action_space = spaces.Discrete(ACTIONS)


def tabular(**settings):
    """MDPO on a table whose policy is old, with the batch of all decisions in exact proportions."""
    rng = np.random.default_rng(0)
    settings = {"policy": "tabular-softmax", "max_grad_norm": None, "lr": 0.05, "entropy_coefficient": 0.0} | settings
    method = plan("mdpo", Table, **settings).build()
    logits, advantage = rng.normal(size=(2, STATES, ACTIONS)) * np.array([1.0, 0.4]).reshape(2, 1, 1)
    old = softmax(logits)
    advantage -= (old * advantage).sum(1, keepdims=True)
    visits = np.array([0.5, 0.3, 0.2])
    state, action = np.indices((STATES, ACTIONS)).reshape(2, -1)
    columns = {"obs": state, "action": action, "advantage": advantage.ravel(), "log_prob": np.log(old).ravel()}
    columns["weight"] = (visits[:, None] * old).ravel()
    batch = TensorDict({key: torch.from_numpy(item.copy()) for key, item in columns.items()}, [state.size])
    set_table(method.policy, logits)
    polyak_update(method.old_policy, method.policy, 1.0)
    return method, batch, logits, advantage, visits


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def set_table(policy, logits):
    with torch.no_grad():
        policy.table.copy_(torch.as_tensor(logits))


def gradient(loss, parameters):
    return [g.numpy() for g in torch.autograd.grad(loss, list(parameters))]


def numeric(function, at, step=1e-6):
    """Central differences of a scalar function of a numpy array."""
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        result[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return result


# On-policy


def test_exact_inner_steps_approach_the_mirror_descent_solution(float64):
    distances = []
    for steps in (1, 5, 20, 50):
        method, batch, logits, advantage, _ = tabular(proximity=0.5)
        solution = softmax(logits + 2.0 * advantage)  # pi_k exp(t A) / Z
        for _ in range(steps):
            method.optimizer.minimize(method.total_loss, batch)
        policy = method.policy.table.detach().softmax(1).numpy()
        distances.append(0.5 * np.abs(policy - solution).sum(1).max())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    assert distances[-1] < 0.02


def test_must_1_several_steps_with_the_old_policy_frozen(float64):
    with_steps = {}
    for steps in (1, 4):
        method = plan("mdpo", "CartPole-v1", window=32, inner_steps=steps, minibatches=2, seed=3).build()
        start = [p.clone() for p in method.policy.parameters()]
        seen, original = [], method.total_loss

        def spy(batch, seen=seen, method=method, original=original):
            seen.append((len(batch), [p.clone() for p in method.old_policy.parameters()]))
            return original(batch)

        method.total_loss = spy
        method.update(method.collect())
        assert [size for size, _ in seen] == [32] * steps  # the full batch, m times
        assert all(torch.equal(p, q) for _, olds in seen for p, q in zip(start, olds))
        assert method.iterations == 1
        with_steps[steps] = method.policy
        assert not any(torch.equal(p, q) for p, q in zip(start, method.policy.parameters()))
    assert any(not torch.equal(p, q) for p, q in zip(*(policy.parameters() for policy in with_steps.values())))


def test_the_old_policy_is_the_one_that_collected(float64):
    method = plan("mdpo", "CartPole-v1", window=32, inner_steps=2, minibatches=2).build()
    for _ in range(2):
        collected = [p.clone() for p in method.policy.parameters()]
        method.update(method.collect())
    assert all(torch.equal(p, q) for p, q in zip(collected, method.old_policy.parameters()))


def test_must_2_kl_is_new_against_old(float64):
    method, batch, logits, advantage, visits = tabular(proximity=0.5)
    old, moved = softmax(logits), logits + np.random.default_rng(1).normal(size=logits.shape)

    def loss(table):
        new = softmax(table)
        gain = (visits[:, None] * new * advantage).sum()
        return -gain + 0.5 * (visits[:, None] * new * np.log(new / old)).sum()

    set_table(method.policy, moved)
    value, metrics = method.policy_loss(batch)
    found = gradient(value, method.policy.parameters())[0]
    np.testing.assert_allclose(found, numeric(loss, moved), atol=1e-8)
    new = softmax(moved)
    assert metrics["divergence"].item() == pytest.approx((visits[:, None] * new * np.log(new / old)).sum())
    assert metrics["divergence"].item() != pytest.approx((visits[:, None] * old * np.log(old / new)).sum(), rel=0.01)


def test_kl_of_gaussians_by_hand():
    method = plan("mdpo", "Pendulum-v1", window=8).build()
    batch = weigh(TensorDict({"obs": torch.zeros(1, 3)}, [1]))
    with torch.no_grad():
        for policy, mean, std in ((method.policy, 1.0, 2.0), (method.old_policy, 0.0, 1.0)):
            for parameter in policy.net.parameters():
                parameter.zero_()
            list(policy.net.parameters())[-1].fill_(mean)  # the bias of the head
            policy.log_std.fill_(np.log(std))
    # KL(N(1, 2) || N(0, 1)) = log(1/2) + (4 + 1) / 2 - 1/2; the other way round it would be log 2 + 2/8 - 1/2 = 0.443
    assert method.divergence(batch).item() == pytest.approx(2.0 - np.log(2.0), abs=1e-5)


def test_first_step_has_no_divergence_gradient_so_one_step_is_the_plain_policy_gradient(float64):
    method, batch, logits, advantage, visits = tabular(proximity=7.0)
    (divergence,) = gradient(method.divergence(batch), method.policy.parameters())
    np.testing.assert_allclose(divergence, 0.0, atol=1e-15)
    (found,) = gradient(method.policy_loss(batch)[0], method.policy.parameters())
    old = softmax(logits)  # softmax policy gradient: rho pi (A - E A)
    expected = -visits[:, None] * old * (advantage - (old * advantage).sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("iterations", [5, 8])
def test_must_3_step_size_is_annealed(iterations):
    method = tabular(proximity=2.0)[0]
    for k in range(iterations):
        method.progress, method.iterations = k / iterations, k
        assert method.step_size == pytest.approx(max(1 - k / iterations, 1 / iterations))
    method.progress, method.iterations = 0.999, iterations  # a window that reached over the end: never 0
    assert method.step_size == pytest.approx(0.999 / iterations)


def test_must_3_penalty_grows_as_the_inverse_of_the_step_size(float64):
    method, batch, logits, _, _ = tabular(proximity=2.0)
    set_table(method.policy, 1.3 * logits)
    plain = method.policy_loss(batch)[0].item()
    divergence = method.divergence(batch).item()
    method.progress, method.iterations = 0.75, 3  # k = 3 of K = 4: t = 1/4
    assert method.policy_loss(batch)[0].item() - plain == pytest.approx((2.0 / 0.25 - 2.0) * divergence)


def test_must_5_nothing_is_clipped(float64):
    method, batch, logits, advantage, visits = tabular(proximity=0.0)
    moved = logits + 3.0 * np.sign(advantage)  # every ratio far beyond 1 +- 0.2, in the direction that PPO would clip
    set_table(method.policy, moved)
    value, metrics = method.policy_loss(batch)
    (found,) = gradient(value, method.policy.parameters())
    new = softmax(moved)
    expected = -visits[:, None] * new * (advantage - (new * advantage).sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    assert np.abs(expected).max() > 0.001
    assert float(metrics["clip_fraction"]) == 0


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0])
def test_tsallis_divergence_against_numpy(q, float64):
    method, batch, logits, _, visits = tabular(tsallis_q=1.5)
    object.__setattr__(method.config, "tsallis_q", q)
    old, moved = softmax(logits), 0.5 * logits

    def log_q(x):
        return np.log(x) if q == 1 else (x ** (q - 1) - 1) / (q - 1)

    def divergence(table):  # sampled from old and weighted by the ratio: an expectation over new
        new = softmax(table)
        return (visits[:, None] * new * (log_q(new) - log_q(old))).sum()

    set_table(method.policy, moved)
    (found,) = gradient(method.divergence(batch), method.policy.parameters())
    np.testing.assert_allclose(found, numeric(divergence, moved), atol=1e-8)


def test_tsallis_at_one_has_the_gradient_of_kl(float64):
    gradients = []
    for q in (1.0, 1.0 + 1e-9):  # in closed form, and from the sampled form
        method, batch, logits, _, _ = tabular(tsallis_q=q)
        set_table(method.policy, 0.5 * logits)
        gradients += gradient(method.divergence(batch), method.policy.parameters())
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_penalty_of_ppo_is_the_other_order(float64):
    method, batch, logits, _, visits = tabular(proximity=0.0, kl_penalty=KLPenalty(1.0, None))
    set_table(method.policy, 0.5 * logits)
    old, new = softmax(logits), softmax(0.5 * logits)
    assert method.kl_from_old(batch).item() == pytest.approx((visits[:, None] * old * np.log(old / new)).sum())


def test_critic_steps_are_its_own_epochs_of_minibatches():
    method = plan("mdpo", "CartPole-v1", window=32, inner_steps=3, epochs=2, minibatches=4).build()
    sizes, original = [], method.value_loss

    def spy(batch):
        sizes.append(len(batch))
        return original(batch)

    method.value_loss = spy
    method.update(method.collect())
    assert sizes == [8] * 8
    policy = {id(p) for p in method.policy.parameters()}
    assert policy == {id(p) for p in method.optimizer.parameters}
    assert not policy & {id(p) for p in method.value_optimizer.parameters}


def test_the_inner_steps_descend_surrogate_plus_proximity_minus_entropy(float64):
    method, batch, logits, advantage, visits = tabular(proximity=0.6, entropy_coefficient=0.3)
    old, seen = softmax(logits), visits[:, None]

    def objective(at):
        new = softmax(at)
        return (seen * new * (-advantage + 0.6 * np.log(new / old) + 0.3 * np.log(new))).sum()

    set_table(method.policy, 0.5 * logits)
    (found,) = gradient(method.total_loss(batch)[0], method.policy.parameters())
    np.testing.assert_allclose(found, numeric(objective, 0.5 * logits), atol=1e-8)


def test_the_critic_has_its_coefficient_and_ppos_clip(float64):
    def loss(**settings):
        method, batch, *_ = tabular(**settings)
        batch["value"], batch["returns"] = torch.zeros(STATES * ACTIONS), torch.ones(STATES * ACTIONS)
        method.critic.value = lambda batch: torch.full((STATES * ACTIONS,), 0.5)
        return method.value_loss(batch)[0].item()

    # from 0 the value may move to 0.2 unpunished: (0.2 - 1)^2 is more than (0.5 - 1)^2
    assert loss(value_coefficient=2.0, value_clip=None) == pytest.approx(0.5**2)  # 2: no half
    assert loss(value_coefficient=0.5, value_clip=None) == pytest.approx(0.25 * 0.5**2)
    assert loss(value_coefficient=2.0, value_clip=0.2) == pytest.approx(0.8**2)


@pytest.mark.parametrize("over", ["batch", "none"])
def test_advantages_are_standardized_over_the_whole_batch(over):
    method = plan("mdpo", "CartPole-v1", window=32, advantage_over=over, gae_lambda=0.9).build()
    seen, original = [], method.policy_loss

    def spy(batch):
        seen.append(batch["advantage"])
        return original(batch)

    method.policy_loss = spy
    method.update(method.collect())
    assert len(seen) == method.config.inner_steps
    for advantage in seen:
        assert (abs(float(advantage.mean())) < 1e-5 and abs(float(advantage.std()) - 1) < 1e-4) == (over == "batch")


# Off-policy


def off_policy(**settings):
    """Off-policy MDPO with an old policy that differs from the policy, and a batch."""
    settings = {"network.sizes": (8,), "moment_penalty": 0.0, "entropy.value": 0.3, "batch_size": 16} | settings
    method = plan("mdpo-off", "Pendulum-v1", warmup=32, replay_size=100, **settings).build()
    with torch.no_grad():
        for parameter in method.old_policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method, weigh(method.collect())


def terms(method, batch, noise):
    """(log pi, log pi_k, Q) [B] of a = tanh(mean + std noise), written out."""

    def log_density(u, policy):
        mean, std = (x.squeeze(-1) for x in moments(policy))
        return (
            -0.5 * ((u - mean) / std) ** 2
            - torch.log(std)
            - 0.5 * np.log(2 * np.pi)
            - torch.log(1 - torch.tanh(u) ** 2)
        )

    def moments(policy):
        mean, log_std = policy.net(batch["obs"]).chunk(2, -1)
        return mean, log_std.exp()

    mean, std = (x.squeeze(-1) for x in moments(method.policy))
    u = mean + std * noise
    q = method.critic(batch["obs"], torch.tanh(u).unsqueeze(-1))
    return log_density(u, method.policy), log_density(u, method.old_policy), q


@pytest.mark.parametrize(("c", "critic"), [(1.0, "first"), (0.1, "min"), (0.3, "mean")])
def test_must_4_gradient_goes_through_the_action_in_all_three_terms(c, critic, float64):
    method, batch = off_policy(proximity=c, policy_critic=critic)
    state = torch.get_rng_state()
    value = method.policy_loss(batch)[0]
    found = np.concatenate([g.ravel() for g in gradient(value, method.policy.parameters())])
    torch.set_rng_state(state)
    noise = torch.randn(len(batch), 1).squeeze(-1)

    def loss(flat):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(flat), method.policy.parameters())
        with torch.no_grad():
            log_prob, old_log_prob, q = terms(method, batch, noise)
            q = {"first": q[0], "min": q.min(0).values, "mean": q.mean(0)}[critic]
            return float((c * log_prob + (0.3 - c) * old_log_prob - q).mean())

    at = torch.nn.utils.parameters_to_vector(method.policy.parameters()).detach().numpy().copy()
    assert value.item() == pytest.approx(loss(at))
    np.testing.assert_allclose(found, numeric(loss, at), atol=1e-7)
    assert all(not p.requires_grad for p in method.old_policy.parameters())


def test_must_4_a_saturated_policy_is_at_no_distance_from_itself():
    """In float32, where actions beyond |u| = 9 round to +-1: with pi_k = pi the divergence of samples is 0, and its
    gradient with respect to the mean, E[(u - mean) / std^2] of the samples, is the noise over the std."""
    method = plan("mdpo-off", "Pendulum-v1", warmup=16, batch_size=64, moment_penalty=0.0, replay_size=100).build()
    with torch.no_grad():
        for policy in (method.policy, method.old_policy):
            for parameter in policy.net.parameters():
                parameter.zero_()
            head = next(p for p in policy.net.parameters() if p.shape == (2,))
            head.copy_(torch.tensor([9.0, 0.0]))  # mean 9, std 1
    batch = weigh(method.collect())
    state = torch.get_rng_state()
    own = method.policy.decide(batch)
    assert float(method.policy_loss(batch)[1]["divergence"].detach()) == pytest.approx(0.0, abs=1e-4)
    torch.set_rng_state(state)
    noise = torch.randn(64, 1).mean().item()
    gap = (batch["weight"] * (own["log_prob"] - method.old_policy.log_prob(own))).sum()
    head = next(p for p in method.policy.net.parameters() if p.shape == (2,))
    (gradient,) = torch.autograd.grad(gap, head)
    assert gradient[0].item() == pytest.approx(noise, rel=1e-3)


def test_must_4_old_policy_has_weight_lambda_minus_c(float64):
    values = []
    for shift in (0.0, 0.5):
        method, batch = off_policy(proximity=1.0, seed=1)
        torch.manual_seed(5)
        old = method.old_policy.log_prob
        method.old_policy.log_prob = lambda decisions, old=old, shift=shift: old(decisions) + shift
        values.append(method.policy_loss(batch)[0].item())
    assert values[1] - values[0] == pytest.approx((0.3 - 1.0) * 0.5)  # negative: c above lambda


def test_c_equal_to_lambda_has_the_policy_gradient_of_sac(float64):
    method, batch = off_policy(proximity=0.3, policy_critic="min")
    sac = plan(
        "sac", "Pendulum-v1", warmup=32, entropy="fixed", **{"network.sizes": (8,), "entropy.value": 0.3}
    ).build()
    sac.policy.load_state_dict(method.policy.state_dict())
    sac.critic.network.load_state_dict(method.critic.network.state_dict())
    gradients = []
    for learner in (method, sac):
        torch.manual_seed(0)
        gradients.append(gradient(learner.policy_loss(batch)[0], learner.policy.parameters()))
    for one, other in zip(*gradients):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_must_1_old_policy_is_refreshed_every_m_environment_steps():
    method = plan(
        "mdpo-off", "Pendulum-v1", warmup=16, refresh=10, batch_size=8, replay_size=100, **{"network.sizes": (8,)}
    ).build()
    copied = []
    for _ in range(20):
        method.update(method.collect())
        same = all(torch.equal(p, q) for p, q in zip(method.policy.parameters(), method.old_policy.parameters()))
        if same:
            copied.append(method.ledger.env_steps)
    assert copied[0] == 17  # the first update, for what the warm-up has passed
    assert copied[1:] == [20, 30]


def test_value_network_targets_by_hand(float64):
    method, batch = off_policy(discount=0.9)
    with torch.no_grad():
        batch["terminated"] = torch.arange(len(batch)) % 2 == 0
        method.target_critic.state_value.network.requires_grad_(False)
        next_value = method.target_critic.state_value(batch["next_obs"])
        bootstrapped = np.where(batch["terminated"].numpy(), 0.0, 0.9 * next_value.numpy())
        np.testing.assert_allclose(method.target(batch).numpy(), batch["reward"].numpy() + bootstrapped)

        state = torch.get_rng_state()
        loss, metrics = method.critic_loss(batch)
        torch.set_rng_state(state)
        noise = torch.randn(len(batch), 1).squeeze(-1)
        log_prob, _, q = terms(method, batch, noise)
        error = method.critic.state_value(batch["obs"]) - (q.min(0).values - 0.3 * log_prob)
    assert float(metrics["value_loss"]) == pytest.approx(float(0.5 * error.square().mean()))
    assert float(loss) == pytest.approx(float(metrics["critic_loss"] + metrics["value_loss"]))


def test_moment_penalty_by_hand(float64):
    method, batch = off_policy(moment_penalty=0.0)
    losses = []
    for factor in (0.0, 0.5):
        object.__setattr__(method.config, "moment_penalty", factor)
        torch.manual_seed(0)
        losses.append(method.policy_loss(batch)[0].item())
    mean, log_std = method.policy.net(batch["obs"]).detach().chunk(2, -1)
    expected = 0.5 * float(mean.square().mean() + log_std.square().mean())
    assert losses[1] - losses[0] == pytest.approx(expected)

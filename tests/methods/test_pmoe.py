"""PMOE: mixtures, winners, what reaches the router and what the components."""

import math

import pytest
import torch
from gymnasium import spaces
from scipy import stats
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.methods.control.pmoe import router_error, router_terms
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.policies.gaussian_mixture import picked
from polopt.policies.mixture import GaussianMixture
from polopt.training.api import plan
from tests.guards.harness import built

MUST = 5


def policy_of(**options):
    spec = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)), "test")
    return GaussianMixture(**{"components": 3} | options).build(spec, Network((8,)))


def spread(policy, scale=1.0):
    """Components that differ much, and weights that are not equal."""
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.normal_(0, scale, generator=torch.Generator().manual_seed(number))
    return policy


# The policy


@pytest.mark.parametrize("squash", [False, True])
def test_the_density_is_that_of_the_mixture(float64, squash):
    policy = spread(policy_of(squash=squash), 0.5)
    obs = torch.randn(20, 3)
    record, _ = policy.act(obs)
    batch = TensorDict({"obs": obs, **record}, batch_size=[20])
    mean, log_std = policy.moments(obs)
    weights = policy.router(obs).softmax(-1)
    value = batch["pre_action"] if squash else batch["action"]
    density = torch.zeros(20)
    for component in range(3):
        normal = stats.norm(mean[:, component].detach().numpy(), log_std[:, component].exp().detach().numpy())
        density += weights[:, component] * torch.from_numpy(normal.pdf(value.numpy())).prod(-1)
    if squash:
        density = density / (1 - value.tanh().square()).prod(-1)
    torch.testing.assert_close(record["log_prob"], density.log().detach())
    torch.testing.assert_close(policy.log_prob(batch), density.log())


def test_far_components_do_not_underflow(float64):
    policy = policy_of(squash=False)
    batch = TensorDict({"obs": torch.zeros(1, 3), "action": torch.full((1, 2), 1e3)}, batch_size=[1])
    assert -1e7 < policy.log_prob(batch).item() < -1e5


def test_components_are_drawn_by_their_weights():
    torch.manual_seed(0)
    policy = spread(policy_of(squash=False, std="state-independent", log_std_init=-6.0))
    with torch.no_grad():
        policy.log_std.fill_(-6.0)
    obs = torch.zeros(20_000, 3)
    weights, mean = policy.router(obs[:1]).softmax(-1)[0], policy.moments(obs[:1])[0][0]
    for act in (policy.act(obs)[0]["action"], policy.act(obs, greedy=True)[0]["action"], policy.propose(obs)[0]):
        share = torch.cdist(act, mean).argmin(-1).bincount(minlength=3) / len(obs)
        torch.testing.assert_close(share, weights, atol=0.015, rtol=0)


def test_must_3_what_is_proposed_has_the_density_of_its_own_component(float64):
    policy = spread(policy_of(squash=False, std="state-independent"))
    torch.manual_seed(3)
    obs = torch.zeros(500, 3)
    action, log_prob = policy.propose(obs)
    mean, log_std = policy.moments(obs)
    each = policy.components_log_prob(action, mean, log_std)
    assert (log_prob.unsqueeze(-1) - each).abs().amin(-1).max() < 1e-9
    mixture = policy.log_prob(TensorDict({"obs": obs, "action": action}, batch_size=[500]))
    assert (mixture - log_prob).abs().max() > 0.1


def test_the_entropy_is_exact_where_components_do_not_overlap(float64):
    policy = policy_of(squash=False, std="state-independent", components=2)
    with torch.no_grad():
        policy.log_std.fill_(-3.0)
        for parameter in policy.net.parameters():
            parameter.zero_()
        last = [*policy.net.parameters()][-1]
        last.copy_(torch.tensor([-50.0, 0.0, 50.0, 0.0]))
        for parameter in policy.router.parameters():
            parameter.zero_()
    obs = torch.zeros(1, 3)
    expected = math.log(2) + 2 * (-3.0 + 0.5 * math.log(2 * math.pi * math.e))
    assert policy.entropy(TensorDict({"obs": obs, "action": torch.zeros(1, 2)}, batch_size=[1])).item() == (
        pytest.approx(expected)
    )


def test_picked_takes_one_component_of_each_row():
    each = torch.arange(24.0).reshape(4, 3, 2)
    assert picked(each, torch.tensor([0, 2, 1, 0])).tolist() == [[0, 1], [10, 11], [14, 15], [18, 19]]


# The router


def test_must_1_the_router_is_regressed_on_the_winner(float64):
    log_weights = torch.tensor([[0.5, 0.3, 0.2]]).log()
    expected = ((0.5 - 0) ** 2 + (0.3 - 1) ** 2 + 0.2**2) / 3
    assert router_error(log_weights, torch.tensor([1])).item() == pytest.approx(expected)


def test_must_1_a_router_trained_by_winners_alone_learns_how_often_each_wins():
    torch.manual_seed(0)
    chance = torch.tensor([0.1, 0.6, 0.3])
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 3e-3)
    weight = torch.full((256,), 1 / 256)
    for _ in range(1500):
        optimizer.zero_grad()
        winner = torch.multinomial(chance, 256, replacement=True)
        router_terms(logits.log_softmax(-1).expand(256, 3), winner, weight)[0].backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(-1), chance, atol=0.05, rtol=0)


def ranked(method, favorite):
    """A critic that likes one component's proposals best, through which gradients flow."""

    def values(obs, action):
        bonus = 100.0 * (torch.arange(len(action)) == favorite).view(-1, 1)
        return (action.sum(-1) + bonus).expand(2, *action.shape[:-1])

    method.action_values = values


def gradients(method, batch):
    loss, metrics = method.policy_loss(batch)
    named = dict(method.policy.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found)), metrics


@pytest.mark.parametrize(("mode", "reached"), [("max", [False, True, False]), ("all", [True, True, True])])
def test_must_4_the_policy_gradient_reaches_the_winner_or_all(float64, mode, reached):
    with built("pmoe", back_propagate=mode) as method:
        batch = method.collect()
        batch["weight"] = torch.full((len(batch),), 1 / len(batch))
        ranked(method, 1)
        grads, _ = gradients(method, batch)
        last = [grad for name, grad in grads.items() if name.startswith("net.")][-1]
        moved = last.reshape(3, 2).abs().sum(-1) > 0  # mean and log std of each component
        assert moved.tolist() == reached


def test_must_2_the_router_is_trained_by_winners_alone(float64):
    with built("pmoe") as method:
        batch = method.collect()
        batch["weight"] = torch.full((len(batch),), 1 / len(batch))
        ranked(method, 2)
        grads, metrics = gradients(method, batch)
        log_weights = method.policy.router(batch["obs"]).log_softmax(-1)
        winner = torch.full((len(batch),), 2)
        loss = router_error(log_weights, winner).mean()
        own = torch.autograd.grad(loss, list(method.policy.router.parameters()))
        for (name, _), expected in zip(method.policy.router.named_parameters(), own):
            torch.testing.assert_close(grads[f"router.{name}"], expected)
        assert metrics["router_loss"].item() == pytest.approx(loss.item())


def test_the_loss_of_components_has_the_temperature_and_the_least_critic(float64):
    with built("pmoe", back_propagate="all", **{"entropy": "fixed"}) as method:
        batch = method.collect()
        batch["weight"] = torch.full((len(batch),), 1 / len(batch))
        torch.manual_seed(5)
        _, metrics = method.policy_loss(batch)
        torch.manual_seed(5)
        action, log_prob = method.policy.rsample_each(batch["obs"])
        q = torch.stack([method.critic(batch["obs"], one).min(0).values for one in action.unbind(1)], -1)
        expected = (method.temperature.value * log_prob - q).sum(-1).mean()
        assert metrics["policy_loss"].item() == pytest.approx(expected.item())
        best = torch.stack([row[one] for row, one in zip(log_prob, q.argmax(-1))])
        assert metrics["entropy"].item() == pytest.approx(-best.mean().item())


def test_must_5_weights_are_near_equal_at_the_start():
    with built("pmoe") as method:
        weights = method.policy.router(method.collect()["obs"]).softmax(-1)
        assert (weights - 1 / 3).abs().max() < 0.15


def uniform(batch):
    return batch.clone(False).set("weight", torch.full((len(batch),), 1 / len(batch)))


def test_must_3_the_target_takes_a_component_by_its_weight_and_its_own_density(float64):
    with built("pmoe", discount=0.5, **{"entropy": "fixed"}) as method:
        batch = method.collect()
        batch["terminated"] = torch.arange(len(batch)) % 2 == 0
        torch.manual_seed(3)
        found = method.target(batch)
        torch.manual_seed(3)
        action, own = method.policy.propose(batch["next_obs"])
        value = method.target_critic(batch["next_obs"], action).amin(0) - method.temperature.value * own
        torch.testing.assert_close(found, batch["reward"] + 0.5 * ~batch["terminated"] * value)


def test_a_gumbel_choice_is_drawn_by_the_weights_and_has_the_gradient_of_the_relaxed_one(float64):
    policy = spread(policy_of(squash=False), 0.5)
    obs = torch.randn(1, 3).expand(20_000, 3)
    mean, _ = policy.moments(obs)
    torch.manual_seed(1)
    choice, log_weights = policy.route(obs, mean, 0.5)
    torch.testing.assert_close(choice.detach().amax(-1), torch.ones(20_000))
    torch.testing.assert_close(choice.detach().mean(0), log_weights[0].exp().detach(), atol=0.015, rtol=0)
    torch.manual_seed(1)
    uniform_draws = torch.special.ndtr(torch.randn(20_000, 3))
    soft = ((policy.router(obs).log_softmax(-1) - (-uniform_draws.log()).log()) / 0.5).softmax(-1)
    parts, cost = list(policy.router.parameters()), torch.tensor([1.0, -2.0, 0.5])
    for one, other in zip(*(torch.autograd.grad((each * cost).mean(), parts) for each in (choice, soft))):
        torch.testing.assert_close(one, other)


def test_the_gumbel_loss_is_that_of_sac_at_the_chosen_action(float64):
    with built("pmoe", routing="gumbel", **{"entropy": "fixed"}) as method:
        batch = uniform(method.collect())
        torch.manual_seed(4)
        loss, metrics = method.policy_loss(batch)
        torch.manual_seed(4)
        action, log_prob = method.policy.rsample_each(batch["obs"])
        chosen = method.policy.route(batch["obs"], action, 1.0)[0].argmax(-1)
        own = picked(log_prob.unsqueeze(-1), chosen).squeeze(-1)
        q = method.critic(batch["obs"], picked(action, chosen)).amin(0)
        assert loss.item() == pytest.approx((method.temperature.value * own - q).mean().item())
        assert metrics["entropy"].item() == pytest.approx(-own.mean().item())


# On-policy


def test_winners_are_ranked_by_the_extra_critic_and_no_gradient_reaches_it(float64):
    with built("pmoe-ppo") as method:
        batch = method.evaluate_window(method.collect())
        minibatch = next(iter(method.minibatches(batch)))
        torch.manual_seed(2)
        found = method.ranked(minibatch)["winner"]
        torch.manual_seed(2)
        action, _ = method.policy.rsample_each(minibatch["obs"])
        values = torch.stack([method.ranker(minibatch["obs"], one)[0] for one in action.unbind(1)])
        assert torch.equal(found, values.argmax(0))
        loss, _ = method.total_loss(method.ranked(minibatch))
        grads = torch.autograd.grad(loss, list(method.ranker.parameters()), allow_unused=True)
        assert all(grad is None for grad in grads)


def test_the_loss_is_that_of_ppo_and_the_error_of_the_router(float64):
    with built("pmoe-ppo") as method:
        minibatch = method.ranked(next(iter(method.minibatches(method.evaluate_window(method.collect())))))
        log_weights = method.policy.router(minibatch["obs"]).log_softmax(-1)
        more = method.total_loss(minibatch)[0] - PPO.total_loss(method, minibatch)[0]
        assert more.item() == pytest.approx(router_error(log_weights, minibatch["winner"]).mean().item())


def test_the_ranking_critic_learns_returns_by_the_full_square(float64):
    with built("pmoe-ppo") as method:
        minibatch = next(iter(method.minibatches(method.evaluate_window(method.collect()))))
        loss, _ = method.rank_loss(minibatch)
        q = method.ranker(minibatch["obs"], minibatch["action"])[0]
        assert loss.item() == pytest.approx((q - minibatch["returns"]).square().mean().item())


# Use


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("pmoe", {"policy.squash": False}, "tanh"),
        ("pmoe", {"policy.components": 1, "policy.router_gain": 1.0}, "router"),
        ("pmoe", {"network.recurrent": "gru"}, "feed-forward"),
        ("pmoe", {"routing_temperature": 0.5}, "routing"),
        ("pmoe-ppo", {"policy.log_std_low": 3.0}, "below"),
    ],
)
def test_what_cannot_be_is_refused(method, settings, said):
    with pytest.raises(UsageError, match=said):
        plan(method, "Pendulum-v1", **settings).build()


def test_a_discrete_task_is_refused():
    with pytest.raises(UsageError, match="a mixture of Gaussians needs a Box action space"):
        plan("pmoe-ppo", "CartPole-v1").build()

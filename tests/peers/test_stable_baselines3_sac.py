"""Gradients of SAC's losses against Stable-Baselines3's own `SAC.train()`, on the same weights, transitions and noise,
in float64: `make test-peers`. How its settings are called here is in docs/conventions.md.
"""

import pytest
import torch
from stable_baselines3 import SAC

from polopt.core.batch import weigh
from tests.guards import spaces
from tests.peers.gradients import linear, load, perturb, plain, record, relative_error, stacked
from tests.peers.sb3 import SIZE, TOLERANCE, WholeReplay, ours, theirs, transitions

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def actor(model, value):
    """Their two heads, mean and log_std, are one layer of ours."""
    *trunk, mean, mean_bias, log_std, log_std_bias = plain(
        linear(model.actor.latent_pi, model.actor.mu, model.actor.log_std), value
    )
    return [*trunk, torch.cat([mean, log_std]), torch.cat([mean_bias, log_std_bias])]


def pair(**settings):
    model = theirs(SAC, spaces.box, buffer_size=SIZE, replay_buffer_class=WholeReplay, ent_coef="auto_0.3", gamma=0.9)
    for module, scale in ((model.actor, 0.1), (model.critic, 0.3), (model.critic_target, 0.5)):
        perturb(module, scale)
    defaults = {"network.activation": "relu", "replay_size": SIZE, "entropy.form": "log-alpha", "entropy.initial": 0.3}
    method = ours("sac", spaces.box, **defaults | settings)
    load(method.policy.parameters(), actor(model, lambda p: p))
    load(method.critic.parameters(), stacked(model.critic.q_networks, lambda p: p))
    load(method.target_critic.parameters(), stacked(model.critic_target.q_networks, lambda p: p))
    return model, method


def gradients_of(epsilon=0.0, ends="terminated", **settings):
    """{loss: (our, their gradients)}; one seed, so that both sides draw the same noise for their actions.

    `epsilon` stands in log(1 - a^2 + epsilon) of their density, by default 1e-6; ours needs none. `ends` is the key
    that ours takes for the end of an episode.
    """
    model, method = pair(**settings)
    model.actor.action_dist.epsilon = epsilon
    batch = transitions()
    for row in batch:
        done, info = row["terminated"] | row["truncated"], {"TimeLimit.truncated": bool(row["truncated"])}
        model.replay_buffer.add(row["obs"], row["next_obs"], row["action"].numpy(), row["reward"], done, [info])
    optimizers = (model.critic.optimizer, model.actor.optimizer, model.ent_coef_optimizer)
    critic, policy, temperature = (record(optimizer) for optimizer in optimizers)
    torch.manual_seed(5)
    model.train(gradient_steps=1, batch_size=SIZE)

    optimizers = (method.critic_optimizer, method.policy_optimizer, method.temperature_optimizer)
    gradients = {}
    seen = [record(optimizer) for optimizer in optimizers]
    batch = weigh(batch).set("terminated", batch[ends])
    torch.manual_seed(5)
    method.improve(batch)  # they draw the noise at `obs` first
    method.critic_optimizer.minimize(method.critic_loss, batch)
    for recorded in seen:
        gradients |= recorded
    return {
        "critic": ([gradients[p] for p in method.critic.parameters()], stacked(model.critic.q_networks, critic.get)),
        "actor": ([gradients[p] for p in method.policy.parameters()], actor(model, policy.get)),
        "temperature": ([gradients[method.temperature.log_alpha][None]], list(temperature.values())),
    }


@pytest.mark.parametrize(
    ("loss", "changed"),
    [
        ("critic", {"reward_scale": 2.0}),
        ("critic", {"entropy.initial": 0.2}),
        ("critic", {"ends": "truncated"}),
        ("actor", {"policy_critic": "mean"}),
        ("actor", {"entropy.initial": 0.2}),
        ("temperature", {"entropy.form": "alpha"}),
        ("temperature", {"entropy.target_entropy": -1.0}),
    ],
)
def test_losses(loss, changed):
    assert relative_error(*gradients_of()[loss]) < TOLERANCE
    assert relative_error(*gradients_of(**changed)[loss]) > 1e-3


def test_temperature_loss_on_alpha_is_alpha_times_theirs():
    (gradient,), (expected,) = gradients_of(**{"entropy.form": "alpha"})["temperature"]
    assert relative_error([gradient], [0.3 * expected]) < TOLERANCE


def test_with_their_epsilon():
    """As shipped it takes the part epsilon / (1 - a^2 + epsilon) of a decision's entropy gradient: much where actions
    saturate. It is the whole difference, which shrinks as epsilon does."""
    shipped, smaller = gradients_of(epsilon=1e-6), gradients_of(epsilon=1e-9)
    for loss, both in shipped.items():
        assert TOLERANCE < relative_error(*both) < 0.05, loss
        assert relative_error(*smaller[loss]) < 2e-3 * relative_error(*both), loss


def test_actions_are_stored_in_the_unit_box_on_both_sides():
    model, method = pair()
    action = torch.tensor([[-2.0, 1.0], [0.25, -0.5]])  # bounds -2 and 1
    stored = method.policy.own_action(action)
    assert relative_error([stored], [torch.from_numpy(model.policy.scale_action(action.numpy()))]) < TOLERANCE
    assert relative_error([action], [stored]) > 0.1

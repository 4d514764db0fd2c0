"""Gradients of TD3's losses against Stable-Baselines3's own `TD3.train()`, on the same weights, transitions and noise,
in float64: `make test-peers`. How its settings are called here is in docs/conventions.md.
"""

from unittest import mock

import pytest
import torch
from stable_baselines3 import TD3

from tests.guards import spaces
from tests.peers.gradients import linear, load, perturb, plain, record, relative_error, stacked
from tests.peers.sb3 import SIZE, TOLERANCE, WholeReplay, ours, theirs, transitions

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def pair(delay=1, **settings):
    model = theirs(TD3, spaces.box, buffer_size=SIZE, replay_buffer_class=WholeReplay, gamma=0.9, policy_delay=delay)
    modules = (model.actor, model.actor_target, model.critic, model.critic_target)
    for module, scale in zip(modules, (0.1, 0.2, 0.3, 0.5)):
        perturb(module, scale)
    method = ours("td3", spaces.box, **{"network.activation": "relu", "replay_size": SIZE, "delay": delay} | settings)
    for policy, actor in ((method.policy, model.actor), (method.target_policy, model.actor_target)):
        load(policy.parameters(), plain(linear(actor.mu), lambda p: p))
    for critic, its in (
        (method.clipped.critic, model.critic),
        (method.clipped.target_critic, model.critic_target),
    ):
        load(critic.parameters(), stacked(its.q_networks, lambda p: p))
    return model, method


def single_noise(like):
    """They draw the noise like the stored actions, in single precision."""
    return torch.empty(like.shape, dtype=torch.float32).normal_().double()


def stored(model):
    """Transitions, which are all that their replay has."""
    batch = transitions()
    for row in batch:
        done, info = row["terminated"] | row["truncated"], {"TimeLimit.truncated": bool(row["truncated"])}
        model.replay_buffer.add(row["obs"], row["next_obs"], row["action"].numpy(), row["reward"], done, [info])
    return batch


def gradients_of(ends="terminated", swapped=False, **settings):
    """{loss: (our, their gradients)}; one seed, so that both sides draw the same noise for their targets.

    `ends` is the key that ours takes for the end of an episode; `swapped`: our first critic is their second.
    """
    model, method = pair(**settings)
    batch = stored(model)
    critic, policy = record(model.critic.optimizer), record(model.actor.optimizer)
    torch.manual_seed(5)
    model.train(gradient_steps=1, batch_size=SIZE)
    if swapped:
        for parameter in method.clipped.critic.parameters():
            parameter.data = parameter.data.flip(0)
    seen = [record(optimizer.torch) for optimizer in (method.critic_optimizer, method.policy_optimizer)]
    torch.manual_seed(5)
    with mock.patch("torch.randn_like", single_noise):
        method.update(batch.set("terminated", batch[ends]))
    gradients = seen[0] | seen[1]
    return {
        "critic": (
            [gradients[p] for p in method.clipped.critic.parameters()],
            stacked(model.critic.q_networks, critic.get),
        ),
        "policy": ([gradients[p] for p in method.policy.parameters()], plain(linear(model.actor.mu), policy.get)),
    }


@pytest.mark.parametrize(
    ("loss", "changed"),
    [
        ("critic", {"ends": "truncated"}),
        ("critic", {"target_noise": 0.0}),
        ("critic", {"target_noise": 0.3}),
        ("critic", {"target_noise_clip": 0.1}),
        ("policy", {"swapped": True}),
    ],
)
def test_losses(loss, changed):
    assert relative_error(*gradients_of()[loss]) < TOLERANCE
    assert relative_error(*gradients_of(**changed)[loss]) > 1e-3


def differences(model, method):
    """Of the weights of policy, critics and the slow copies of both."""
    found = {
        "policy": (method.policy, plain(linear(model.actor.mu), lambda p: p)),
        "target policy": (method.target_policy, plain(linear(model.actor_target.mu), lambda p: p)),
        "critic": (method.clipped.critic, stacked(model.critic.q_networks, lambda p: p)),
        "target critic": (method.clipped.target_critic, stacked(model.critic_target.q_networks, lambda p: p)),
    }
    return {name: relative_error(copies(own), other) for name, (own, other) in found.items()}


def copies(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_a_hundred_updates_in_a_row():
    """Delays, optimizers and slow copies."""
    model, method = pair(delay=2)
    model.lr_schedule = lambda progress: method.config.lr
    batch = stored(model)
    begun, start = differences(model, method), copies(method.target_policy)
    for number in range(100):
        torch.manual_seed(number)
        model.train(gradient_steps=1, batch_size=SIZE)
        torch.manual_seed(number)
        with mock.patch("torch.randn_like", single_noise):
            method.update(batch.clone())
    assert max(begun.values()) == 0
    assert max(differences(model, method).values()) < TOLERANCE
    assert relative_error(copies(method.target_policy), start) > 1e-3


def test_actions_are_stored_in_the_unit_box_on_both_sides():
    model, method = pair()
    action = torch.tensor([[-2.0, 1.0], [0.25, -0.5]])  # bounds -2 and 1
    stored = method.policy.own_action(action)
    assert relative_error([stored], [torch.from_numpy(model.policy.scale_action(action.numpy()))]) < TOLERANCE

"""Gradients of TD3's losses against Stable-Baselines3's own `TD3.train()`, on the same weights, transitions and noise,
in float64: `make test-peers`. How its settings are called here is in docs/conventions.md.
"""

import contextlib
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from stable_baselines3 import TD3
from stable_baselines3.common.noise import ActionNoise

from tests.guards import spaces
from tests.peers.gradients import linear, load, perturb, plain, record, relative_error, stacked
from tests.peers.sb3 import SIZE, TOLERANCE, DoubleReplay, WholeReplay, ours, theirs, transitions

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def pair(delay=1, task=spaces.box, peer=None, **settings):
    """Both sides with the same weights; `peer` are settings of theirs."""
    options = {"buffer_size": SIZE, "replay_buffer_class": WholeReplay, "gamma": 0.9} | (peer or {})
    model = theirs(TD3, task, policy_delay=delay, **options)
    modules = (model.actor, model.actor_target, model.critic, model.critic_target)
    for module, scale in zip(modules, (0.1, 0.2, 0.3, 0.5)):
        perturb(module, scale)
    method = ours("td3", task, **{"network.activation": "relu", "replay_size": SIZE, "delay": delay} | settings)
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
    seen = [record(optimizer) for optimizer in (method.critic_optimizer, method.policy_optimizer)]
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


# A whole run

WARMUP, STEPS, DIMS = 60, 400, 2


class Drift(gymnasium.Env):
    """A point that is pushed, ends where it gets too far away, and at the latest after 25 steps. Where an episode
    begins depends on its number alone."""

    observation_space = gym_spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = gym_spaces.Box(-2.0, 1.0, (DIMS,), np.float32)

    def __init__(self):
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        self.place, self.steps = np.sin(np.arange(1.0, 4.0) * self.episodes), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        push = np.array([action[0], action[1], action[0] - action[1]], np.float64)
        self.place, self.steps = 0.95 * self.place + 0.2 * push, self.steps + 1
        far = bool(np.abs(self.place).max() > 1.8)
        return self.place.astype(np.float32), float(-np.square(self.place).sum()), far, self.steps == 25, {}


class Luck:
    """The random numbers of a run, the same for both sides: they are counted as they are used."""

    def __init__(self):
        draw = np.random.default_rng(0)
        self.warm = draw.uniform(-1.0, 1.0, (STEPS, DIMS))
        self.explored = np.concatenate([np.zeros((WARMUP, DIMS)), draw.standard_normal((STEPS, DIMS))])
        self.smoothed = draw.standard_normal((STEPS, SIZE, DIMS))
        self.places = draw.random((STEPS, SIZE))
        self.used = dict.fromkeys(("warm", "explored", "smoothed", "places"), 0)

    def next(self, name):
        self.used[name] += 1
        return getattr(self, name)[self.used[name] - 1]


class Exploring(ActionNoise):
    def __init__(self, luck, std):
        self.luck, self.std = luck, std

    def __call__(self):
        return self.std * self.luck.next("explored")


@contextlib.contextmanager
def their_luck(model, luck):
    def warm():
        return model.policy.unscale_action(luck.next("warm"))

    def places(low, high, size):
        return (luck.next("places") * high).astype(int) if high > 1 else np.zeros(size, int)  # 1: of one environment

    def smoothed(self, mean, std):
        return self.copy_(torch.from_numpy(std * luck.next("smoothed")))

    with (
        mock.patch.object(model.action_space, "sample", warm),
        mock.patch("numpy.random.randint", places),
        mock.patch("torch.Tensor.normal_", smoothed),
    ):
        yield


@contextlib.contextmanager
def our_luck(method, luck):
    class Warm:
        """In place of the uniform actions of the warm-up."""

        unit, env_action, parameters = True, method.policy.env_action, method.policy.parameters

        def act(self, obs, carry=None, *, greedy=False):
            luck.next("explored")
            return {"action": torch.from_numpy(luck.next("warm")).unsqueeze(0)}, {}

    def normal(like):
        name = "smoothed" if len(like) == SIZE else "explored"
        return torch.from_numpy(luck.next(name)).reshape(like.shape)

    def places(high, size, generator):
        return torch.from_numpy((luck.next("places") * high).astype(int))

    method.source.warmup_actor = lambda policy: Warm()
    with mock.patch("torch.randn_like", normal), mock.patch("torch.randint", places):
        yield


@pytest.mark.parametrize("changed", [{}, {"warmup": WARMUP + 1}, {"exploration_noise": 0.11}, {"delay": 3}])
def test_a_whole_run(changed):
    """Collecting, what is stored at the ends of episodes, sampling and updating, in the same order and as often."""
    lucks = [Luck(), Luck()]
    peer = {
        "replay_buffer_class": DoubleReplay,
        "buffer_size": STEPS,
        "learning_starts": WARMUP,
        "batch_size": SIZE,
        "learning_rate": 1e-3,
        "action_noise": Exploring(lucks[0], 0.1),
    }
    own = {"replay_size": STEPS, "warmup": WARMUP, "batch_size": SIZE, "lr": 1e-3, "discount": 0.9} | changed
    model, method = pair(task=Drift, peer=peer, **{"delay": 2} | own)
    model.policy_delay = 2
    with their_luck(model, lucks[0]):
        model.learn(STEPS)
    with our_luck(method, lucks[1]):
        while method.ledger.env_steps < STEPS:
            method.update(method.collect())
    found = max(differences(model, method).values())
    if changed:
        assert found > 1e-3
        return
    assert lucks[0].used == lucks[1].used
    assert found < TOLERANCE
    replay, columns = model.replay_buffer, method.source.replay._columns
    ends = replay.dones[:, 0] * (1.0 - replay.timeouts[:, 0])
    assert np.array_equal(ends > 0, columns["terminated"].numpy())
    assert 0 < ends.sum() < replay.dones.sum()

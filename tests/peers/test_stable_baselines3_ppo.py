"""Gradients of PPO's losses against Stable-Baselines3's own `PPO.train()`, on the same weights, decisions and
advantages, in float64: `make test-peers`. How its settings are called here is in docs/conventions.md.
"""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from tensordict import TensorDict

from tests.guards import spaces
from tests.peers.gradients import load, perturb, record, relative_error
from tests.peers.sb3 import (
    SIZE,
    TOLERANCE,
    DoubleRollouts,
    fill,
    ours,
    policy_parameters,
    single,
    their_critic,
    their_policy,
    theirs,
)

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def pair(task, their_settings, settings):
    """Stable-Baselines3's model and our method, with the same weights."""
    defaults = {"n_steps": SIZE, "batch_size": SIZE, "n_epochs": 1, "max_grad_norm": np.inf}
    model = theirs(PPO, task, rollout_buffer_class=DoubleRollouts, **defaults | their_settings)
    perturb(model.policy, 0.2)  # the last layer of a fresh policy is near 0
    settings = {"value_clip": None, "max_grad_norm": None, "entropy_coefficient": 0.0} | settings
    method = ours("ppo", task, envs=1, window=SIZE, epochs=1, minibatches=1, **settings)
    load(policy_parameters(method), their_policy(model, lambda p: p))
    load(method.critic.parameters(), their_critic(model, lambda p: p))
    return model, method


def decisions(method, advantage_scale=1.0):
    """A batch [B] of an older policy, some ratios and some values beyond the clip ranges on either side."""
    discrete = method.spec.discrete
    action = torch.randint(3, (SIZE,)) if discrete else single(torch.randn(SIZE, 2))
    batch = TensorDict({"obs": single(torch.randn(SIZE, 3)), "action": action}, batch_size=[SIZE])
    with torch.no_grad():
        batch["log_prob"] = method.policy.log_prob(batch) + 0.3 * torch.randn(SIZE)
        batch["value"] = method.critic.value(batch) + 0.3 * torch.randn(SIZE)
    batch["advantage"] = advantage_scale * (2 * torch.randn(SIZE) + 0.5)
    batch["returns"] = batch["value"] + torch.randn(SIZE)
    return batch


def gradients_of(task, their_settings, settings, advantage_scale=1.0):
    """((our, their) gradients of the policy, the same of the critic), as they reach the optimizer."""
    model, method = pair(task, their_settings, settings)
    batch = decisions(method, advantage_scale)
    fill(model.rollout_buffer, batch)
    expected, gradients = record(model.policy.optimizer), record(method.optimizer)
    model.train()
    method.improve(batch)
    return (
        ([gradients[p] for p in policy_parameters(method)], their_policy(model, expected.get)),
        ([gradients[p] for p in method.critic.parameters()], their_critic(model, expected.get)),
    )


NARROW = {"surrogate.clip_low": 0.1, "surrogate.clip_high": 0.1}


@pytest.mark.parametrize("task", [spaces.box, spaces.discrete])
@pytest.mark.parametrize(
    ("their_settings", "settings", "changed"),
    [
        ({}, {}, NARROW),
        ({}, {}, {"advantage_over": "none"}),
        ({"clip_range": 0.1}, NARROW, {"surrogate.clip_high": 0.2}),
        ({"normalize_advantage": False}, {"advantage_over": "none"}, {"surrogate": "reinforce"}),
        ({"ent_coef": 0.03}, {"entropy_coefficient": 0.03}, {"entropy_coefficient": 0.0}),
    ],
)
def test_policy_loss(task, their_settings, settings, changed):
    assert relative_error(*gradients_of(task, their_settings, settings)[0]) < TOLERANCE
    assert relative_error(*gradients_of(task, their_settings, settings | changed)[0]) > 1e-3


@pytest.mark.parametrize("task", [spaces.box, spaces.discrete])
@pytest.mark.parametrize(("coefficient", "equal"), [(0.03, True), (0.06, False)])
def test_entropy_loss_alone(task, coefficient, equal):
    """All advantages are 0. The entropy of a Gaussian moves nothing but its standard deviation."""
    rows = slice(0, 1) if task is spaces.box else slice(None)
    their_settings = {"ent_coef": 0.03, "normalize_advantage": False}
    settings = {"advantage_over": "none", "entropy_coefficient": coefficient}
    (gradients, expected), _ = gradients_of(task, their_settings, settings, advantage_scale=0.0)
    assert (relative_error(gradients[rows], expected[rows]) < TOLERANCE) == equal


@pytest.mark.parametrize(
    ("their_settings", "settings", "equal"),
    [
        ({"vf_coef": 0.5}, {"value_coefficient": 1.0}, True),  # ours has the 1/2 inside
        ({"vf_coef": 0.5}, {"value_coefficient": 0.5}, False),
        ({"clip_range_vf": 9.0}, {"value_coefficient": 1.0, "value_clip": 9.0}, True),
        # Beyond the clip range theirs has no gradient, ours takes the larger of both errors: no setting maps them.
        ({"clip_range_vf": 0.2}, {"value_coefficient": 1.0, "value_clip": 0.2}, False),
    ],
)
def test_value_loss(their_settings, settings, equal):
    assert (relative_error(*gradients_of(spaces.box, their_settings, settings)[1]) < TOLERANCE) == equal


@pytest.mark.parametrize(("norm", "equal"), [(0.05, True), (0.1, False)])
def test_total_loss_with_clipped_gradients(norm, equal):
    settings = {"max_grad_norm": norm, "entropy_coefficient": 0.03, "value_coefficient": 1.0}
    for both in gradients_of(spaces.box, {"max_grad_norm": 0.05, "ent_coef": 0.03}, settings):
        assert (relative_error(*both) < TOLERANCE) == equal


class Watched(gymnasium.Wrapper):
    """Keeps (obs, true successor, reward, terminated, truncated) of every step."""

    def reset(self, **options):
        self.last, info = self.env.reset(**options)
        return self.last, info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action.astype(np.float32))
        self.steps = [*getattr(self, "steps", []), (self.last, obs, reward, terminated, truncated)]
        self.last = obs
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("limit", [4, None])
def test_advantages_at_time_limits(limit):
    """Theirs adds discount * V(final observation) to the last reward, in float32; ours bootstraps where truncated."""
    task = spaces.box if limit is None else lambda: gymnasium.wrappers.TimeLimit(spaces.box(), limit)
    watched = Watched(task())
    model, method = pair(lambda: watched, {"gamma": 0.9}, {"discount": 0.9})
    model.train = lambda: None
    model.learn(SIZE)
    names = ("obs", "final_obs", "reward", "terminated", "truncated")
    columns = [torch.from_numpy(np.array(column))[None] for column in zip(*watched.steps, strict=True)]
    batch = TensorDict(dict(zip(names, columns, strict=True)), batch_size=[1, SIZE])
    for name in ("obs", "final_obs"):
        batch[name] = batch[name].double()
    advantage = torch.from_numpy(model.rollout_buffer.advantages.T)
    assert relative_error([method.evaluate_window(batch)["advantage"]], [advantage]) < TOLERANCE
    mistaken = batch.clone(False).update({"terminated": batch["truncated"], "truncated": batch["terminated"]})
    assert relative_error([method.evaluate_window(mistaken)["advantage"]], [advantage]) > 1e-3

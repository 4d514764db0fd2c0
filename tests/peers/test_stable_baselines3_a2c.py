"""Gradients and steps of A2C against Stable-Baselines3's own `A2C.train()`, on the same weights, decisions and
advantages, in float64: `make test-peers`. How its settings are called here is in docs/conventions.md.
"""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from tensordict import TensorDict

from polopt.core.batch import weigh
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
    model = theirs(A2C, task, rollout_buffer_class=DoubleRollouts, n_steps=SIZE, **their_settings)
    perturb(model.policy, 0.2)  # the last layer of a fresh policy is near 0
    method = ours("a2c", task, envs=1, window=SIZE, **settings)
    load(policy_parameters(method), their_policy(model, lambda p: p))
    load(method.critic.parameters(), their_critic(model, lambda p: p))
    return model, method


def decisions(method):
    action = torch.randint(3, (SIZE,)) if method.spec.discrete else single(torch.randn(SIZE, 2))
    batch = TensorDict({"obs": single(torch.randn(SIZE, 3)), "action": action}, batch_size=[SIZE])
    with torch.no_grad():
        batch["log_prob"] = method.policy.log_prob(batch)
        batch["value"] = method.critic.value(batch)
    batch["advantage"] = 2 * torch.randn(SIZE) + 0.5
    batch["returns"] = batch["value"] + torch.randn(SIZE)
    return batch


def standardized(method, batch):
    """As `evaluate_window` leaves it."""
    if method.config.advantage_over == "batch":
        batch["advantage"] = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    return weigh(batch)


FREE = {"max_grad_norm": np.inf}, {"max_grad_norm": None}


def gradients_of(task, their_settings, settings):
    """(our, their) gradients of policy and critic, as they reach the optimizer."""
    model, method = pair(task, their_settings, settings)
    batch = decisions(method)
    fill(model.rollout_buffer, batch)
    expected, gradients = record(model.policy.optimizer), record(method.optimizer)
    model.train()
    method.improve(standardized(method, batch))
    found = [gradients[p] for p in (*policy_parameters(method), *method.critic.parameters())]
    return found, [*their_policy(model, expected.get), *their_critic(model, expected.get)]


@pytest.mark.parametrize("task", [spaces.box, spaces.discrete])
@pytest.mark.parametrize(
    ("their_settings", "settings", "changed"),
    [
        ({}, {}, {"value_coefficient": 0.5}),  # ours has the 1/2 inside
        ({"normalize_advantage": True}, {"advantage_over": "batch"}, {"advantage_over": "none"}),
        ({"ent_coef": 0.03}, {"entropy_coefficient": 0.03}, {"entropy_coefficient": 0.0}),
        ({"vf_coef": 0.2, "max_grad_norm": 0.05}, {"value_coefficient": 0.4, "max_grad_norm": 0.05}, FREE[1]),
    ],
)
def test_gradients(task, their_settings, settings, changed):
    their_settings, settings = FREE[0] | their_settings, FREE[1] | settings
    assert relative_error(*gradients_of(task, their_settings, settings)) < TOLERANCE
    assert relative_error(*gradients_of(task, their_settings, settings | changed)) > 1e-3


def moves(their_settings, settings, form):
    """(our, their) way of all parameters over three updates of the same batch; `form`: theirs is TensorFlow's."""
    model, method = pair(spaces.box, their_settings, settings)
    if form is not None:
        model.policy.optimizer = RMSpropTFLike(model.policy.parameters(), **form)
    parameters = [*policy_parameters(method), *method.critic.parameters()]
    before, batch = [p.detach().clone() for p in parameters], decisions(method)
    fill(model.rollout_buffer, batch)
    for _ in range(3):
        model.train()
        method.improve(standardized(method, batch.clone()))
    after = [*their_policy(model, lambda p: p), *their_critic(model, lambda p: p)]
    return tuple([p.detach() - start for p, start in zip(each, before)] for each in (parameters, after))


@pytest.mark.parametrize(
    ("their_settings", "settings", "form", "changed"),
    [
        ({}, {}, None, {"optimizer": "rmsprop-tf"}),
        ({"rms_prop_eps": 1e-3}, {"adam_eps": 1e-3}, None, {"adam_eps": 1e-5}),
        ({"use_rms_prop": False}, {"optimizer": "adam"}, None, {"optimizer": "rmsprop"}),
        ({}, {"optimizer": "rmsprop-tf", "adam_eps": 0.1}, {"eps": 0.1}, {"adam_eps": 1e-5}),
    ],
)
def test_steps(their_settings, settings, form, changed):
    assert relative_error(*moves(their_settings, settings, form)) < TOLERANCE
    assert relative_error(*moves(their_settings, settings | changed, form)) > 1e-3

"""The step of TRPO against sb3-contrib's own `TRPO.train()`, on the same weights, decisions and advantages, in float64:
`make test-peers`. How its settings are called here is in docs/conventions.md.
"""

from functools import partial
from unittest import mock

import pytest
import torch
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
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
COORDINATES = 2  # of the actions in `spaces.box`
SHORT = {"cg_damping": 0.01, "cg_max_steps": 6, "target_kl": 1e-4}  # so that KL is the same whichever policy is first
pytestmark = pytest.mark.usefixtures("float64")


def pair(task, their_settings, settings):
    """sb3-contrib's model and our method, with the same weights."""
    defaults = {"n_steps": SIZE, "batch_size": SIZE, "n_critic_updates": 1}
    model = theirs(TRPO, task, rollout_buffer_class=DoubleRollouts, **defaults | their_settings)
    perturb(model.policy, 0.2)  # the last layer of a fresh policy is near 0
    method = ours("trpo", task, envs=1, window=SIZE, epochs=1, minibatches=1, **settings)
    load(policy_parameters(method), their_policy(model, lambda p: p))
    load(method.critic.parameters(), their_critic(model, lambda p: p))
    method.old_policy.load_state_dict(method.policy.state_dict())
    return model, method


def decisions(method):
    """A batch [B] of the present policy."""
    action = torch.randint(3, (SIZE,)) if method.spec.discrete else single(torch.randn(SIZE, 2))
    batch = TensorDict({"obs": single(torch.randn(SIZE, 3)), "action": action}, batch_size=[SIZE])
    with torch.no_grad():
        batch["log_prob"] = method.policy.log_prob(batch)
        batch["value"] = method.critic.value(batch)
    batch["advantage"] = 2 * torch.randn(SIZE) + 0.5
    batch["returns"] = batch["value"] + torch.randn(SIZE)
    return batch


def steps_of(task, their_settings, settings):
    """((our, their) step of the policy, (our, their) gradients of the critic).

    Their conjugate gradients begin at a random point near 0, ours at 0: the draw is 0 here. They end at a residual of
    1e-5, whatever the gradient's length: not here. Their divergence of Gaussians is a mean over coordinates.
    """
    settings = {"max_kl": 0.01, "damping": 0.1} | settings
    if task is spaces.box:
        settings |= {name: settings[name] * COORDINATES for name in ("max_kl", "damping")}
    model, method = pair(task, their_settings, settings)
    batch = decisions(method)
    fill(model.rollout_buffer, batch)
    before = [p.detach().clone() for p in policy_parameters(method)]
    expected, gradients = record(model.policy.optimizer), record(method.value_optimizer)
    solver = partial(conjugate_gradient_solver, residual_tol=0.0)
    with (
        mock.patch("sb3_contrib.common.utils.th.randn_like", torch.zeros_like),
        mock.patch("sb3_contrib.trpo.trpo.conjugate_gradient_solver", solver),
    ):
        model.train()
    if method.config.advantage_over == "batch":
        batch["advantage"] = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    method.improve(weigh(batch))
    moved = [p.detach() - start for p, start in zip(policy_parameters(method), before)]
    theirs_moved = [p - start for p, start in zip(their_policy(model, lambda p: p), before)]
    return (moved, theirs_moved), (
        [gradients[p] for p in method.critic.parameters()],
        their_critic(model, expected.get),
    )


@pytest.mark.parametrize("task", [spaces.box, spaces.discrete])
@pytest.mark.parametrize(
    ("their_settings", "settings", "changed"),
    [
        ({}, {}, {"max_kl": 0.02}),
        ({"cg_max_steps": 4}, {"solver_steps": 4}, {"solver_steps": 5}),
        (SHORT, {"damping": 0.01, "solver_steps": 6, "max_kl": 1e-4}, {"damping": 0.1}),
        ({"target_kl": 0.003}, {"max_kl": 0.003}, {"damping": 0.2}),
        ({"normalize_advantage": False}, {"advantage_over": "none"}, {"entropy_coefficient": 1.0}),
    ],
)
def test_the_step(task, their_settings, settings, changed):
    assert relative_error(*steps_of(task, their_settings, settings)[0]) < TOLERANCE
    assert relative_error(*steps_of(task, their_settings, settings | changed)[0]) > 1e-3


@pytest.mark.parametrize(("coefficient", "equal"), [(2.0, True), (1.0, False)])
def test_the_critics_gradient(coefficient, equal):
    """Theirs is the mean squared error; ours has a half, and the coefficient takes it away."""
    assert (relative_error(*steps_of(spaces.box, {}, {"value_coefficient": coefficient})[1]) < TOLERANCE) == equal

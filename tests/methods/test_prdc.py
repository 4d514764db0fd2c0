"""PRDC: what its paper must not be without, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from polopt import registry
from polopt.core.batch import weigh
from polopt.training import api
from tests.guards import spaces as tasks

MUST = 4
SMALL = {"dataset": "random", "random_episodes": 3, "batch_size": 16, "network.sizes": (8,), "loggers": ()}


def make(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("prdc", task, seed=1, **SMALL | changes).build()


def standardized(method: Any, obs: torch.Tensor) -> np.ndarray:
    data = method.source.data["obs"].double().numpy()
    return (obs.numpy() - data.mean(0)) / (data.std(0) + 1e-3)


def borrowed(method: Any, batch: Any) -> torch.Tensor:
    """What the library takes for the policy's present actions."""
    method.nearest = method.nearest or method.look_up()
    return method.borrowed(batch["obs"], method.policy.rsample(batch["obs"])[0])


def neighbor(method: Any, obs: torch.Tensor, action: torch.Tensor, beta: float) -> torch.Tensor:
    """The action of the nearest pair, by a tree, as in the released code."""
    data = method.source.data
    pairs = np.hstack([beta * standardized(method, data["obs"]), data["action"].clamp(-1, 1).numpy()])
    _, index = KDTree(pairs).query(np.hstack([beta * standardized(method, obs), action.detach().numpy()]))
    return data["action"].clamp(-1, 1)[index]


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 100.0])
def test_must_1_the_search_is_over_all_pairs_with_the_present_action(beta, float64):
    method = make(beta=beta)
    batch = method.collect()
    action, _ = method.policy.rsample(batch["obs"])
    found = borrowed(method, batch)
    torch.testing.assert_close(found, neighbor(method, batch["obs"], action, beta))
    own = (found == batch["action"]).all(-1)
    assert own.all() == (beta == 100.0)  # then the nearest pair is the row itself
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(1.0)
    moved, _ = method.policy.rsample(batch["obs"])
    torch.testing.assert_close(borrowed(method, batch), neighbor(method, batch["obs"], moved, beta))
    assert torch.equal(borrowed(method, batch), found) == (beta == 100.0)


def test_must_2_neighbors_are_constants_of_the_policy_loss(float64):
    method = make(alpha=0.0)
    batch = weigh(method.collect())
    action, _ = method.policy.rsample(batch["obs"])
    target = borrowed(method, batch)
    assert not target.requires_grad
    expected = torch.autograd.grad((action - target).square().mean(), list(method.policy.parameters()))
    kept = batch["action"].clone()
    metrics = method.improve(batch)
    assert torch.equal(batch["action"], kept)  # what the critics learn from stays
    for parameter, grad in zip(method.policy.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)
    assert float(metrics["imitation_loss"]) == pytest.approx(float((action - target).detach().square().mean()))


def test_must_3_values_are_divided_by_their_size_and_halfcheetah_has_its_alpha(float64):
    method = make(alpha=40.0)
    batch = weigh(method.collect())
    action, _ = method.policy.rsample(batch["obs"])
    q = method.clipped.critic(batch["obs"], action)[0]
    loss = -40.0 * q.mean() / q.detach().abs().mean() + (action - borrowed(method, batch)).square().mean()
    expected = torch.autograd.grad(loss, list(method.policy.parameters()))
    method.improve(batch)
    for parameter, grad in zip(method.policy.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)
    presets = registry.load("prdc").presets
    assert {name: preset["alpha"] for name, preset in presets.items()} == {
        "halfcheetah": 40.0,
        "hopper": 2.5,
        "walker2d": 2.5,
        "antmaze": 7.5,
    }
    assert (presets["antmaze"]["beta"], registry.load("prdc").Config().beta) == (7.5, 2.0)


def test_must_4_observations_are_standardized_before_they_are_weighed(float64):
    method = make("Pendulum-v1", beta=3.0)
    obs = method.source.data["obs"][:7].double()
    pairs = method.pairs(obs, torch.zeros(7, 1))
    np.testing.assert_allclose(pairs[:, :3], 3.0 * standardized(method, obs), rtol=1e-9)
    raw = make("Pendulum-v1", beta=3.0, normalize_obs=False)
    torch.testing.assert_close(raw.pairs(obs, torch.zeros(7, 1))[:, :3], 3.0 * obs)


def test_pairs_are_scaled_by_the_statistics_that_a_policy_brings(float64):
    """With `--init` those of another dataset come after this one was read."""
    method = make("Pendulum-v1", beta=1.0)
    method.policy.normalizer.mean += 2.0
    method.policy.normalizer.variance *= 9.0
    method.recorded["action"][0] = 7.0  # beyond the bounds, where a policy never acts
    method.improve(weigh(method.collect()))
    assert method.actions[0] == 1.0
    torch.testing.assert_close(torch.cat(method.nearest.points), method.pairs(method.recorded["obs"], method.actions))


def test_rewards_of_antmaze_are_scaled_as_in_the_released_code():
    method = make(rewards="sparse")
    assert (method.reward_scale, method.reward_shift) == (1e4, -1.0)


def test_without_beta_it_searches_nothing():
    method = make(beta=None)
    method.update(method.collect())
    method.update(method.collect())
    assert method.nearest is None


def test_the_dataset_is_the_constraint_also_online_and_is_no_part_of_a_checkpoint():
    from polopt.core.state import gather

    method = make("Pendulum-v1", offline_updates=2, replay_size=2_000)
    for _ in range(6):
        method.update(method.collect())
    assert method.ledger.env_steps == 4
    assert len(method.actions) == 600
    assert not any(name.startswith(("nearest", "actions", "recorded")) for name in gather(method))

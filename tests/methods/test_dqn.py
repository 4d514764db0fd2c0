"""DQN and its options, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks.grid.exact import Exact
from polopt.training import api
from tests.guards import spaces as tasks
from tests.methods.finite import LINEAR, batch_of, huber, linear, randomize

SMALL = {"warmup": 8, "batch_size": 16, "network.sizes": (8,), "replay_size": 500, "steps_per_update": 1, "loggers": ()}


def make(task: Any = "CartPole-v1", **changes: Any) -> Any:
    return api.plan("dqn", task, seed=1, **SMALL | changes).build()


@pytest.mark.parametrize("double", [False, True])
def test_target_and_loss_by_hand(float64, double):
    method = make(double=double, delta=0.5, **LINEAR)
    randomize(method.target_critic, method.policy)
    batch = method.evaluate_batch(batch_of())
    slow, fast = linear(method.target_critic, batch["next_obs"])[0], linear(method.policy.net, batch["next_obs"])[0]
    best = (fast if double else slow).argmax(1)
    assert (fast.argmax(1) != slow.argmax(1)).any()
    after = np.where(batch["terminated"], 0.0, slow[np.arange(6), best])
    target = batch["reward"].numpy() + 0.9 * after
    np.testing.assert_allclose(batch["target"], target, rtol=1e-12)

    q = linear(method.policy.net, batch["obs"])[0][np.arange(6), batch["action"]]
    loss, metrics = method.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx(huber(q - target, 0.5).mean())
    assert float(metrics["q"].detach()) == pytest.approx(q.mean())
    gradient = torch.autograd.grad(loss, next(iter(method.policy.parameters())))[0][0]
    slope = (np.clip(q - target, -0.5, 0.5)[:, None] * np.eye(2)[batch["action"]]) / 6
    np.testing.assert_allclose(gradient, batch["obs"].numpy().T @ slope, rtol=1e-10)


def test_rare_samples_weigh_less_and_priorities_are_the_errors(float64):
    method = make(priority_exponent=0.5, priority_correction=0.3, **LINEAR)
    randomize(method.target_critic, method.policy)
    method.collect()
    method.replay.update_priorities(torch.arange(8), torch.linspace(0.1, 4.0, 8))
    batch, leaves = method.collect(), method.replay._tree.leaves.clone()
    expected = (len(method.replay) * leaves[batch["index"]] / leaves.sum()) ** -0.3
    torch.testing.assert_close(batch["importance"], expected / expected.max())
    assert float(batch["importance"].min()) < 0.9
    batch = method.evaluate_batch(batch)
    torch.testing.assert_close(batch["critic_weight"], batch["importance"] / 16)
    q = linear(method.policy.net, batch["obs"])[0][np.arange(16), batch["action"]]
    leaves = method.replay._tree.leaves[batch["index"]]
    np.testing.assert_allclose(leaves, (np.abs(q - batch["target"].numpy()) + 1e-6) ** 0.5, rtol=1e-9)
    method.progress = 0.5
    method.collect()
    assert method.replay.priority.correction == pytest.approx(0.65)


def test_the_mean_of_the_advantages_is_taken_off(float64):
    method = make(dueling=True, **LINEAR)
    randomize(method.policy)
    obs = batch_of()["obs"]
    *advantages, value = linear(method.policy.net, obs)[0].T
    expected = value + np.array(advantages) - np.mean(advantages, 0)
    np.testing.assert_allclose(method.policy.values(obs).detach(), expected.T, rtol=1e-10)


def test_gradients_are_cut():
    moved = []
    for norm in (None, 1e-12):  # far below Adam's epsilon
        method = make(max_grad_norm=norm)
        batch, before = method.collect(), [p.clone() for p in method.policy.parameters()]
        method.update(batch)
        moved.append(max(float((p - b).abs().max()) for p, b in zip(method.policy.parameters(), before)))
    assert moved[1] < 0.01 * moved[0]


def test_epsilon_falls_along_a_line_and_stays():
    method = make(exploration=0.2, epsilon_start=0.9, epsilon=0.1)
    found = []
    for progress in (0.0, 0.1, 0.2, 0.7):
        method.progress = progress
        found.append(float(method.update(method.collect())["epsilon"]))
    assert found == pytest.approx([0.9, 0.5, 0.1, 0.1])
    assert make(exploration=0.0).epsilon == pytest.approx(0.1)
    assert method.behavior is method.explorer


def test_the_copy_is_renewed_after_every_so_many_updates():
    method, other = make(target_every=3), make(target_every=2, tau=0.25)
    for update in range(1, 7):
        before = [p.clone() for p in method.target_critic.parameters()]
        method.update(method.collect())
        live = list(method.policy.net.parameters())
        assert all(map(torch.equal, method.target_critic.parameters(), live if update % 3 == 0 else before))
    slow = [p.clone() for p in other.target_critic.parameters()]
    for _ in range(2):
        other.update(other.collect())
    for was, now, live in zip(slow, other.target_critic.parameters(), other.policy.net.parameters()):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * live)


def test_several_steps_of_reward():
    method = make(n_step=3, discount=0.5)
    batch = method.collect()
    assert set(batch["discount"].tolist()) <= {0.5, 0.25, 0.125}
    assert 0.125 in batch["discount"]
    method.target_critic.forward = lambda obs: torch.ones(1, 16, 2)
    expected = batch["reward"] + torch.where(batch["terminated"], 0.0, batch["discount"])
    torch.testing.assert_close(method.evaluate_batch(batch)["target"], expected)


def test_forbidden_actions_are_no_part_of_targets():
    method = make(**LINEAR)
    method.policy.allowed = lambda obs: torch.tensor([[True, False]]).expand(6, 2)
    batch = method.evaluate_batch(batch_of())
    slow = linear(method.target_critic, batch["next_obs"])[0][:, 0]
    expected = batch["reward"].numpy() + np.where(batch["terminated"], 0.0, 0.9 * slow)
    np.testing.assert_allclose(batch["target"], expected, rtol=1e-5)


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="values of all actions need a Discrete space"):
        make("Pendulum-v1")
    with pytest.raises(UsageError, match="priority_correction has no effect where priority_exponent is 0"):
        make(priority_correction=0.6)
    with pytest.raises(UsageError, match="feed-forward"):
        make(**{"network.recurrent": "gru"})
    assert make(tasks.finite).update is not None  # observations that are numbers


def test_it_finds_the_shortest_way():
    """From one corner of a grid to the other in eight steps, with values that are known: a table would have them."""
    settings = {"envs": 8, "warmup": 3_000, "discount": 0.9, "lr": 0.05, "batch_size": 128, "replay_size": 20_000}
    options = {"double": True, "dueling": True, "priority_exponent": 0.6, "target_every": 8, "max_grad_norm": None}
    method = make("grid/5x5", **settings | options | LINEAR)
    for update in range(600):
        method.progress = update / 600
        method.update(method.collect())
    task = method.task.twin(1)
    assert method.evaluate(task, 1)["length"] == 8
    best = Exact(task).optimal(0.9)[1][0, 0]
    assert float(method.policy.values(task.reset()).detach().max()) == pytest.approx(float(best), rel=0.2)

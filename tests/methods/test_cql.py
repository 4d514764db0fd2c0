"""CQL: the conservative term, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.training import api
from tests.methods.finite import LINEAR, batch_of, huber, linear, randomize

SMALL = {"dataset": "random", "random_episodes": 4, "batch_size": 16, "network.sizes": (8,), "loggers": ()}


def make(task: Any = "CartPole-v1", **changes: Any) -> Any:
    return api.plan("cql", task, seed=1, **SMALL | changes).build()


def test_the_loss_by_hand(float64):
    method = make(conservatism=0.7, discount=0.9, **LINEAR)
    randomize(method.policy, method.target_critic)
    batch = method.evaluate_batch(batch_of())
    after = linear(method.policy.net, batch["next_obs"])[0].argmax(1)  # double by default
    slow = linear(method.target_critic, batch["next_obs"])[0][np.arange(6), after]
    target = batch["reward"].numpy() + 0.9 * np.where(batch["terminated"], 0.0, slow)
    np.testing.assert_allclose(batch["target"], target, rtol=1e-12)
    values = linear(method.policy.net, batch["obs"])[0]
    q = values[np.arange(6), batch["action"]]
    gap = (np.log(np.exp(values).sum(1)) - q).mean()
    loss, metrics = method.critic_loss(batch)
    assert float(metrics["q_gap"]) == pytest.approx(gap)
    assert float(metrics["critic_loss"]) == pytest.approx(huber(q - target).mean())
    assert float(loss.detach()) == pytest.approx(huber(q - target).mean() + 0.7 * gap)
    gradient = torch.autograd.grad(loss, next(iter(method.policy.parameters())))[0][0]
    recorded = np.eye(2)[batch["action"]]
    softmax = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    slope = np.clip(q - target, -1, 1)[:, None] * recorded + 0.7 * (softmax - recorded)
    np.testing.assert_allclose(gradient, batch["obs"].numpy().T @ slope / 6, rtol=1e-8)


def test_forbidden_actions_are_not_held_down(float64):
    """Of one allowed action the gap is 0: what the others are worth says nothing of the policy."""
    method = make(**LINEAR)
    randomize(method.policy)
    batch = method.evaluate_batch(batch_of())
    only = torch.nn.functional.one_hot(batch["action"], 2).bool()
    assert float(method.critic_loss(batch)[1]["q_gap"].detach()) > 0.01
    method.policy.allowed = lambda obs: only
    assert float(method.critic_loss(batch)[1]["q_gap"].detach()) == pytest.approx(0.0, abs=1e-12)


def test_it_holds_down_what_the_data_do_not_have():
    """Of one-sided data: with conservatism the recorded action is worth more, without it may be anything."""
    found = {}
    for conservatism in (0.0, 5.0):
        method = make(conservatism=conservatism, lr=1e-2)
        batch = batch_of(64)
        batch["action"] = batch["action"] * 0 + 1
        for _ in range(100):
            method.update(batch)
        found[conservatism] = float((method.policy.act(batch["obs"])[0]["action"] == 1).float().mean())
    assert found[5.0] == 1.0
    assert found[0.0] < 0.9


@pytest.mark.parametrize("name", ["cql", "bcq"])
def test_what_has_no_effect_is_refused(name):
    with pytest.raises(UsageError, match="epsilon has no effect without offline_updates"):
        api.plan(name, "CartPole-v1", **SMALL | {"epsilon": 0.2})
    with pytest.raises(UsageError, match="values of all actions need a Discrete space"):
        api.plan(name, "Pendulum-v1", **SMALL).build()


def test_it_goes_on_online_exploring():
    method = make(offline_updates=2, epsilon=0.5, replay_size=2_000)
    method.prepare_all()
    for _ in range(4):
        method.update(method.collect())
    assert method.ledger.env_steps == 2
    assert method.behavior.epsilon == 0.5

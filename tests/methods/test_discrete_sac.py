"""Discrete SAC: its sums over actions, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.training import api
from tests.methods.finite import LINEAR, batch_of, linear, randomize

SMALL = {"warmup": 8, "batch_size": 16, "network.sizes": (8,), "replay_size": 500, "steps_per_update": 1, "loggers": ()}


def make(task: Any = "CartPole-v1", **changes: Any) -> Any:
    return api.plan("discrete-sac", task, seed=1, **SMALL | changes).build()


def softmax(policy: Any, obs: torch.Tensor) -> np.ndarray:
    weight, bias = (parameter.detach().numpy() for parameter in policy.parameters())
    logits = obs.numpy() @ weight.T + bias
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_losses_by_hand(float64):
    method = make(**{"entropy.initial": 0.3}, reward_scale=2.0, **LINEAR)
    randomize(method.policy, method.critic, method.target_critic)
    batch = weigh(batch_of())
    p = softmax(method.policy, batch["next_obs"])
    value = (p * (linear(method.target_critic, batch["next_obs"]).min(0) - 0.3 * np.log(p))).sum(1)
    target = 2.0 * batch["reward"].numpy() + 0.9 * np.where(batch["terminated"], 0.0, value)
    np.testing.assert_allclose(method.target(batch), target, rtol=1e-10)

    q = linear(method.critic, batch["obs"])
    assert q.shape == (2, 6, 2)
    loss, _ = method.critic_loss(batch)
    error = q[:, np.arange(6), batch["action"]] - target
    assert float(loss.detach()) == pytest.approx((error**2 / 2).mean(1).sum())

    p = softmax(method.policy, batch["obs"])
    loss, metrics = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx((p * (0.3 * np.log(p) - q.min(0))).sum(1).mean())
    assert float(metrics["entropy"]) == pytest.approx(-(p * np.log(p)).sum(1).mean())
    loss.backward()
    score = p * (0.3 * np.log(p) - q.min(0))  # d/dlogit_k of sum_a p_a (0.3 log p_a - q_a)
    slope = score - p * score.sum(1, keepdims=True)
    np.testing.assert_allclose(next(method.policy.parameters()).grad, slope.T @ batch["obs"].numpy() / 6, rtol=1e-8)
    assert all(parameter.grad is None for parameter in method.critic.parameters())


def test_an_update_moves_all_of_it():
    method = make(tau=0.25)
    batch = method.collect()
    trained = {"policy": method.policy, "critic": method.critic, "temperature": method.temperature}
    before = {name: [p.clone() for p in part.parameters()] for name, part in trained.items()}
    slow = [p.clone() for p in method.target_critic.parameters()]
    method.update(batch)
    for name, part in trained.items():
        assert any(not torch.equal(p, was) for p, was in zip(part.parameters(), before[name])), name
    for was, now, live in zip(slow, method.target_critic.parameters(), method.critic.parameters()):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * live)


def test_the_policy_may_follow_the_mean_of_the_critics(float64):
    method = make(policy_critic="mean", **LINEAR)
    randomize(method.policy, method.critic)
    batch = weigh(batch_of())
    p, q = softmax(method.policy, batch["obs"]), linear(method.critic, batch["obs"]).mean(0)
    assert float(method.policy_loss(batch)[0].detach()) == pytest.approx((p * (np.log(p) - q)).sum(1).mean())


def test_the_temperature_holds_a_share_of_the_largest_entropy():
    batch = weigh(batch_of(16))
    for entropy_share, rises in ((1.0, True), (0.01, False)):
        method = make(entropy_share=entropy_share)
        before = float(method.temperature.value)
        entropy = float(method.improve(batch)["entropy"])
        assert 0.01 * np.log(2) < entropy < np.log(2)
        assert (float(method.temperature.value) > before) == rises
    for off, rises in ((1.01, True), (0.99, False)):
        method = make(entropy_share=off * entropy / np.log(2))
        method.improve(batch)
        assert (float(method.temperature.value) > before) == rises
    for off, rises in ((1.01, True), (0.99, False)):
        nats = make(**{"entropy.target_entropy": off * entropy})
        nats.improve(batch)
        assert (float(nats.temperature.value) > before) == rises
    assert make(**{"entropy.form": "log-alpha"}).temperature.form == "log-alpha"
    fixed = make(entropy="fixed", **{"entropy.value": 0.1})
    fixed.update(fixed.collect())
    assert float(fixed.temperature.value) == pytest.approx(0.1)


def test_the_largest_entropy_counts_legal_actions_only():
    method = make()
    batch = weigh(batch_of(2))
    assert float(method.largest_entropy(batch)) == pytest.approx(np.log(2))
    mask = torch.tensor([[True, True], [True, False]])
    masked = TensorDict({**batch, "action_mask": mask}, batch_size=[2])
    assert float(method.largest_entropy(masked)) == pytest.approx(np.log(2) / 2)


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="a categorical policy needs a Discrete action space"):
        make("Pendulum-v1")
    with pytest.raises(UsageError, match="entropy_share has no effect with a fixed temperature"):
        make(entropy="fixed", entropy_share=0.5)
    with pytest.raises(UsageError, match=r"entropy_share has no effect beside entropy\.target_entropy"):
        make(entropy_share=0.5, **{"entropy.target_entropy": 0.5})
    with pytest.raises(UsageError, match="feed-forward"):
        make(**{"network.recurrent": "gru"})

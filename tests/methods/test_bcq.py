"""BCQ for finitely many actions: the restriction and the model, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional

from polopt.core.batch import weigh
from polopt.methods.offline.bcq import likely
from polopt.training import api
from tests.methods.finite import LINEAR, batch_of, linear, randomize

SMALL = {"dataset": "random", "random_episodes": 4, "batch_size": 16, "network.sizes": (8,), "loggers": ()}


def make(task: Any = "CartPole-v1", **changes: Any) -> Any:
    return api.plan("bcq", task, seed=1, **SMALL | changes).build()


def test_what_is_likely():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).log()
    assert likely(logits, 0.25).tolist() == [[True, True, False], [True, True, False]]
    assert likely(logits, 0.3).tolist() == [[True, False, False], [True, True, False]]
    assert likely(logits, 1.0).tolist() == [[True, False, False], [True, True, False]]  # the likeliest always is
    assert likely(logits, 0.0).tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("double", [True, False])
def test_only_likely_actions_are_compared(float64, double):
    method = make(threshold=0.5, double=double, discount=0.9, **LINEAR)
    randomize(method.policy, method.target_critic)
    batch = method.evaluate_batch(batch_of(40))
    weight, bias = (parameter.detach().numpy() for parameter in method.policy.model.parameters())

    def best(values: np.ndarray, obs: torch.Tensor) -> np.ndarray:
        logits = obs.numpy() @ weight.T + bias
        ratio = np.exp(logits - logits.max(1, keepdims=True))
        restricted = np.where(ratio > 0.5, values, -np.inf)
        assert (restricted.argmax(1) != values.argmax(1)).any()
        return restricted.argmax(1)

    after = batch["next_obs"]
    slow, fast = linear(method.target_critic, after)[0], linear(method.policy.net, after)[0]
    chosen = best(fast if double else slow, after)
    target = batch["reward"].numpy() + 0.9 * np.where(batch["terminated"], 0.0, slow[np.arange(40), chosen])
    np.testing.assert_allclose(batch["target"], target, rtol=1e-10)
    acted = method.policy.act(batch["obs"])[0]["action"]
    np.testing.assert_array_equal(acted, best(linear(method.policy.net, batch["obs"])[0], batch["obs"]))


def test_a_forbidden_action_is_never_likely(float64):
    """However likely the model finds it; of the legal ones the likeliest then counts."""
    method = make(threshold=0.5, **LINEAR)
    randomize(method.policy)
    obs = batch_of(40)["obs"]
    likeliest = method.policy.model.net(obs).argmax(1)
    assert method.policy.allowed(obs)[torch.arange(40), likeliest].all()
    mask = torch.nn.functional.one_hot(1 - likeliest, 2).bool()
    seen = TensorDict({"state": obs, "action_mask": mask}, [40])
    inner = method.policy.model.net
    forward = inner.forward
    inner.forward = lambda obs: forward(obs["state"])
    assert torch.equal(method.policy.allowed(seen), mask)


def test_the_model_is_cloned_with_small_logits(float64):
    method = make(logit_decay=0.1, threshold=0.5, **LINEAR)
    randomize(method.policy)
    batch = weigh(batch_of())
    weight, bias = (parameter.detach().numpy() for parameter in method.policy.model.parameters())
    logits = batch["obs"].numpy() @ weight.T + bias
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nll = -log_p[np.arange(6), batch["action"]].mean()
    loss, metrics = method.imitation_loss(batch)
    assert float(metrics["imitation_loss"]) == pytest.approx(nll)
    assert float(loss.detach()) == pytest.approx(nll + 0.1 * (logits**2).mean())
    ratio = np.exp(logits - logits.max(1, keepdims=True))
    assert float(metrics["allowed"]) == pytest.approx((ratio > 0.5).sum(1).mean())


def test_the_terms_weigh_as_in_the_official_code(float64):
    method = make(**LINEAR)
    assert method.policy.threshold == 0.3
    randomize(method.policy, method.target_critic)
    batch = method.evaluate_batch(batch_of(40))
    q, logits = method.policy.net(batch["obs"])[0], method.policy.model.net(batch["obs"])
    recorded = q.gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    expected = functional.smooth_l1_loss(recorded, batch["target"]) + functional.cross_entropy(logits, batch["action"])
    expected = expected + 1e-2 * logits.pow(2).mean()
    assert float(method.critic_loss(batch)[0] + method.imitation_loss(batch)[0]) == pytest.approx(float(expected))


def test_each_optimizer_moves_its_own_network():
    method = make()
    method.prepare_all()
    before = {name: p.clone() for name, p in method.policy.named_parameters()}
    batch = method.collect()
    method.optimizer.minimize(method.critic_loss, method.evaluate_batch(batch))
    assert {n for n, p in method.policy.named_parameters() if not torch.equal(p, before[n])} == {
        n for n in before if n.startswith("net.")
    }
    before = {name: p.clone() for name, p in method.policy.named_parameters()}
    method.update(batch)
    assert all(not torch.equal(p, before[n]) for n, p in method.policy.named_parameters() if n.endswith("weight"))


def test_near_one_it_clones():
    method = make(threshold=1.0, lr=3e-2)
    batch = batch_of(64)
    batch["action"] = (batch["obs"][:, 0] > 0).long()
    batch["reward"] = -batch["action"].float() * 10.0  # values want the other one
    for _ in range(100):
        method.update(batch)
    assert float((method.policy.act(batch["obs"])[0]["action"] == batch["action"]).float().mean()) > 0.95

"""TD3: its gradients and targets with numbers worked out here, and what moves when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.training import api
from tests.guards import spaces as tasks

SMALL = {"warmup": 8, "batch_size": 16, "network.sizes": (8,), "replay_size": 500, "loggers": ()}
LINEAR = {"network.sizes": (), "network.activation": "relu"}


def make(task: Any = "Pendulum-v1", **changes: Any) -> Any:
    return api.plan("td3", task, seed=1, **SMALL | changes).build()


def batch_of(size: int = 6, **keys: Any) -> Any:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator)

    batch = {
        "obs": draw(3),
        "action": draw(1).tanh(),
        "reward": draw(),
        "next_obs": draw(3),
        "terminated": torch.zeros(size, dtype=torch.bool),
        "truncated": torch.zeros(size, dtype=torch.bool),
        "discount": torch.full((size,), 0.99),
    }
    return weigh(TensorDict(batch | keys, batch_size=[size]))


def numbers(parameters: Any) -> list[np.ndarray]:
    return [parameter.detach().numpy() for parameter in parameters]


def apart(method: Any) -> None:
    """Moves every network, so that no copy equals its source."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in (method.policy, method.target_policy, method.clipped.critic, method.clipped.target_critic):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_gradients_by_hand(float64):
    """Without hidden layers: pi(s) = tanh(W s + b), Q_i(s, a) = u_i . (s, a) + c_i."""
    method = make(target_noise=0.0, **LINEAR)
    apart(method)
    batch = batch_of(terminated=torch.tensor([False, True, False, False, True, False])).double()
    batch["terminated"] = batch["terminated"].bool()
    s, a, r, after = (batch[key].numpy() for key in ("obs", "action", "reward", "next_obs"))
    w, b = numbers(method.policy.parameters())
    target_w, target_b = numbers(method.target_policy.parameters())
    u, c = numbers(method.clipped.critic.parameters())  # [2, 4, 1] and [2, 1, 1]
    target_u, target_c = numbers(method.clipped.target_critic.parameters())

    next_action = np.tanh(after @ target_w.T + target_b)
    next_q = np.concatenate([after, next_action], 1) @ target_u + target_c  # [2, 6, 1]
    target = r + 0.99 * np.where(batch["terminated"], 0.0, next_q.min(0)[:, 0])
    batch["target"] = method.evaluate_batch(batch)["target"]
    np.testing.assert_allclose(batch["target"], target, rtol=1e-12)

    pairs = np.concatenate([s, a], 1)
    error = (pairs @ u + c)[..., 0] - target  # [2, 6]
    loss, _ = method.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx((error**2).mean(1).sum())
    grads = torch.autograd.grad(loss, list(method.clipped.critic.parameters()))
    np.testing.assert_allclose(grads[0][..., 0], 2 * error @ pairs / 6, rtol=1e-10)
    np.testing.assert_allclose(grads[1][..., 0], 2 * error.mean(1, keepdims=True), rtol=1e-10)

    action = np.tanh(s @ w.T + b)
    loss, _ = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx(
        -(np.concatenate([s, action], 1) @ u[0] + c[0]).mean()
    )  # the first critic's
    slope = -u[0, 3, 0] * (1 - action**2) / 6
    grads = torch.autograd.grad(loss, list(method.policy.parameters()))
    np.testing.assert_allclose(grads[0], slope.T @ s, rtol=1e-10)
    np.testing.assert_allclose(grads[1], slope.sum(0), rtol=1e-10)


def test_targets_are_smoothed_around_the_target_policy():
    method = make(target_noise=0.3, target_noise_clip=0.25)
    seen = []
    method.target_policy.rsample = lambda obs: (torch.full((6, 1), 0.9), None)
    method.policy.rsample = lambda obs: pytest.fail("the present policy has no part in targets")
    method.clipped.target_critic.forward = lambda obs, action: (seen.append(action), torch.zeros(2, 6))[1]
    batch = batch_of()
    torch.manual_seed(3)
    method.evaluate_batch(batch)
    torch.manual_seed(3)
    noise = (0.3 * torch.randn(6, 1)).clamp(-0.25, 0.25)
    torch.testing.assert_close(seen[0], (0.9 + noise).clamp(-1.0, 1.0))
    assert (seen[0] == 1.0).any()
    assert (seen[0] == 0.65).any()


def moved(before: dict[str, torch.Tensor], module: Any) -> bool:
    return any(not torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_policy_and_targets_move_on_every_second_update_and_after_the_critics():
    method = make(delay=2, tau=0.25)
    parts = {
        "policy": method.policy,
        "target_policy": method.target_policy,
        "critic": method.clipped.critic,
        "target_critic": method.clipped.target_critic,
    }
    found = []
    for _ in range(4):
        before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
        metrics = method.update(method.collect())
        found.append({name for name, part in parts.items() if moved(before[name], part)})
        assert ("policy_loss" in metrics) == (len(found[-1]) == 4)
        if "target_critic" in found[-1]:
            for live, slow in (("policy", "target_policy"), ("critic", "target_critic")):
                for name, value in parts[slow].state_dict().items():
                    new = parts[live].state_dict()[name]
                    torch.testing.assert_close(value, 0.75 * before[slow][name] + 0.25 * new)
    assert found == [{"critic"}, set(parts), {"critic"}, set(parts)]


def test_the_policy_step_sees_the_critics_after_theirs():
    method, other = make(delay=1), make(delay=1)
    batch = method.collect()
    torch.manual_seed(0)
    method.update(batch)
    torch.manual_seed(0)
    known = other.evaluate_batch(batch)
    other.critic_optimizer.minimize(other.critic_loss, known)
    other.policy_optimizer.minimize(other.policy_loss, known)
    for one, two in zip(method.policy.parameters(), other.policy.parameters()):
        assert torch.equal(one, two)
    assert all(parameter.grad is None for parameter in make().clipped.critic.parameters())


def test_it_explores_with_noise_and_is_evaluated_without():
    method = make(exploration_noise=0.1)
    obs = torch.zeros(20_000, 3)
    clean, _ = method.policy.act(obs)
    acted, _ = method.behavior.act(obs)
    assert float((acted["action"] - clean["action"]).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(method.behavior.act(obs, greedy=True)[0]["action"], clean["action"])
    assert torch.equal(make(exploration_noise=0.0).behavior.act(obs)[0]["action"], clean["action"])


def test_several_steps_of_reward():
    method = make(n_step=3, discount=0.5)
    batch = method.collect()
    assert set(batch["discount"].tolist()) <= {0.5, 0.25, 0.125}
    method.target_policy.rsample = lambda obs: (torch.zeros(16, 1), None)
    method.clipped.target_critic.forward = lambda obs, action: torch.ones(2, 16)
    torch.testing.assert_close(method.evaluate_batch(batch)["target"], batch["reward"] + batch["discount"])


def test_networks_of_policy_and_critics_may_differ():
    method = make(**{"critic_network": "network", "critic_network.sizes": (5, 4), "critic_network.activation": "tanh"})
    sizes = [tuple(parameter.shape) for parameter in method.clipped.critic.parameters()]
    assert sizes[0] == (2, 4, 5)
    assert next(method.policy.parameters()).shape == (8, 3)


def test_one_update_for_every_step_after_the_warmup():
    method = make(warmup=8, envs=2)
    for _ in range(6):
        method.update(method.collect())
    assert method.ledger.env_steps == 8 + 6


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="has no effect without target_noise"):
        make(target_noise=0.0, target_noise_clip=0.1)
    with pytest.raises(UsageError, match="td3 draws single decisions, which a recurrent policy cannot learn from"):
        make(**{"network.recurrent": "gru", "critic_network": "network"})
    with pytest.raises(UsageError, match="a deterministic policy needs a Box action space with finite bounds"):
        make(tasks.discrete)

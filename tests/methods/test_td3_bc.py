"""TD3+BC: its policy gradient with numbers worked out here, how it sees observations, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polopt
from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.training import api
from tests.guards import spaces as tasks
from tests.methods.test_iql import OneStep

SMALL = {"dataset": "random", "random_episodes": 2, "batch_size": 16, "network.sizes": (8,), "loggers": ()}
LINEAR = {"network.sizes": (), "network.activation": "relu", "normalize_obs": False}


def make(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("td3-bc", task, seed=1, **SMALL | changes).build()


@pytest.mark.parametrize("alpha", [2.5, 0.4])
def test_gradients_by_hand(alpha, float64):
    """Without hidden layers: pi(s) = tanh(W s + b), Q_1(s, a) = u . (s, a) + c."""
    method = make(alpha=alpha, **LINEAR)
    batch = weigh(method.collect())
    s, a = batch["obs"].numpy(), batch["action"].numpy()
    w, b = (parameter.detach().numpy() for parameter in method.policy.parameters())
    u, c = (parameter.detach().numpy()[0] for parameter in method.clipped.critic.parameters())
    action = np.tanh(s @ w.T + b)
    q = (np.concatenate([s, action], 1) @ u + c)[:, 0]
    scale = alpha / np.abs(q).mean()  # a constant of the gradient
    error = action - a  # [16, 2]
    slope = (1 - action**2) * (-scale * u[s.shape[1] :, 0] / 16 + 2 * error / error.size)
    loss, metrics = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx(-scale * q.mean() + (error**2).mean())
    assert float(metrics["imitation_loss"].detach()) == pytest.approx((error**2).mean())
    assert float(metrics["policy_q"].detach()) == pytest.approx(q.mean())
    grads = torch.autograd.grad(loss, list(method.policy.parameters()))
    np.testing.assert_allclose(grads[0], slope.T @ s, rtol=1e-10)
    np.testing.assert_allclose(grads[1], slope.sum(0), rtol=1e-10)
    assert float(method.scale(batch)) == pytest.approx(scale)


def test_the_unit_of_the_reward_does_not_matter_to_the_policy(float64):
    """With critics (and so rewards) a thousand times as large, the gradient is the same."""
    method = make()
    batch = weigh(method.collect())
    grads = []
    for factor in (1.0, 1e3):
        with torch.no_grad():
            head = method.clipped.critic.network.trunk.head
            head.weight.mul_(factor), head.bias.mul_(factor)
        grads.append(torch.autograd.grad(method.policy_loss(batch)[0], list(method.policy.parameters())))
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)


def test_observations_are_standardized_with_the_dataset_for_all_networks(float64):
    method = make()
    obs = method.source.data["obs"].double()
    mean, std = obs.mean(0), obs.std(0, correction=0)
    seen = (obs[:5] - mean) / (std + 1e-3)
    plain = make(normalize_obs=False)
    plain.policy.load_state_dict(method.policy.state_dict(), strict=False)
    torch.testing.assert_close(method.policy.rsample(obs[:5])[0], plain.policy.rsample(seen)[0])
    plain.clipped.load_state_dict(method.clipped.state_dict(), strict=False)
    action = torch.zeros(5, 2)
    for name in ("critic", "target_critic"):
        ours, expected = getattr(method.clipped, name), getattr(plain.clipped, name)
        torch.testing.assert_close(ours(obs[:5], action), expected(seen, action))
    torch.testing.assert_close(method.target_policy.rsample(obs[:5])[0], plain.target_policy.rsample(seen)[0])
    far = method.policy.normalizer(mean + 50 * std)
    assert float(far.min()) > 11  # nothing is clipped


def test_the_statistics_stay_when_it_goes_on_online():
    method = make("Pendulum-v1", offline_updates=2, replay_size=500)
    before = {name: value.clone() for name, value in method.policy.normalizer.state_dict().items()}
    for _ in range(4):
        method.update(method.collect())
    assert method.ledger.env_steps == 2
    for name, value in method.policy.normalizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_it_explores_with_noise_online_only():
    with pytest.raises(UsageError, match="has no effect without offline_updates"):
        make(exploration_noise=0.3)
    method = make("Pendulum-v1", offline_updates=1, replay_size=500, exploration_noise=0.3)
    obs = torch.zeros(5_000, 3)
    noise = method.behavior.act(obs)[0]["action"] - method.policy.act(obs)[0]["action"]
    assert float(noise.std()) == pytest.approx(0.3, rel=0.1)


def test_presets_are_the_papers_and_name_their_data():
    cls = registry.load("td3-bc")
    config = cls.Config()
    assert (config.alpha, config.normalize_obs, config.batch_size, config.network.sizes) == (2.5, True, 256, (256, 256))
    assert {study.task for study in cls.studies.values()} == {
        f"mujoco/{name}/medium-v0" for name in ("halfcheetah", "hopper", "walker2d")
    }


def test_what_it_learns_from_must_be_named():
    with pytest.raises(UsageError, match="td3-bc learns from a dataset: name one as --task, or with --dataset"):
        make(dataset="", random_episodes=10)
    with pytest.raises(UsageError, match="td3-bc draws single decisions, which a recurrent policy cannot learn from"):
        make(**{"network.recurrent": "gru", "critic_network": "network"})


def test_it_learns_the_best_of_random_actions(tmp_path):
    """Cloning uniform actions gives a mean of 0, with a return of -0.5."""
    run = polopt.train(
        "td3-bc",
        OneStep,
        steps=600,
        out=tmp_path / "run",
        dataset="random",
        random_episodes=400,
        batch_size=64,
        lr=3e-3,
        alpha=10.0,
        eval_every=600,
        eval_episodes=20,
        threads=1,
        loggers=(),
        **{"network.sizes": (32,)},
    )
    assert run.final["eval/return"] > -0.15

"""A2C, beside derivatives and steps worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.training import api
from tests.guards import spaces as tasks

SMALL = {"envs": 3, "window": 4, "network.sizes": (4,), "loggers": ()}


def make(task=tasks.box, **changes):
    return api.plan("a2c", task, seed=1, **SMALL | changes).build()


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


@pytest.mark.parametrize("task", [tasks.box, tasks.discrete])
def test_the_gradient_is_that_of_the_three_terms(float64, task):
    method = make(task, entropy_coefficient=0.3, value_coefficient=0.7)
    batch = method.collect()
    batch["mask"] = torch.arange(12).reshape(3, 4) != 5
    batch = method.evaluate_window(batch)
    loss, metrics = method.total_loss(batch.reshape(-1))
    there = batch["mask"].flatten()  # 11 decisions of equal weight
    score = (batch["advantage"] * method.policy.log_prob(batch)).flatten()[there].mean()
    entropy = method.policy.entropy(batch).flatten()[there].mean()
    error = (method.critic.value(batch) - batch["returns"]).flatten()[there].square().mean() / 2
    for found, expected in (
        (gradients(loss, method.policy), gradients(-score - 0.3 * entropy, method.policy)),
        (gradients(loss, method.critic), gradients(0.7 * error, method.critic)),
    ):
        torch.testing.assert_close(found, expected)
    assert metrics["policy_loss"].item() == pytest.approx(-score.item())
    assert metrics["entropy"].item() == pytest.approx(entropy.item())
    assert metrics["value_loss"].item() == pytest.approx(error.item())


def test_returns_reach_to_the_end_of_the_window_or_of_the_episode(float64):
    method = make(envs=1, window=4, discount=0.5)
    batch = method.collect()
    batch["reward"] = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    batch["terminated"] = torch.tensor([[False, True, False, False]])
    last = method.critic(batch["final_obs"][0, -1]).item()
    found = method.evaluate_window(batch)
    assert found["returns"][0].tolist() == pytest.approx([2.0, 2.0, 8.0 + last / 4, 8.0 + last / 2])
    torch.testing.assert_close(found["advantage"], found["returns"] - found["value"])


@pytest.mark.parametrize(("over", "moments"), [("none", None), ("batch", (0.0, 1.0))])
def test_advantages_are_as_they_are_or_standardized_over_the_window(float64, over, moments):
    method = make(advantage_over=over)
    batch = method.evaluate_window(method.collect())
    plain = batch["returns"] - batch["value"]
    if moments is None:
        torch.testing.assert_close(batch["advantage"], plain)
    else:
        assert (float(batch["advantage"].mean()), float(batch["advantage"].std())) == pytest.approx(moments, abs=1e-6)
        torch.testing.assert_close(batch["advantage"] * plain.std() + plain.mean(), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        ("rmsprop", lambda g: g / ((0.01 * g**2).sqrt() + 1e-3)),
        ("rmsprop-tf", lambda g: g / (0.99 + 0.01 * g**2 + 1e-3).sqrt()),
        ("adam", lambda g: g / (g.abs() + 1e-3)),
    ],
)
def test_an_update_is_one_step_with_the_gradient_clipped(float64, optimizer, step):
    schedule = {"lr": 0.2, "lr_schedule": "linear", "micro_batch": 5}
    method = make(optimizer=optimizer, adam_eps=1e-3, max_grad_norm=0.2, **schedule)
    method.progress = 0.5
    batch = method.collect()
    loss, _ = method.total_loss(method.evaluate_window(batch.clone()).reshape(-1))
    parameters = [*method.policy.parameters(), *method.critic.parameters()]
    grads = torch.autograd.grad(loss, parameters)
    norm = float(sum(g.square().sum() for g in grads) ** 0.5)
    assert norm > 0.2
    expected = [p - 0.1 * step(0.2 / norm * g) for p, g in zip(parameters, grads)]
    metrics = method.update(batch)
    assert method.optimizer.micro_batch == 5
    assert float(metrics["grad_norm"]) == pytest.approx(norm)
    torch.testing.assert_close([p.detach() for p in parameters], [e.detach() for e in expected], rtol=1e-5, atol=1e-8)


def test_a_policy_with_memory_keeps_the_order_of_time(float64):
    method = make("CartPole-v1", **{"network.recurrent": "gru"})
    batch = method.collect()
    loss, _ = method.total_loss(method.evaluate_window(batch.clone()))
    grads = torch.autograd.grad(loss, [*method.policy.parameters(), *method.critic.parameters()])
    norm = float(sum(g.square().sum() for g in grads) ** 0.5)
    assert float(method.update(batch)["grad_norm"]) == pytest.approx(norm)


@pytest.mark.parametrize("core", ["none", "gru"])
def test_it_learns_with_and_without_memory(core):
    method = make("CartPole-v1", **{"network.recurrent": core})
    before = [p.clone() for p in method.policy.parameters()]
    for _ in range(3):
        metrics = method.update(method.collect())
    assert all(torch.isfinite(value) for value in metrics.values())
    assert not any(map(torch.equal, before, method.policy.parameters()))


def test_the_preset_without_gsde_begins_with_its_deviation():
    """exp(-2) times the norm of what the last layer sees, in a network of torch's initial weights."""
    method = make(preset="bipedal")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
    norm = torch.nn.Sequential(*layers)(torch.randn(500, 24)).norm(dim=1).mean()
    parameters = dict(method.policy.named_parameters())
    torch.testing.assert_close(
        parameters["log_std"].detach().exp(), (norm.detach() * math.exp(-2)).expand(2), rtol=0.1, atol=0
    )
    last = [value.detach() for name, value in parameters.items() if name.endswith("weight")][-1]
    assert float(last.abs().max()) > 0.25  # within 1/sqrt(4) as torch has it, and not a hundredth of that


def test_what_cannot_act_is_refused():
    for option in ({"epochs": 2}, {"minibatches": 2}, {"value_clip": 0.2}, {"surrogate": "ppo"}, {"target_kl": 0.1}):
        with pytest.raises(UsageError, match="has no effect in a2c, which takes one step on a window"):
            make(**option)

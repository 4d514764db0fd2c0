"""TRPO, beside a Fisher matrix that is written down."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from polopt.core.errors import UsageError
from polopt.core.functional import gradient
from polopt.optim.natural import thinned
from polopt.training import api
from tests.guards import spaces as tasks

SMALL = {"envs": 2, "window": 24, "network.sizes": (4,), "minibatches": 2, "epochs": 1, "loggers": ()}


def make(task=tasks.box, **changes):
    return api.plan("trpo", task, seed=1, **SMALL | changes).build()


def evaluated(method):
    """A batch [B] with weights and advantages, of a policy that is far from the beginning's zero heads."""
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    method.old_policy.load_state_dict(method.policy.state_dict())
    return method.evaluate_window(method.collect()).reshape(-1)


def vector(policy):
    return parameters_to_vector(policy.parameters()).detach().clone()


def scores(method, batch):
    """Gradients [B, D, P] of the parameters of each row's distribution, and its Fisher matrix [B, D, D] in them."""
    parameters = list(method.policy.parameters())
    if method.spec.discrete:
        outputs = method.policy.logits(batch)
        p = outputs.softmax(-1).detach()
        fisher = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    else:
        outputs = torch.cat(method.policy.moments(batch), -1)
        variance = outputs[..., 2:].detach().mul(2).exp()
        fisher = torch.diag_embed(torch.cat([1 / variance, torch.full_like(variance, 2.0)], -1))  # of mean and log std
    rows = torch.stack([gradient(x, parameters) for x in outputs.reshape(-1)])
    return rows.view(*outputs.shape, -1), fisher


def dense_step(method, batch, every=1):
    """theta - theta_old of the whole step: J^T M J with every decision's Jacobian, and a direct solve."""
    config = method.config
    jacobian, fisher = scores(method, batch[::every])
    matrix = torch.einsum("bip,bij,bjq->pq", jacobian, fisher, jacobian) / len(jacobian)
    matrix = matrix + config.damping * torch.eye(len(matrix))
    log_prob = method.policy.log_prob(batch)
    gain = (batch["advantage"] * (log_prob - log_prob.detach()).exp()).mean()
    slope = parameters_to_vector(torch.autograd.grad(gain, list(method.policy.parameters())))
    direction = torch.linalg.solve(matrix, slope)
    return (2 * config.max_kl / (direction @ matrix @ direction)).sqrt() * direction


@pytest.mark.parametrize("task", [tasks.box, tasks.discrete])
@pytest.mark.parametrize("every", [1, 3])
def test_the_step_is_that_of_a_fisher_matrix_written_down(float64, task, every):
    method = make(task, solver_steps=200, damping=0.05, max_kl=1e-4, curvature_every=every)
    batch = evaluated(method)
    before, expected = vector(method.policy), dense_step(method, batch, every)
    metrics = method.optimizer.minimize(method.policy_loss, batch)
    scale = float(metrics["step_scale"])
    assert scale == 1 or (every == 3 and scale >= 0.5)  # a part of the rows may call a step too long short enough
    torch.testing.assert_close(vector(method.policy) - before, scale * expected, rtol=1e-6, atol=1e-9)
    assert 0.3e-4 < float(metrics["divergence"]) <= 1e-4


def test_a_thinned_batch_is_the_same_whatever_its_pieces(float64):
    batch = evaluated(make())
    for pieces in ([batch], list(batch.split(7)), list(batch.split(2))):
        few = thinned(pieces, 5)
        assert torch.equal(torch.cat([part["obs"] for part in few]), batch["obs"][::5])
        assert float(sum(part["weight"].sum() for part in few)) == pytest.approx(1.0)


@pytest.mark.parametrize("task", [tasks.box, tasks.discrete])
def test_no_update_leaves_the_trust_region_or_makes_the_surrogate_worse(float64, task):
    method = make(task, max_kl=1.0, damping=1e-6)  # so far that the quadratic model is wrong
    scales = []
    for _ in range(8):
        batch = method.collect()
        seen = method.evaluate_window(batch).reshape(-1)
        before = float(method.policy_loss(seen)[0].detach())
        metrics = method.update(batch)
        scales.append(float(metrics["step_scale"]))
        kl = float((seen["weight"] * method.old_policy.kl(seen, method.policy)).sum().detach())
        assert kl <= 1.0
        assert float(metrics["divergence"]) == pytest.approx(kl)
        assert float(method.policy_loss(seen)[0].detach()) <= before
    assert any(0 < scale < 1 for scale in scales), scales
    assert {round(scale, 9) for scale in scales} <= {0.0} | {round(0.8**power, 9) for power in range(10)}


def test_the_surrogate_is_by_value(float64):
    method = make(advantage_over="none", entropy_coefficient=0.2)
    batch = evaluated(method)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ratio = (method.policy.log_prob(batch) - method.old_policy.log_prob(batch)).exp()
        loss, metrics = method.policy_loss(batch)
    expected = float((ratio * batch["advantage"]).mean())
    assert float(metrics["surrogate"]) == pytest.approx(expected)
    assert float(loss) == pytest.approx(-expected - 0.2 * float(method.policy.entropy(batch).mean().detach()))
    assert float((ratio - 1).abs().mean()) > 0.01


def test_advantages_are_standardized_once_and_the_critic_learns_after_the_policy(float64):
    method = make(minibatches=3, epochs=2)
    order, value_loss = [], method.value_loss
    minimize = method.optimizer.minimize

    def policy_step(loss, batch):
        order.append(("policy", float(batch["advantage"].mean()), float(batch["advantage"].std())))
        return minimize(loss, batch)

    def critic_loss(batch):
        order.append(("value", len(batch)))
        return value_loss(batch)

    method.optimizer.minimize, method.value_loss = policy_step, critic_loss
    critic = [p.clone() for p in method.critic.parameters()]
    method.update(method.collect())
    assert order[0] == ("policy", pytest.approx(0.0, abs=1e-9), pytest.approx(1.0, abs=1e-6))
    assert order[1:] == [("value", 16)] * 6
    assert not any(map(torch.equal, critic, method.critic.parameters()))


def test_the_critics_loss_is_the_mean_squared_error(float64):
    method = make()
    batch = evaluated(method)
    loss, _ = method.value_loss(batch)
    error = method.critic.value(batch) - batch["returns"]
    assert float(loss.detach()) == pytest.approx(float(error.square().mean().detach()))


def test_a_step_that_cannot_be_taken_leaves_the_policy(float64):
    method = make(accept=0.99, tries=1, max_kl=1.0)
    batch = evaluated(method)
    before = vector(method.policy)
    assert float(method.optimizer.minimize(method.policy_loss, batch)["step_scale"]) == 0
    assert torch.equal(vector(method.policy), before)


@pytest.mark.parametrize("core", ["none", "gru"])
def test_it_learns_with_and_without_memory(core):
    method = make("CartPole-v1", **{"network.recurrent": core, "window": 64, "network.sizes": (16,)})
    for _ in range(3):
        metrics = method.update(method.collect())
    assert 0 < float(metrics["divergence"]) <= 0.01


def test_what_cannot_act_is_refused():
    for option in ({"target_kl": 0.1}, {"kl_penalty": "kl-penalty"}, {"surrogate": "ppo"}):
        with pytest.raises(UsageError, match="has no effect in trpo, whose policy takes one step"):
            make(**option)
    with pytest.raises(UsageError, match="trpo"):
        make(policy="diffusion")


def test_a_policy_with_memory_is_scored_on_its_windows():
    """Row by row, from their first columns on: the ratio is 1 before the step, and the divergence 0."""
    method = make(advantage_over="none", gae_lambda=1.0, **{"network.recurrent": "gru", "network.recurrent_size": 4})
    for _ in range(2):  # the second window begins in the middle of episodes
        batch = method.collect()
        advantage = method.evaluate_window(batch)["advantage"].mean()
        metrics = method.update(batch)
        assert float(metrics["surrogate"]) == pytest.approx(float(advantage), abs=1e-5)
        assert 0 < float(metrics["divergence"]) <= method.config.max_kl
        assert float(metrics["step_scale"]) > 0

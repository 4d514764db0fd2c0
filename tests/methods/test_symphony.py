"""Symphony: its loss and its gradients with numbers worked out here, and what is drawn, kept and moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from polopt import registry
from polopt.config import apply
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.control.symphony import (
    GOLDEN,
    Symphony,
    asymmetric_error,
    node_weights,
    soft_minimum,
    swaddling,
    symmetric_error,
)
from polopt.training import api
from tests.guards import spaces as tasks

MUST = 5
SMALL = {"warmup": 20, "batch_size": 16, "width": 8, "replay_size": 100, "loggers": ()}

pytestmark = pytest.mark.usefixtures("float64")


def make(task: Any = tasks.box, **changes: Any) -> Any:
    """Two coordinates, six outputs of the critics, episodes of ten steps that terminate."""
    return api.plan("symphony", task, seed=1, **SMALL | changes).build()


def prepared(method: Any) -> Any:
    """A batch as `total_loss` gets it, of networks no two of which are equal; time limits break off what goes on."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in (method.policy, method.critic, method.target_critic):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    batch = weigh(method.collect())
    batch["truncated"] = ~batch["terminated"]
    batch["reward"] = batch["reward"] / method.source.reward_scale
    batch["next_noise"] = method.policy.noise(batch["action"])
    return batch


def om(x: Any) -> Any:
    return np.log((1 + x) / (1 - x))


def expected_terms(method: Any, batch: Any, average: float) -> dict[str, float]:
    """The three terms in NumPy, of what the networks say."""
    with torch.no_grad():
        raw = method.policy.net(batch["next_obs"]).numpy()
        direction, strength, beta = np.split(np.tanh(raw / 2), 3, axis=1)
        strength, beta = np.abs(strength), np.abs(beta)
        action = np.tanh(strength * direction + batch["next_noise"].numpy())
        nodes = method.target_critic.network(batch["next_obs"], torch.as_tensor(action)).numpy()  # [3, B, 2]
        q = method.critic.network(batch["obs"], batch["action"]).numpy()
    nodes = np.sort(np.concatenate(list(nodes), 1), 1)
    weights = np.tanh((np.pi * (1 - np.arange(6) / 6)) ** np.e)
    ahead = nodes @ (weights / weights.sum())
    base = 0.6180339887 * average + 0.3819660113 * ahead
    x = (ahead - base) / np.maximum(np.abs(base), 0.01)
    target = batch["reward"].numpy() + 0.99 * np.where(batch["terminated"].numpy(), 0.0, ahead)
    error = np.concatenate(list(q), 1) - target[:, None]
    strength, beta = np.clip(strength, 1e-3, 0.999), np.clip(beta, 1e-3, 0.999)
    swaddled = om(strength ** (1 / beta)) + beta * strength * np.log(strength) + om(beta**2)
    return {
        "policy_loss": -(np.abs(x) * np.tanh(x / 2)).mean(),
        "critic_loss": (error * np.tanh(error / 2)).mean(),  # over rows and outputs
        "swaddling": swaddled.mean(),  # over rows and coordinates
        "next_value": ahead.mean(),
        "q": q.mean(),
        "strength": np.abs(np.tanh(raw[:, 2:4] / 2)).mean(),
    }


@pytest.mark.parametrize("average", [0.0, -3.0])
def test_must_1_the_loss_is_the_sum_of_three_means(average):
    method = make(swaddle_coefficient=0.5)
    batch = prepared(method)
    assert batch["terminated"].any()
    method.baseline.average.fill_(average)
    loss, metrics = method.total_loss(batch)
    expected = expected_terms(method, batch, average)
    assert {name: float(value.detach()) for name, value in metrics.items()} == pytest.approx(expected)
    total = expected["policy_loss"] + expected["critic_loss"] + 0.5 * expected["swaddling"]
    assert float(loss.detach()) == pytest.approx(total)


def test_must_1_each_term_moves_its_own_network_and_the_actor_learns_through_the_target_critic():
    method = make()
    batch = prepared(method)
    method.baseline.average.fill_(-3.0)
    actor, critics = list(method.policy.parameters()), list(method.critic.parameters())
    loss, _ = method.total_loss(batch)
    found = torch.autograd.grad(loss, actor + critics)

    direction, strength, beta = method.policy.heads(batch["next_obs"])
    action = (strength * direction + batch["next_noise"]).tanh()
    ahead = method.target_critic.soft(batch["next_obs"], action)
    held = ahead.detach()
    base = GOLDEN * -3.0 + (1 - GOLDEN) * held
    x = (ahead - base) / base.abs()
    penalty = swaddling(strength, beta).mean()
    of_actor = torch.autograd.grad(penalty - (x.abs() * (x / 2).tanh()).mean(), actor)
    target = batch["reward"] + 0.99 * (~batch["terminated"]) * held
    error = method.critic(batch["obs"], batch["action"]) - target[:, None]
    of_critics = torch.autograd.grad((error * (error / 2).tanh()).mean(), critics)
    torch.testing.assert_close(found, of_actor + of_critics)
    assert all(float(grad.abs().max()) > 0 for grad in found)
    assert not any(parameter.requires_grad for parameter in method.target_critic.parameters())
    (optimizer,) = method.optimizers()
    assert set(map(id, optimizer.parameters)) == set(map(id, actor + critics))


def test_must_1_one_step_of_adam_without_its_correction_then_targets_then_the_average():
    method = make(lr=0.01, tau=0.25)
    batch = method.collect()
    torch.manual_seed(4)
    noise = method.policy.noise(batch["action"])
    known = weigh(batch)
    known["reward"], known["next_noise"] = known["reward"] / method.source.reward_scale, noise
    loss, metrics = method.total_loss(known)
    parameters = [*method.policy.parameters(), *method.critic.parameters()]
    grads = torch.autograd.grad(loss, parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    slow = [parameter.clone() for parameter in method.target_critic.parameters()]
    method.baseline.average.fill_(2.0)
    again, _ = method.total_loss(known)
    grads = torch.autograd.grad(again, parameters)
    torch.manual_seed(4)
    method.update(batch)
    for was, grad, now in zip(before, grads, parameters):
        step = (1 - GOLDEN) * grad / (math.sqrt(0.005) * grad.abs() + 1e-8) + 0.01 * was
        torch.testing.assert_close(now.detach(), was - 0.01 * step)
    for was, live, now in zip(slow, method.critic.parameters(), method.target_critic.parameters()):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * live.detach())
    assert float(method.baseline.average) == pytest.approx(
        GOLDEN * 2.0 + (1 - GOLDEN) * float(metrics["next_value"].detach())
    )


def test_must_2_errors_are_squares_near_zero_and_one_of_them_keeps_the_sign():
    error = torch.tensor([-40.0, -1e-3, 0.0, 1e-3, 40.0])
    assert symmetric_error(error).tolist() == pytest.approx([40.0, 5e-7, 0.0, 5e-7, 40.0])
    assert asymmetric_error(error).tolist() == pytest.approx([-40.0, -5e-7, 0.0, 5e-7, 40.0])


def test_must_2_the_advantage_is_over_a_share_of_itself_and_of_the_past():
    """At first x is 0.618 / 0.382 = 1.618 with the sign of the value, whatever its size; a baseline next to 0 divides
    as one of 0.01."""
    method = make()
    batch = prepared(method)
    seen = {}
    for value in (5.0, -0.5, 1e-5):
        ahead = torch.full((16,), value, requires_grad=True)
        method.target_critic.soft = lambda obs, action, ahead=ahead: ahead
        loss, metrics = method.total_loss(batch)
        (grad,) = torch.autograd.grad(loss, ahead)
        seen[value] = float(metrics["policy_loss"].detach()), grad
    golden = 1.6180339887
    size = golden * math.tanh(golden / 2)
    assert seen[5.0][0] == pytest.approx(-size)
    assert seen[-0.5][0] == pytest.approx(size)
    slope = math.tanh(golden / 2) + golden / 2 * (1 - math.tanh(golden / 2) ** 2)  # of |x| tanh(x / 2)
    torch.testing.assert_close(seen[5.0][1], torch.full((16,), -slope / (5.0 * (1 - GOLDEN)) / 16))
    torch.testing.assert_close(seen[-0.5][1], torch.full((16,), -slope / (0.5 * (1 - GOLDEN)) / 16))
    x = 0.618034e-5 / 0.01
    assert seen[1e-5][0] == pytest.approx(-x * math.tanh(x / 2), rel=1e-4)
    assert float(seen[1e-5][1].abs().max()) < 1.0


def test_must_3_strength_is_penalized_and_beta_holds_it_without_gradient_through_the_power():
    strength = torch.linspace(0.02, 0.98, 25)[:, None].expand(25, 9).clone().requires_grad_()
    beta = torch.linspace(0.1, 0.9, 9).expand(25, 9).clone().requires_grad_()
    value = swaddling(strength, beta)
    of_strength, of_beta = torch.autograd.grad(value.sum(), (strength, beta))
    s, b, h = strength.detach().numpy(), beta.detach().numpy(), 1e-6

    def by_hand(s: Any, b: Any, held: Any) -> Any:
        return om(s ** (1 / held)) + b * s * np.log(s) + om(b**2)

    np.testing.assert_allclose(value.detach(), by_hand(s, b, b), rtol=1e-9)
    np.testing.assert_allclose(of_strength, (by_hand(s + h, b, b) - by_hand(s - h, b, b)) / (2 * h), rtol=1e-4)
    np.testing.assert_allclose(of_beta, (by_hand(s, b + h, b) - by_hand(s, b - h, b)) / (2 * h), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("beta", "share"), [(0.1, 0.64), (0.5, 0.87), (0.9, 0.94)])
def test_must_3_the_penalty_rises_with_strength_over_most_of_its_range(beta, share):
    strength = torch.linspace(0.0, 1.0, 10_001).requires_grad_()
    (slope,) = torch.autograd.grad(swaddling(strength, torch.full_like(strength, beta)).sum(), strength)
    assert float((slope > 0).double().mean()) == pytest.approx(share, abs=0.01)
    if beta == 0.1:
        assert float((slope <= 0).double().sum() / 10_000) == pytest.approx(0.36, abs=0.01)
    assert torch.isfinite(slope).all()
    assert float(slope[0]) == float(slope[-1]) == 0.0  # beyond the edges, 0.001 and 0.999


def test_must_3_the_penalty_weakens_actions_and_does_not_turn_them():
    method = make(lr=0.01, weight_decay=0.0)
    batch = prepared(method)
    last: Any = method.policy.net.trunk.head
    with torch.no_grad():
        last.bias.copy_(torch.tensor([1.0, -1.0, 3.0, -3.0, 1.0, 1.0]))  # strengths about 0.9
    method.target_critic.soft = lambda obs, action: torch.zeros(16)
    turned, strong, _ = method.policy.heads(batch["next_obs"])
    for _ in range(60):
        method.optimizer.minimize(method.total_loss, batch)
    direction, strength, _ = method.policy.heads(batch["next_obs"])
    assert float(strong.detach().mean()) > 0.85
    assert float(strength.detach().mean()) < 0.7
    assert (direction * turned > 0).all()


def test_must_4_the_soft_minimum_weighs_small_values_most():
    weights = node_weights(384)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert (weights.diff() <= 0).all()
    assert float(weights[:192].sum()) == pytest.approx(0.666, abs=5e-3)
    assert node_weights(1).tolist() == [1.0]
    values = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, 6.0]])
    p = [math.tanh((math.pi * left) ** math.e) for left in (1.0, 2 / 3, 1 / 3)]
    expected = [(-p[0] + 2 * p[1] + 3 * p[2]) / sum(p), 6 * p[2] / sum(p)]
    assert soft_minimum(values, node_weights(3)).tolist() == pytest.approx(expected)


def test_must_4_the_outputs_of_three_networks_are_sorted_together():
    method = make(width=20)
    obs, action = torch.randn(7, 3), torch.randn(7, 2).tanh()
    values = method.critic(obs, action)
    assert values.shape == (7, 15)
    each = method.critic.network(obs, action)  # [3, 7, 5]
    torch.testing.assert_close(values.sort(-1).values, torch.cat(list(each), -1).sort(-1).values)
    torch.testing.assert_close(method.critic.soft(obs, action), values.sort(-1).values @ node_weights(15))


def test_must_5_the_replay_is_filled_and_rewards_are_scaled_and_what_is_new_is_drawn_more():
    method = make(batch_size=None, width=16)
    batch = method.collect()
    assert len(batch) == 12
    assert len(method.source.replay) == 100
    scale = method.source.reward_scale
    assert scale == pytest.approx(float(method.source.replay.whole()["reward"][20:40].abs().mean()), rel=0.1)
    seen = []
    method.total_loss = lambda batch: (seen.append(batch["reward"]), Symphony.total_loss(method, batch))[1]
    method.update(batch)
    torch.testing.assert_close(seen[0], batch["reward"] / scale)
    drawn = method.source.replay.sample(20_000)["index"] - (method.source.replay.added - 100)
    share = torch.bincount(drawn, minlength=100).view(10, 10).sum(1) / 20_000
    assert float(share[-1]) == pytest.approx(0.134, abs=0.01)
    assert float(share[0]) < 0.005


def test_must_5_ends_stay():
    method = make(updates_per_step=1, fill=False)
    for _ in range(150):
        method.collect()
    whole = method.source.replay.whole()
    assert method.ledger.env_steps == 170
    assert int(whole["terminated"].sum()) == 17  # one in ten steps; of the last hundred it would be ten


def test_three_updates_for_every_step_after_the_warmup_which_the_actor_plays():
    method = make()
    acted = []
    original = method.policy.noise
    method.policy.noise = lambda like: (acted.append(len(like)), original(like))[1]
    for _ in range(6):
        method.collect()
    assert method.ledger.env_steps == 22
    assert acted == [1] * 22


def test_idling_is_for_training_after_the_warmup():
    method = make(idle_after=4)
    assert "decisions" not in method.policy.act(torch.zeros(1, 3))[1]
    carries = []
    act = method.idling.act
    method.idling.act = lambda obs, carry=None, **how: (carries.append(carry), act(obs, carry, **how))[1]
    for _ in range(36):
        method.collect()
    counts = [int(carry["decisions"]) if carry else 0 for carry in carries]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert make().behavior is not make().idling
    assert make().idling is None


def test_the_gradients_of_s2_are_dropped_in_actor_and_critics():
    method = make(silent_dropout=0.5)
    for network in (method.policy.net, method.critic.network, method.target_critic.network):
        assert network.trunk.silent.p == 0.5
    batch = prepared(method)
    assert torch.equal(method.total_loss(batch)[0], method.total_loss(batch)[0])
    bias = list(method.critic.parameters())[-1]
    one, two = (torch.autograd.grad(method.total_loss(batch)[0], bias)[0] for _ in range(2))
    assert not torch.equal(one, two)


def test_presets_are_the_versions_of_the_official_code():
    config = {name: apply(Symphony.Config, settings) for name, settings in Symphony.presets.items()}
    s3 = config["mujoco"]
    assert (s3.width, s3.warmup, s3.replay_size, s3.updates_per_step, s3.lr) == (512, 10_240, 512_000, 3, 1e-4)
    assert (s3.noise_std, s3.noise_clip, s3.idle_after) == (1 / math.e, math.e, 949)
    assert config["s2"].replay_size / config["s2"].warmup == 25
    assert config["ed"].replay_size / config["ed"].warmup == 50
    assert all(config[name].replay_size == 1_000 * config[name].width for name in ("mujoco", "s2", "se", "ed"))
    assert config["se"].noise_std * config["se"].noise_clip == pytest.approx(1.0)
    cls = registry.load("symphony")
    assert cls.derived(s3, 20_240) == {"transitions per update": 384, "updates": 30_000}


def test_what_cannot_be_used_is_refused_in_one_sentence():
    with pytest.raises(UsageError, match="symphony needs Box actions with finite bounds; discrete has Discrete"):
        make(tasks.discrete)
    with pytest.raises(UsageError, match="symphony needs Box actions with finite bounds; unbounded has Box"):
        make(tasks.unbounded)
    with pytest.raises(UsageError, match="the warmup of 200 steps does not fit into replay-size 100"):
        make(warmup=200)

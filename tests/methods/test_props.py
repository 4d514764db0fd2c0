"""PROPS by hand, by finite differences, and on a table where sampling error is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.data.rollouts import Rollouts
from polopt.methods.control.props import avoidance, drift, sampling_error
from polopt.tasks import make_task
from polopt.training.api import plan
from tests.guards.harness import built

MUST = 5
TABLE: dict[str, Any] = {"policy": "tabular-softmax", "window": 64, "every": 16, "batches": 2}


def table(seed: int = 0, **settings: Any) -> Any:
    """PROPS on the 5 x 5 grid with a random softmax policy."""
    method: Any = plan("props", "grid/5x5", seed=seed, **{**TABLE, **settings}).build()
    with torch.no_grad():
        method.policy.table.copy_(torch.randn(method.policy.table.shape, generator=torch.Generator().manual_seed(seed)))
    return method


def test_the_loss_by_hand(float64):
    """Ratios 2, 0.9 and 0.5 at clip 0.3: above 1.3 nothing is cut, below 0.7 all is."""
    g = torch.tensor([2.0, 0.9, 0.5])
    log_prob = g.log().requires_grad_()
    weight = torch.tensor([0.5, 0.25, 0.25])
    loss = avoidance(log_prob, torch.zeros(3), 0.3, weight)
    assert loss.item() == pytest.approx(0.5 * 2 + 0.25 * 0.9 + 0.25 * 0.7)
    (grad,) = torch.autograd.grad(loss, log_prob)
    assert grad.tolist() == pytest.approx([1.0, 0.225, 0.0])  # positive: all become less likely
    assert drift(log_prob, torch.zeros(3), weight).item() == pytest.approx(
        sum(w * (r - 1 - math.log(r)) for w, r in zip((0.5, 0.25, 0.25), (2.0, 0.9, 0.5)))
    )


def test_sampling_error_by_hand(float64):
    """State 4 with actions 0, 0, 1 and state 7 with action 1, of a policy that has 1/4 for each of four actions."""
    state, action = torch.tensor([4, 7, 4, 4]), torch.tensor([0, 1, 0, 1])
    found = sampling_error(state, action, torch.full((4,), math.log(0.25)))
    expected = (2 * math.log(2 / 3) + math.log(1 / 3) + 0.0) / 4 + math.log(4)
    assert found.item() == pytest.approx(expected)


def test_must_1_it_begins_at_theta_each_time(float64):
    method = table()
    batch = method.collect()
    assert not method.behavior_policy.table.equal(method.policy.table)
    with torch.no_grad():
        method.behavior_policy.table.add_(torch.randn_like(method.behavior_policy.table))
    method.source.steps = 16  # nothing stays, so nothing is avoided
    assert method.adapt() == []
    assert method.behavior_policy.table.equal(method.policy.table)
    method.update(batch)
    assert method.behavior_policy.table.equal(method.policy.table)
    assert method.target_policy.table.equal(method.policy.table)


def test_must_2_all_of_the_buffer_that_stays_is_avoided(float64):
    """One step on a whole buffer of two windows: the slope is that of E_buffer[g] for phi = theta, by counts."""
    method = table(adaptation="robust", **{"adaptation.lr": 1.0})
    method.update(method.collect())
    method.collect()
    assert method.source.window.shape == (1, 128)
    method.adapt()
    data = method.source.window[:, 16:]  # the oldest 16 steps will be gone
    assert data["obs"].shape[1] == 112
    count = torch.zeros(25, 4)
    count.index_put_((data["obs"].flatten(), data["action"].flatten()), torch.ones(112), accumulate=True)
    slope = (count - count.sum(1, keepdim=True) * method.policy.table.softmax(1)) / 112
    moved = method.behavior_policy.table - method.policy.table
    torch.testing.assert_close(moved, -slope)


def test_must_3_what_was_drawn_becomes_less_likely():
    method = table(**{"adaptation.lr": 0.03})
    method.collect()
    method.adapt()
    data = weigh(method.source.without_oldest())
    before = method.policy.log_prob(data).mean()
    assert method.behavior_policy.log_prob(data).mean() < before
    assert method.drift(data.set("target_log_prob", method.policy.log_prob(data))) < 0.1


def test_must_3_the_step_that_would_go_too_far_is_not_made():
    method = table(**{"adaptation.drift": 1e-12, "adaptation.minibatches": 1})
    method.collect()
    assert len(method.adapt()) == 1  # the first begins at theta, where there is no drift
    assert len(table(**{"adaptation.drift": None, "adaptation.minibatches": 1}).adapt()) == 0  # nothing gathered yet


def test_must_4_ppo_sees_its_own_probabilities_and_no_weights(float64):
    method = table(**{"adaptation.lr": 0.1})
    batch = method.collect()
    evaluated = method.evaluate_window(batch)
    assert evaluated["log_prob"].equal(method.policy.log_prob(batch))
    assert not evaluated["log_prob"].allclose(batch["log_prob"])  # those of who acted
    assert evaluated["weight"].eq(1 / 64).all()
    _, metrics = method.policy_loss(evaluated.reshape(-1))
    assert metrics["approx_kl"] == 0
    again = method.evaluate_window(method.collect())  # two windows: advantages over all of it
    assert again["advantage"].shape == (1, 128)
    assert again["advantage"].count_nonzero() > 100


def test_must_5_the_variance_of_a_gaussian_is_bounded():
    """Unbounded, avoidance of everything that was drawn widens a Gaussian for ever."""
    spreads = {}
    for name, settings in {
        "bounded": {},
        "free": {"adaptation.drift": None, "adaptation.penalty": 0.0, "adaptation.clip": 1e9},
    }.items():
        longer = {"window": 64, "every": 16, "adaptation.lr": 0.03, "adaptation.epochs": 20}
        with built("props", "Pendulum-v1", **longer, **settings) as method:
            method.collect()
            spreads[name] = float(method.target_policy.kl(method.source.window, method.behavior_policy).detach().mean())
    assert spreads["bounded"] < 0.1 < spreads["free"]


def test_must_5_both_have_one_architecture_and_one_normalizer():
    with built("props", "Pendulum-v1", normalize_obs=True) as method:
        shapes = [[p.shape for p in each.parameters()] for each in (method.policy, method.behavior_policy)]
        assert shapes[0] == shapes[1]
        assert method.behavior_policy.normalizer is method.policy.normalizer is method.target_policy.normalizer


def test_the_penalty_by_finite_differences(float64):
    method = table(**{"adaptation.penalty": 0.7})
    method.collect()
    data = weigh(method.source.without_oldest())
    data["target_log_prob"] = method.policy.log_prob(data).detach()
    loss, _ = method.behavior_loss(data)
    (grad,) = torch.autograd.grad(loss, [method.behavior_policy.table])

    theta = method.target_policy.table.softmax(1).numpy()
    state, action = data["obs"].flatten().numpy(), data["action"].flatten().numpy()

    def value(logits):
        phi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        g = phi[state, action] / theta[state, action]
        kl = (theta * np.log(theta / phi)).sum(1)[state]
        return (np.maximum(g, np.clip(g, 0.7, 1.3)) + 0.7 * kl).mean()

    at, step = method.behavior_policy.table.detach().numpy().copy(), 1e-6
    for place in [(state[0], action[0]), (state[3], 2), (state[-1], action[-1])]:
        move = np.zeros_like(at)
        move[place] = step
        assert (value(at + move) - value(at - move)) / (2 * step) == pytest.approx(grad[place].item(), abs=1e-7)


def test_the_buffer_looks_more_on_policy():
    """A fixed policy, 512 steps: less sampling error than its own actions have."""
    errors: dict[str, list[float]] = {"own": [], "props": []}
    for seed in range(3):
        settings = {"window": 512, "every": 16, "batches": 1, "adaptation.lr": 0.1, "adaptation.drift": 0.1}
        with paired(seed):
            method = table(seed, **settings)
            batch = method.collect()
            own = Rollouts(make_task("grid/5x5", seed=seed), 512).next(method.policy)
        for name, each in (("props", batch), ("own", own)):
            log_prob = method.policy.log_prob(each).detach()
            columns = (each["obs"], each["action"], log_prob)
            errors[name].append(float(sampling_error(*(column.flatten() for column in columns))))
    assert np.mean(errors["props"]) < 0.8 * np.mean(errors["own"])


def test_what_it_says_of_pi_phi():
    method = table(**{"adaptation.lr": 0.03})
    metrics = method.update(method.collect())
    assert metrics["behavior_kl"] > 0
    assert 3 <= metrics["behavior_steps"] <= 3 * 16  # three changes in a window of four parts
    assert metrics["sampling_error"] > 0
    with built("props", adaptation=None) as method:
        assert "behavior_kl" not in method.update(method.collect())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 30}, "a window of 30 steps is no multiple of every 16"),
        ({"normalize_reward": True}, "normalize_reward has no effect where steps stay for several updates"),
        ({"adaptation": None, "every": 8}, "every has no effect where pi_theta acts"),
        ({"network.recurrent": "gru"}, "no policy or critic with a memory"),
    ],
)
def test_what_cannot_act_is_refused(settings, message):
    with pytest.raises(UsageError, match=message), built("props", **settings):
        pass


def test_a_batch_without_who_acted_is_ppo_on_it():
    """`update` needs nothing of pi_phi: a window that somebody else has gathered will do."""
    with built("props") as method, built("ppo") as base:
        batch = TensorDict(dict(base.collect().items()), [2, 32])
        del batch["log_prob"]  # of who acted
        assert method.update(batch)["approx_kl"] >= 0

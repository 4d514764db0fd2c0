"""HNPG: both losses of the critic, both kinds of states of the policy, and the order of the sweep."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.control.hnpg import time_in_episode
from polopt.training import api
from tests.guards import spaces

MUST = 5
SMALL = {"episodes": 5, "dataset": "random", "random_episodes": 6, "critic_steps": 2, "loggers": ()}
SMALL |= {"network.sizes": (6,), "critic_network.sizes": (6,), "critic_lr": 0.01}


def make(**changes):
    method = api.plan("hnpg", "lock/continuous", seed=1, task_options={"horizon": 3}, **SMALL | changes).build()
    method.prepare()
    return method


def q(method, step, obs, action):
    return method.critics[step](obs, action)[0].detach()


def test_must_1_one_critic_learns_played_returns_and_targets_of_the_data(float64):
    method = make(monte_carlo_weight=0.5, offline_weight=2.0)
    batch = method.collect()
    played = weigh(batch[:, 1].clone(False).set("target", torch.arange(5.0)))
    data = weigh(method.of_data(1, 7).set("target", torch.arange(7.0)))
    loss, metrics = method.critic_loss(TensorDict({"played": played, "data": data}, []), 1)
    errors = [q(method, 1, side["obs"], side["action"]) - side["target"] for side in (played, data)]
    assert float(metrics["played_loss"].detach()) == pytest.approx(float(errors[0].square().mean()))
    assert float(loss.detach()) == pytest.approx(float(0.5 * errors[0].square().mean() + 2 * errors[1].square().mean()))


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_must_1_targets_are_of_actions_of_the_present_policy(float64, discount):
    method = make(discount=discount)
    data = method.of_data(1, 6)
    data["terminated"] = torch.arange(6) == 2
    torch.manual_seed(5)
    target = method.data_target(data, 1)
    torch.manual_seed(5)
    action = method.policy.actors[2].act(data["next_obs"])[0]["action"]
    after = torch.where(data["terminated"], 0.0, discount * q(method, 2, data["next_obs"], action))
    torch.testing.assert_close(target, data["reward"] + after)
    last = method.of_data(2, 6)
    assert torch.equal(method.data_target(last, 2), last["reward"])  # the last step has no successor


def test_must_2_at_states_of_the_data_the_policy_draws_anew(float64):
    method = make(value_samples=4000)
    data = method.of_data(0, 6)
    imagined = method.imagined(data, 0)
    assert torch.equal(imagined["obs"], data["obs"])
    assert not torch.isclose(imagined["action"], data["action"]).any()
    torch.testing.assert_close(method.policy.actors[0].log_prob(imagined), imagined["log_prob"])
    obs = data["obs"]
    samples = [q(method, 0, obs, method.policy.actors[0].act(obs)[0]["action"]) for _ in range(4000)]
    value = torch.stack(samples).mean(0)
    expected = q(method, 0, obs, imagined["action"]) - value
    torch.testing.assert_close(imagined["advantage"], expected, atol=0.1 * float(torch.stack(samples).std()), rtol=0)


def test_must_3_critics_are_fitted_from_the_last_step_to_the_first(float64):
    method = make(critic_steps=3)
    order, target, loss = [], method.data_target, method.critic_loss
    before = copy.deepcopy(method.critics)

    def data_target(data, step):
        order.append(("target", step))
        for later in range(3):  # what comes after is fitted already, what comes before is not
            fitted = not all(map(torch.equal, before[later].parameters(), method.critics[later].parameters()))
            assert fitted == (later > step)
        return target(data, step)

    def critic_loss(batch, step):
        order.append(("fit", step))
        return loss(batch, step)

    method.data_target, method.critic_loss = data_target, critic_loss
    method.update(method.collect())
    assert order == [item for step in (2, 1, 0) for item in [("target", step), *[("fit", step)] * 3]]


def test_must_4_batches_are_of_equal_size_and_the_trust_region_is_of_both(float64):
    method = make(max_kl=0.02)
    batch = method.collect()
    seen = {}
    for step, optimizer in enumerate(method.policy_optimizers):
        minimize = optimizer.minimize

        def spied(loss, part, step, own=minimize):
            seen[step] = part
            return own(loss, part, step=step)

        optimizer.minimize = spied
    metrics = method.update(batch)
    assert [len(seen[step]) for step in range(3)] == [10, 10, 10]
    for step, part in seen.items():
        assert torch.equal(part["obs"][:5], batch["obs"][:, step])
        kl = (part["weight"] * method.old_policy.actors[step].kl(part, method.policy.actors[step])).sum()
        assert float(kl.detach()) <= 0.02
    assert float(metrics["step_scale"]) > 0


def test_must_5_advantages_are_not_normalized_and_the_end_is_worth_nothing(float64):
    method = make(gae_lambda=0.5, value_samples=1)
    batch = method.collect()
    values = torch.rand(5, 3)
    method.value = lambda obs, step: values[:, step]
    advantage, _ = method.advantages(batch)
    reward = batch["reward"]
    delta = reward + torch.cat([values[:, 1:], torch.zeros(5, 1)], 1) - values
    expected = delta.clone()
    for step in (1, 0):
        expected[:, step] += 0.5 * expected[:, step + 1]
    torch.testing.assert_close(advantage, expected)


def test_must_5_played_returns_are_sums_to_the_end(float64):
    method = make(discount=0.5)
    seen = []
    fit = method.fit
    method.fit = lambda played, data: seen.append(played) or fit(played, data)
    batch = method.collect()
    batch["reward"] = torch.tensor([[1.0, 2.0, 4.0]]).expand(5, 3)
    method.update(batch)
    assert seen[0]["target"][0].tolist() == [3.0, 4.0, 4.0]


def test_without_data_it_is_a_natural_gradient_of_each_step(float64):
    method = make(offline_weight=0.0, offline_states=False, dataset="", random_episodes=10)
    assert method.update(method.collect()).keys() >= {"played_loss", "divergence", "surrogate"}
    first = method.collect()[:, 0].clone(False).set("advantage", torch.arange(5.0))
    loss, _ = method.policy_loss(weigh(first), step=0)
    assert float(loss.detach()) == pytest.approx(-2.0)  # ratios are 1


def test_time_of_recorded_decisions():
    first = torch.tensor([True, False, False, True, True, False])
    assert time_in_episode(first).tolist() == [0, 1, 2, 0, 0, 1]


def test_data_are_drawn_by_step():
    method = make()
    whole = method._data
    for step in range(3):
        drawn = method.of_data(step, 20)
        rows = whole["obs"][time_in_episode(whole["first"]) == step]
        assert all((rows == row).all(-1).any() for row in drawn["obs"])


def test_the_last_layers_begin_at_a_tenth():
    torch.manual_seed(3)
    small = make(**{"critic_network.head_gain": 0.1}).critics[0]
    large = make(**{"critic_network.head_gain": 1.0}).critics[0]
    *_, weight, bias = zip(small.parameters(), large.parameters())
    for one, other in (weight, bias):
        np.testing.assert_allclose(one.detach(), 0.1 * other.detach(), rtol=1e-5)


def test_what_cannot_be_is_told():
    with pytest.raises(UsageError, match="name some with --dataset"):
        make(dataset="", random_episodes=10)
    with pytest.raises(UsageError, match="learns nothing"):
        make(offline_weight=0.0, monte_carlo_weight=0.0)
    with pytest.raises(UsageError, match="has no horizon: name one"):
        api.plan("hnpg", spaces.box, **SMALL).build()
    with pytest.raises(UsageError, match="shorter than the 5 steps"):
        make(horizon=5)
    with pytest.raises(UsageError, match=r"set network\.recurrent to none"):
        make(**{"network.recurrent": "gru"})


def test_every_fit_begins_with_a_fresh_adam(float64):
    method = make(critic_steps=1, critic_lr=0.01)
    for _ in range(2):
        before = [p.detach().clone() for p in method.critics[0].parameters()]
        method.update(method.collect())
        moved = [(p - q).abs().max().item() for p, q in zip(method.critics[0].parameters(), before)]
        assert max(moved) == pytest.approx(0.01, rel=1e-3)  # its first step is as long as its rate

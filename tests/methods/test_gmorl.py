"""GMORL: preferences reach rewards, actor and critics; steps without a choice; systems of other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import polopt
from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.evaluation.pareto import dense_grid, expected_utility, hypervolume, nondominated, sparsity, weight_grid
from polopt.evaluation.returns import evaluate_returns
from polopt.policies.conditioned import join
from polopt.tasks import make_task
from polopt.training import api
from tests.guards.harness import advance, built
from tests.methods.finite import randomize

MUST = 5


def filled(method: Any) -> Any:
    """A batch of a method whose networks are all different."""
    advance(method, 80)
    randomize(method.policy, method.critic, method.target_critic)
    return method.collect()


def test_must_1_the_target_has_the_weighted_rewards_and_all_networks_read_the_preference(float64):
    with built("gmorl", discount=0.9, reward_scale=2.0, **{"entropy.initial": 0.3}) as method:
        batch = filled(method)
        method.temperature.load_state_dict(type(method.temperature)(0.3, 0.0).state_dict())
        batch["terminated"] = torch.arange(len(batch)) % 3 == 0
        w, rewards = batch["preference"].numpy(), batch["rewards"].numpy()
        assert sorted({*w[:, 0].tolist()}) == [0.5, 0.9, 1.0]
        np.testing.assert_allclose(w.sum(1), 1.0)
        for key in ("obs", "next_obs"):
            assert torch.equal(batch[key]["context"], batch["preference"])
        after, legal = batch["next_obs"], batch["next_obs"]["action_mask"].numpy()
        logits = method.policy.actor.net(after).detach().numpy()
        p = np.where(legal, np.exp(logits - logits.max(1, keepdims=True)), 0.0)
        p /= p.sum(1, keepdims=True)
        q = method.target_critic.network(after).detach().numpy().min(0)
        value = (p * (q - 0.3 * np.log(np.where(legal, p, 1.0)))).sum(1)
        reward = w[:, 0] * rewards[:, 0] + w[:, 1] * rewards[:, 1]
        target = 2.0 * reward + 0.9 * np.where(batch["terminated"], 0.0, value)
        np.testing.assert_allclose(method.target(batch), target, rtol=1e-8)
        assert np.abs(reward - batch["reward"].numpy()).max() > 0.1

        other = batch.clone()
        other["obs"] = join(batch["obs"], 1.0 - batch["preference"])
        assert not torch.equal(method.critic(batch["obs"]), method.critic(other["obs"]))
        assert not torch.equal(method.policy.logits(batch), method.policy.logits(other))


def test_must_1_an_episode_has_one_preference_and_what_is_replayed_a_fresh_one():
    with built("gmorl", relabel=False) as method:
        advance(method, 200)
        stored = method.source.replay.whole()
        context, over = stored["context"].view(-1, 4, 2), (stored["terminated"] | stored["truncated"]).view(-1, 4)
        same = (context[1:] == context[:-1]).all(-1)
        assert same[~over[:-1]].all()
        assert (context[:, :1] != context).any()  # copies of the task have preferences of their own
        assert 0.2 < float(same[over[:-1]].double().mean()) < 0.6  # of three preferences
        batch = method.collect()
        assert torch.equal(batch["preference"], batch["context"])
        assert torch.equal(batch["obs"]["context"], batch["context"])
    with built("gmorl") as method:
        advance(method, 200)
        batch = method.collect()
        assert 0.2 < float((batch["preference"] == batch["context"]).all(-1).double().mean()) < 0.6


def test_preferences_are_drawn_evenly():
    options = {"kinds": 4}
    settings = {"network": "network", "network.sizes": (8,), "warmup": 8, "batch_size": 8, "loggers": ()}
    method = api.plan("gmorl", "sessions", task_options=options, steps=100, seed=1, **settings).build()
    drawn = method.draw(20_000).double()
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000, dtype=torch.float64))
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.006)
    assert drawn.var(0).tolist() == pytest.approx([1 / 18] * 3, abs=0.003)  # of the uniform law on the simplex
    assert drawn.min() >= 0
    np.testing.assert_array_equal(method.weights, weight_grid(3, 4))
    advance(method, 40)
    with built("gmorl") as method:
        shares = (method.draw(6_000)[:, :1] == torch.tensor([0.5, 0.9, 1.0])).double().mean(0)
        assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_must_5_steps_without_a_choice_have_no_part_in_policy_and_temperature(float64):
    """Their rows add nothing: the gradient is that of the others, and so is the gap of the entropy."""
    with built("gmorl", entropy_share=0.5) as method:
        batch = weigh(filled(method))
        legal = batch["obs"]["action_mask"]
        choice = legal.sum(-1) > 1
        assert 5 < int(choice.sum()) < len(batch) - 5
        parameters = list(method.policy.parameters())
        loss, metrics = method.policy_loss(batch)
        whole = torch.autograd.grad(loss, parameters)
        share = choice.double().mean()
        some = weigh(batch[choice].exclude("weight"))
        loss, parts = method.policy_loss(some)
        for one, other in zip(whole, torch.autograd.grad(loss, parameters)):
            torch.testing.assert_close(one, share * other)
        assert max(float(grad.abs().max()) for grad in whole) > 1e-3
        torch.testing.assert_close(metrics["entropy"], share * parts["entropy"])
        largest = method.largest_entropy(batch)
        torch.testing.assert_close(largest, share * method.largest_entropy(some))
        counts = legal[choice].sum(-1).double()
        assert method.largest_entropy(some).item() == pytest.approx(float(counts.log().mean()))
        assert len(counts.unique()) > 1  # systems of several sizes


def test_must_2_a_decision_is_paid_for_what_its_own_task_adds(float64):
    """On an empty server that is its own time; elsewhere it is more."""
    with built("gmorl", envs=16, steps_per_update=1) as method:
        advance(method, 300)
        stored = method.source.replay.whole()
        rows = torch.arange(len(stored))
        _, speed, _, size, rate, tasks = stored["obs"]["servers"][rows, stored["action"], :6].T
        delay, energy = stored["rewards"].T
        empty = tasks == 0
        torch.testing.assert_close(delay[empty], -0.01 * (size / speed)[empty])
        assert (delay[~empty & (size > 0)] < -0.01 * (size / speed)[~empty & (size > 0)]).any()
        torch.testing.assert_close(energy, -50 * (0.01 * size / (100 * rate) + 5e-4 * size * speed**2))
        assert int((~empty & (size > 0)).sum()) > 5
        assert torch.equal(size > 0, energy < 0)


def test_must_3_a_policy_of_small_systems_acts_in_larger_ones(float64):
    with built("gmorl") as method:
        randomize(method.policy)
        world = make_task("edge", 6, 3, edges=6, bins=6, horizon=8)
        obs = world.reset()
        record, _ = method.policy_told().prefer([0.9, 0.1]).act(obs)
        assert record["action"].max() > 3
        assert obs["action_mask"].gather(1, record["action"].unsqueeze(-1)).all()
        scores = method.evaluate(make_task("edge", 4, 3, evaluation=True, edges=6, bins=6, horizon=8), 4)
        assert scores["utility"] < 0


def test_must_4_systems_differ_from_episode_to_episode():
    with built("gmorl") as method:
        advance(method, 200)
        stored = method.source.replay.whole()
        servers, first = stored["obs"]["servers"].view(-1, 4, 4, 12), stored["truncated"].view(-1, 4)[:-1]
        speed, edges = servers[..., 1], servers[..., 0, 2]
        changed = (speed[1:] != speed[:-1]).any(-1)
        assert torch.equal(changed, first)
        assert {*edges.unique().tolist()} == {1.0, 2.0, 3.0}


def test_evaluations_are_of_the_policies_for_each_preference():
    with built("gmorl", preferences=(0.0, 0.5, 1.0), reference=(-50.0, -50.0)) as method:

        def net(obs: Any) -> torch.Tensor:  # the cloud where delay counts at least half
            wish = torch.zeros(*obs["servers"].shape[:-1])
            wish[..., 0] = obs["context"][..., 0] - 0.3
            return wish

        method.policy.actor.net.forward = net
        task = make_task("edge", 8, 3, evaluation=True, edges="1-3", bins=6, horizon=8)
        found = method.evaluate(task, 8)
        points = []
        for weight in (0.0, 0.5, 1.0):
            scores = evaluate_returns(method.policy_told().prefer([weight, 1.0 - weight]), task, 8)
            points.append([scores["return_delay"], scores["return_energy"]])
        assert found["hypervolume"] == pytest.approx(hypervolume(points, (-50.0, -50.0))) != 0.0
        assert found["expected_utility"] == pytest.approx(expected_utility(points, dense_grid(2)))
        by_hand = (points[0][1] + (points[1][0] + points[1][1]) / 2 + points[2][0]) / 3
        assert found["utility"] == pytest.approx(by_hand)
        assert points[0][0] != points[1][0]
        for name, column, sign in (("delay", 0, 1), ("energy", 1, -1)):
            order = spearmanr(sign * np.arange(3), np.array(points)[:, column]).statistic
            assert found[f"follows_{name}"] == pytest.approx(order)
        front = method.figures()["Pareto front"]
        assert (front.x_label, front.y_label) == ("delay", "energy")
        assert set(zip(front.x, front.y)) <= set(map(tuple, points))
        assert found["sparsity"] == sparsity(np.array(points)[nondominated(points)])
        assert torch.equal(method.policy.rows, torch.tensor([[0.5, 0.5]]))  # as it was


def test_a_saved_policy_is_told_preferences(tmp_path):
    smoke = registry.load("gmorl").smoke
    settings = {**smoke.config, "loggers": (), "eval_episodes": 2, "seed": 3}
    api.train("gmorl", smoke.task, steps=100, out=tmp_path / "run", task_options=smoke.task_options, **settings)
    policy: Any = polopt.load(tmp_path / "run")
    world = make_task("edge", 1, 3, edges=2, slots=3, bins=6)
    obs = {name: value[0].numpy() for name, value in world.reset().items()}
    obs["action_mask"][:] = [True, True, True, False]
    assert policy.prefer([0.3, 0.7]).predict(obs) in (0, 1, 2)
    torch.testing.assert_close(policy.rows, torch.tensor([[0.3, 0.7]]))
    with pytest.raises(UsageError, match="there are 2 objectives"):
        policy.prefer([1.0])


def test_what_cannot_be_is_refused_in_one_sentence():
    def make(task: str = "edge", **settings: Any) -> Any:
        return api.plan("gmorl", task, steps=100, loggers=(), **settings).build()

    with pytest.raises(UsageError, match="preferences are weights of two objectives, and sessions has 3"):
        make("sessions", preferences=(0.5,))
    with pytest.raises(UsageError, match="reference has 1 numbers for the 2 objectives"):
        make(reference=(-1.0,))
    with pytest.raises(UsageError, match="relabel has no effect with one preference"):
        make(preferences=(0.5,), relabel=False)
    with pytest.raises(UsageError, match="a network of candidates needs a Box with a row for each"):
        make("sessions")
    with pytest.raises(UsageError, match="has one reward"):
        make("CartPole-v1")

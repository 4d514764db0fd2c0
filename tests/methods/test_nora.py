"""NORA: critic, test, reset and actor against loops over raw episodes, in NumPy; and the methods that it contains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.data.demonstrations import record, save_demonstrations
from polopt.methods.theory.nora import NORA, ActorCritic, fitted_critic, grown, softmax_actor
from polopt.policies.wrappers import Uniform
from polopt.training import api
from polopt.values.ridge import Ridge
from tests.guards.harness import built

MUST = 4
H, S, A = 3, 3, 2
TABLE = torch.eye(S * A, dtype=torch.float64).unflatten(0, (S, A))


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


def small(task_options=None, **changes):
    """NORA on a lock of 3 decisions between 2 actions, with its usual settings."""
    options = {"horizon": H, "actions": A} | (task_options or {})
    return api.plan("nora", "lock", task_options=options, seed=7, steps=100, loggers=(), **changes).build()


def learner(batch=(), features=TABLE, **changes):
    return ActorCritic(NORA.Config(**changes), features, H, batch)


def episodes(count, batch=(), states=S):
    """Random columns for `ActorCritic.add`, [*batch, H, count]."""
    shape = (*batch, H, count)
    return (
        torch.randint(states, shape),
        torch.randint(A, shape),
        torch.rand(shape) / H,
        torch.randint(states, shape),
    )


def regressed(columns, features, bonus, regularizer, policy=None):
    """The critic by regressions on targets, row by row, as the paper's loss has them."""
    state, action, reward, after = (column.numpy() for column in columns)
    phi = features.numpy()
    q, value = np.zeros((H, *phi.shape[:2])), np.zeros(len(phi))
    for h in reversed(range(H)):
        rows = phi[state[h], action[h]]
        gram = regularizer * np.eye(phi.shape[-1]) + rows.T @ rows
        weights = np.linalg.solve(gram, rows.T @ (reward[h] + value[after[h]]))
        for s, a in np.ndindex(*phi.shape[:2]):
            width = math.sqrt(phi[s, a] @ np.linalg.inv(gram) @ phi[s, a])
            q[h, s, a] = np.clip(phi[s, a] @ weights + bonus * width, 0, 1)
        value = q[h].max(-1) if policy is None else (policy[h].numpy() * q[h]).sum(-1)
    return q


# The critic


@pytest.mark.parametrize("features", [TABLE, torch.rand(S, A, 4, dtype=torch.float64)], ids=["table", "linear"])
@pytest.mark.parametrize("bonus", [0.0, 0.02, 0.3])
def test_must_1_the_critic_regresses_on_the_maximum(features, bonus):
    """Q* is its target; the mean under a policy is another one, DOUHUA's."""
    columns, policy = episodes(12), torch.rand(H, S, A).softmax(-1)
    own = learner(features=features)
    own.add(*columns)
    found = [fitted_critic(own.ridge, features, bonus, each) for each in (None, policy)]
    for critic, each in zip(found, (None, policy)):
        np.testing.assert_allclose(critic.numpy(), regressed(columns, features, bonus, 0.01, each), atol=1e-9)
    assert (found[0][:-1] - found[1][:-1]).abs().max() > 1e-3
    assert torch.equal(found[0][-1], found[1][-1])


def test_must_1_the_critic_by_hand():
    """One step, three visits that paid 1, 1 and 0, regularizer 1: 2 / 4 + 0.1 / sqrt(4)."""
    ridge = Ridge(2, 2, (1,))
    features = torch.eye(2, dtype=torch.float64).view(1, 2, 2)
    targets = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    ridge.add(features[0, [0, 0, 0]].unsqueeze(0), targets.unsqueeze(0))
    assert fitted_critic(ridge, features, 0.1).flatten().tolist() == pytest.approx([0.55, 0.1])
    assert fitted_critic(ridge, features, 2.0).flatten().tolist() == [1.0, 1.0]


def test_must_1_all_data_counts_whoever_collected_it():
    """Episodes of three actors, by one: the same critic as of all of them at once, in any order."""
    parts = [episodes(4) for _ in range(3)]
    one, other = learner(growth=1.0), learner(growth=1.0)
    for part in parts:
        one.add(*part)
        one.step()
    other.add(*(torch.cat(columns, -1) for columns in zip(*parts[::-1])))
    other.step()
    torch.testing.assert_close(one.critic, other.critic)
    assert one.ridge.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).tolist() == pytest.approx([12 + 0.06] * H)


def test_must_1_what_was_never_tried_is_worth_everything():
    """So the critic is optimistic at the start until the lock is open, and not without a bonus."""
    method = small()
    for _ in range(15):
        method.update(method.collect())
        assert method.learner.critic[0, 0].max() >= 1.0 - 1e-9
    unseen = method.learner.ridge.covariance.diagonal(dim1=-2, dim2=-1).view(H, S, A) < 1
    assert (method.learner.critic[unseen] == 1).all()
    assert unseen.any()
    assert (fitted_critic(method.learner.ridge, TABLE, 0.0)[unseen] == 0).all()


def test_must_1_the_actor_is_a_softmax_path():
    """pi^{t+1} = pi^t exp(eta f) / Z, beginning with the uniform one after a switch; never argmax f."""
    method = small(eta=0.7)
    policy, before = np.full((H, S, A), 0.5), 0.0
    for _ in range(25):
        metrics = method.update(method.collect())
        if metrics["switches"] > before:
            policy, before = np.full((H, S, A), 0.5), metrics["switches"]
        policy = policy * np.exp(0.7 * method.learner.critic.numpy())
        policy /= policy.sum(-1, keepdims=True)
        np.testing.assert_allclose(method.policy.table[0].numpy(), policy, atol=1e-12)
        assert ((policy > 0) & (policy < 1)).all()
    assert 3 < before < 25


# Switches and resets


def test_must_2_switches_follow_the_determinants():
    """Those of a table are products of visits; a doubling in any one step is enough."""
    method = small(regularizer=1.0)
    visits, planned, switches = np.ones((H, S, A)), np.zeros(H), 0
    for _ in range(60):
        batch = method.collect()
        for h in range(H):
            visits[h, batch["obs", "state"][0, h], batch["action"][0, h]] += 1
        log_det = np.log(visits).sum((1, 2))
        if (log_det >= planned + math.log(2) - 1e-6).any():
            planned, switches = log_det, switches + 1
        old = method.learner.critic
        metrics = method.update(batch)
        assert metrics["switches"] == switches
        assert torch.equal(method.learner.critic, old) == (planned is not log_det)
    assert 5 < switches < 40
    assert grown(torch.tensor([0.0, 0.7]), torch.zeros(2), 2.0)
    assert not grown(torch.tensor([0.3, 0.6]), torch.zeros(2), 2.0)


def test_must_2_a_uniform_actor_acts_only_once():
    """The step follows the reset in the same episode; and a reset leaves nothing of what was there."""
    method = small()
    for t in range(20):
        played, before = method.policy.table.clone(), float(method.learner.switches)
        assert ((played - 0.5).abs().max() < 1e-9) == (t == 0)
        method.update(method.collect())
        if method.learner.switches > before:
            assert torch.equal(method.learner.total, method.learner.critic)
        else:
            assert not torch.equal(method.learner.total, method.learner.critic)


def test_must_4_without_the_reset_stale_critics_stay():
    method = small(reset=False)
    critics = []
    for _ in range(10):
        method.update(method.collect())
        critics.append(method.learner.critic)
    torch.testing.assert_close(method.learner.total, torch.stack(critics).sum(0))
    assert method.learner.switches > 2


@pytest.mark.parametrize("target", ["optimal", "policy"])
def test_must_4_whose_value_the_critic_has(target):
    """DOUHUA's critic is that of the actor that has just played, not of the next one."""
    own = learner(target=target, growth=1.0, reset=False)
    columns = [episodes(6) for _ in range(2)]
    for each in columns:
        own.add(*each)
        played = own.policy()
        own.step()
    both = [torch.cat(pair, -1) for pair in zip(*columns)]
    expected = regressed(both, TABLE, 0.3, 0.01, played if target == "policy" else None)
    np.testing.assert_allclose(own.critic.numpy(), expected, atol=1e-9)


def test_must_4_small_and_large_steps():
    total = torch.tensor([0.2, 0.6, 0.6])
    assert softmax_actor(total, 2.0).tolist() == pytest.approx(np.exp([0.4, 1.2, 1.2]) / np.exp([0.4, 1.2, 1.2]).sum())
    assert softmax_actor(total, 1e-9).tolist() == pytest.approx([1 / 3] * 3)
    assert softmax_actor(total, math.inf).tolist() == [0.0, 0.5, 0.5]


# Offline data


def raw(method, data):
    """A recorded batch [B] as columns [H, n]."""
    rows = data.reshape(-1, H)
    return [each.mT for each in (rows["obs", "state"], rows["action"], rows["reward"], rows["next_obs", "state"])]


def test_must_3_noah_has_no_bonus_and_offline_data_in_every_regression(tmp_path):
    """Fitted Q on offline and online episodes together, at the first switch and at the last."""
    method = small()
    data = record(Uniform(method.spec), method.task.twin(20), 20)
    save_demonstrations(tmp_path / "data.safetensors", data, method.spec)
    method = small(dataset=str(tmp_path / "data.safetensors"), bonus=0.0)
    seen, online, switched = raw(method, data), [], 0
    for _ in range(30):
        batch = method.collect()
        online.append([batch[key].mT for key in (("obs", "state"), "action", "reward", ("final_obs", "state"))])
        before = method.learner.switches.clone()
        method.update(batch)
        if method.learner.switches > before:
            columns = [torch.cat([first, *rest], -1) for first, *rest in zip(seen, *online)]
            expected = regressed(columns, TABLE, 0.0, 0.01)
            np.testing.assert_allclose(method.learner.critic.numpy(), expected, atol=1e-7)
            switched += 1
    assert switched > 1


@pytest.mark.parametrize(("name", "value"), [("right", 1.0), ("half", 0.5), ("random", 0.25)])
def test_must_3_data_of_a_behavior(name, value):
    """The mean return of the episodes that came, but for the decoy: it opens as often as it should."""
    method = small({"decoy": 0.0, "horizon": 2}, dataset=name, offline_episodes=4000)
    counted = method.learner.ridge.covariance.diagonal(dim1=-2, dim2=-1).sum(-1) - 0.06
    assert counted.tolist() == pytest.approx([4000.0] * 2)
    paid = float(method.learner.ridge.moment[-1, :, 0].sum()) / 4000
    assert paid == pytest.approx(value, abs=4 * math.sqrt(value * (1 - value) / 4000))


def test_must_3_covering_data_need_no_optimism_and_other_data_do():
    """Of 4^4 combinations NOAH knows the right one from data that show it; else it stays at the decoy, and NORA not."""
    returns = {}
    for name, count, changes in (
        ("right", 10, {"bonus": 0.0}),
        ("random", 40, {"bonus": 0.0}),
        ("random", 70, {}),
    ):
        method = small({"horizon": 4, "actions": 4}, dataset=name, offline_episodes=10, **changes)
        for _ in range(count):
            method.update(method.collect())
        returns[name, count] = method.evaluate(method.task)["return"]
    assert returns["right", 10] > 0.9
    assert returns["random", 40] < 0.2
    assert returns["random", 70] > 0.9


# What it contains, and what it is side by side


def test_lsvi_ucb_is_contained():
    """With eta = inf and a critic every episode: greedy in the newest optimistic critic, ties shared."""
    method = small(eta=math.inf, growth=1.0)
    seen = []
    for _ in range(15):
        batch = method.collect()
        seen.append([batch[key].mT for key in (("obs", "state"), "action", "reward", ("final_obs", "state"))])
        method.update(batch)
        q = regressed([torch.cat(columns, -1) for columns in zip(*seen)], TABLE, 0.3, 0.01)
        best = np.isclose(q, q.max(-1, keepdims=True), atol=1e-9)
        np.testing.assert_allclose(method.policy.table[0].numpy(), best / best.sum(-1, keepdims=True), atol=1e-9)


def test_runs_side_by_side_are_those_alone():
    """The first run sees one episode again and again, and switches seldom; the other one switches often."""
    both, alone, same = learner((2,)), [learner(), learner()], episodes(1)
    for _ in range(24):
        columns = episodes(1, (2,))
        for column, each in zip(columns, same):
            column[0] = each
        both.add(*columns)
        both.step()
        for row, each in enumerate(alone):
            each.add(*(column[row] for column in columns))
            each.step()
    assert 0 < both.switches[0] < both.switches[1]
    for row, each in enumerate(alone):
        torch.testing.assert_close(both.planned[row], each.planned)
        torch.testing.assert_close(both.policy()[row], each.policy())
        assert both.switches[row] == each.switches


# The entry


def test_values_are_exact_and_the_mixture_is_their_mean():
    method = small()
    assert method.evaluate(method.task)["mixture_return"] == pytest.approx(0.5 * 0.1 + 0.125)
    values, regrets = [], 0.0
    for _ in range(6):
        exact = float(method.spec.info["mdp"].value(method.policy.table[0])[0, 0])
        metrics = method.update(method.collect())
        values.append(exact)
        regrets += 1.0 - exact
        assert metrics["value"].item() == pytest.approx(exact)
        assert metrics["total_regret"].item() == pytest.approx(regrets)
    scores = method.evaluate(method.task)
    assert scores["mixture_return"] == pytest.approx(np.mean(values))
    assert scores["return"] + scores["regret"] == pytest.approx(1.0)


def test_the_start_value_is_that_of_the_first_state():
    method = small({"reward": 2.0, "decoy": 0.2}, bonus=0.0, max_return=2.0)
    for _ in range(10):
        metrics = method.update(method.collect())
        assert metrics["start_value"].item() == pytest.approx(2.0 * method.learner.critic[0, 0].max().item())
    assert 0 < metrics["start_value"] < 2


def test_without_a_model_values_are_sampled():
    method = small({"start": (0.5, 0.5)}, envs=3)
    batch = method.collect()
    assert batch.shape == (3, H)
    metrics = method.update(batch)
    assert set(metrics) == {"value", "switches", "start_value"}
    mean = batch["reward"].sum(1).mean().item()
    assert metrics["value"].item() == pytest.approx(mean)
    assert method.evaluate(method.task, 4)["mixture_return"] == pytest.approx(mean)


def test_linear_features_share_what_was_seen():
    """Off-dynamics has 6 features for 80 pairs: one episode says something of all actions."""
    with built("nora", features="linear", dataset="", offline_episodes=500) as method:
        method.update(method.collect())
        assert method.learner.ridge.covariance.shape == (3, 6, 6)
    with built("nora", dataset="", offline_episodes=500) as method:
        assert method.learner.ridge.covariance.shape == (3, 80, 80)


def test_rewards_are_shares_of_the_largest_return():
    found = []
    for scale in (1.0, 4.0):
        method = small({"reward": scale, "decoy": 0.1 * scale}, max_return=scale)
        starts = [method.update(method.collect())["start_value"] / scale for _ in range(15)]
        found.append((method.policy.table, torch.stack(starts)))
    torch.testing.assert_close(*found)


def test_what_cannot_be_is_said_in_a_sentence(tmp_path):
    for options, changes, text in (
        ({}, {"max_return": 0.05}, "names the largest sum"),
        ({"decoy": -0.1}, {}, "to -0.1"),
    ):
        method = small(options, **changes)
        with pytest.raises(UsageError, match=text):
            [method.update(method.collect()) for _ in range(20)]
    with pytest.raises(UsageError, match="no linear MDP"):
        small(features="linear")
    with pytest.raises(UsageError, match="1,000 pairs of state and action"), built("nora", "layers", max_return=2.0):
        pass
    with pytest.raises(UsageError, match="needs a tabular task"), built("nora", "CartPole-v1"):
        pass
    with pytest.raises(UsageError, match="without a dataset"):
        NORA.Config(offline_episodes=3)
    method, path = small(), tmp_path / "part.safetensors"
    save_demonstrations(path, record(Uniform(method.spec), method.task.twin(2), 2)[1:], method.spec)
    with pytest.raises(UsageError, match="whole episodes"):
        small(dataset=str(path))

"""DCPPO: each stage against loops over trajectories and closed forms, and what identifies the reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from polopt.core.errors import UsageError
from polopt.methods.offline.dcppo import (
    DCPPO,
    VALUES,
    human_q,
    leaving,
    likeliest,
    pessimistic,
    recovered,
    regressions,
)
from polopt.tasks.tabular import NamedMDP, TabularMDP, TabularTask, random_mdp
from polopt.tasks.tabular_sets import LinearMDP, ended, exit_mdp, finite_value
from polopt.training import api
from tests.guards.harness import advance

MUST = 3
SMALL = {"states": 4, "actions": 3, "horizon": 3, "mdp_seed": 2}
NONE = torch.zeros(1, dtype=torch.bool)


def method(task="exit-mdp", options=None, seed=0, **changes):
    return api.plan(
        "dcppo", task, task_options=SMALL if options is None else options, seed=seed, loggers=(), **changes
    ).build()


def expected(learner, episodes):
    """The learner after exactly as many of each (state, choice, successor) as `episodes` have in the mean."""
    mdp, model = learner.mdp, learner.model
    model.visits.copy_(episodes * mdp.occupancy(learner.chances).unsqueeze(-1) * learner.chances)
    model.successors.copy_(model.visits.unsqueeze(-1) * mdp.transition)
    model.rewards.copy_(model.visits * mdp.reward)
    return learner.plan()


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def linear_exit(factors=3, states=12, actions=4, horizon=4, seed=0):
    """A linear MDP that one may leave: `factors` of them and one more, the end."""
    rng = np.random.default_rng(seed)
    features = np.zeros((states + 1, actions, factors + 1))
    features[:-1, 1:, :-1] = rng.dirichlet(np.full(factors, 0.5), size=(states, actions - 1))
    features[:, 0, -1] = features[-1, :, -1] = 1.0
    successors = np.zeros((factors + 1, states + 1))
    successors[:-1, :-1] = rng.dirichlet(np.full(states, 0.5), size=factors)
    successors[-1, -1] = 1.0
    return LinearMDP(features, successors, [*rng.random(factors), 0.0], horizon)


class Linear(NamedMDP):
    model = staticmethod(linear_exit)


# The human


def test_the_human_by_hand():
    """Two steps, one state that goes on: Q_2 = r = (0, 1); V_2 = 1 e / (1 + e), or log(1 + e); Q_1 = r + V_2 / 2."""
    transition, reward = torch.ones(2, 1, 2, 1, dtype=torch.float64), table([[0.0, 1.0]], [[0.0, 0.5]]).flip(0)
    for value, worth in (("average", np.e / (1 + np.e)), ("soft", np.log(1 + np.e))):
        q = human_q(transition, reward, NONE, 0.5, value)
        assert q[1, 0].tolist() == [0.0, 1.0]
        assert q[0, 0].tolist() == pytest.approx([worth / 2, 0.5 + worth / 2])
        assert human_q(transition, reward, ~NONE, 0.5, value)[0, 0].tolist() == [0.0, 0.5]  # nothing follows the end


@pytest.mark.parametrize("value", VALUES)
def test_the_average_is_what_the_human_gets(value):
    """V as the average of Q is the discounted value of the softmax policy, and leaving is worth 0 to both humans."""
    mdp = exit_mdp(**SMALL)
    q = human_q(mdp.transition, mdp.reward, ended(mdp), 0.7, value)
    assert q[:, :, 0].eq(0).all()
    found = finite_value(mdp.transition, mdp.reward, q.softmax(-1), 0.7)[:-1]
    closest = torch.allclose((q.softmax(-1) * q).sum(-1), found)
    assert closest == (value == "average")
    assert value == "average" or (q.logsumexp(-1)[:, :4] > found[:, :4]).all()


def test_the_human_chooses_as_it_should():
    learner = method(envs=4000)
    batch = learner.collect()
    assert learner.behavior is learner.human
    at_start = batch["action"][:, 0]
    share = torch.bincount(at_start, minlength=3) / 4000
    torch.testing.assert_close(share.double(), learner.chances[0, 0], atol=0.03, rtol=0)  # 4 standard errors
    q = human_q(learner.mdp.transition, learner.mdp.reward, learner.over, 0.9, "average")
    torch.testing.assert_close(learner.chances, q.softmax(-1))


# Stage 1


@given(st.lists(st.lists(st.integers(0, 10**4), min_size=3, max_size=3), min_size=2, max_size=2))
@settings(max_examples=15)
def test_likeliest_of_a_table_is_the_log_ratio_of_counts(seen):
    count = torch.tensor(seen, dtype=torch.float64) + 0.5
    phi = torch.eye(6, dtype=torch.float64).reshape(2, 3, 6).clone()
    phi[:, 0] = 0.0
    q = likeliest(phi, torch.stack((count, count.flip(0))))
    torch.testing.assert_close(q[0], (count / count[:, :1]).log(), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(q[1], q[0].flip(0))


def test_likeliest_of_few_features_is_that_of_a_numerical_optimizer():
    rng = np.random.default_rng(0)
    phi, count = rng.normal(size=(5, 3, 2)), rng.integers(0, 200, size=(5, 3)) + 0.5
    phi[:, 0] = 0.0

    def loss(theta):
        q = phi @ theta
        return -(count * (q - np.log(np.exp(q).sum(-1, keepdims=True)))).sum()

    best = minimize(loss, np.zeros(2), tol=1e-12).x
    q = likeliest(torch.from_numpy(phi), torch.from_numpy(count))
    np.testing.assert_allclose(q, phi @ best, atol=1e-5)
    np.testing.assert_allclose(q[:, 0], 0.0)


def test_features_that_no_choice_depends_on_stay_out():
    """Nor do features that say the same twice make it singular."""
    phi = torch.zeros(1, 2, 3, dtype=torch.float64)
    phi[0, 1, :2] = 1.0
    assert likeliest(phi, table([10.0, 30.0]))[0].tolist() == pytest.approx([0.0, np.log(3)])


def test_likeliest_takes_counts_without_bounds():
    """From 0 a whole Newton step goes too far where one action is almost always chosen."""
    phi = torch.tensor([[[0.0], [1.0]], [[0.0], [-8.0]], [[0.0], [8.0]]], dtype=torch.float64)
    count = table([1e9, 1.0], [0.5, 1e6], [1e7, 0.5])
    q = likeliest(phi, count)
    score = ((count - count.sum(-1, keepdim=True) * q.softmax(-1)).unsqueeze(-1) * phi).sum()
    assert abs(float(score)) < 1e-3


def test_likeliest_of_features_of_all_sizes_has_a_score_of_0():
    """Whole Newton steps go round or away in some of these."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        phi = torch.randn(6, 3, 3, generator=generator).double()
        phi = phi * (2 * torch.randn(6, 1, 3, generator=generator).double()).exp()
        phi[:, 0] = 0.0
        count = (12 * torch.rand(6, 3, generator=generator).double()).exp() / 10
        score = count - count.sum(-1, keepdim=True) * likeliest(phi, count).softmax(-1)
        assert (score.unsqueeze(-1) * phi).sum((0, 1)).abs().max() < 1e-6 * count.sum()


# Stages 2 and 3, by loops


def rows_of(batch, learner, step):
    """Features [n, d] of what was done at a step, the successors [n], and where (state, action)."""
    state, action = batch["obs", "state"][:, step], batch["action"][:, step]
    return learner.phi[state, action].numpy(), batch["final_obs", "state"][:, step], (state, action)


@pytest.mark.parametrize(("task", "options"), [("exit-mdp", None), (Linear, {})])
def test_must_1_three_stages_of_the_same_choices(task, options):
    """Ridge regressions row by row, as least squares: the human's discount in the first two, none in the third."""
    learner = method(task, options, envs=60, human_discount=0.6, regularizer=0.7, beta=0.2, prior=0.25)
    batch = learner.collect()
    learner.update(batch)
    mdp, horizon = learner.mdp, learner.mdp.horizon
    count = learner.model.visits + 0.25
    q = likeliest(learner.phi_chosen, count)
    human, after, plan = (q.softmax(-1) * q).sum(-1), np.zeros(mdp.states), []
    human[:, learner.over] = 0.0
    human = torch.cat([human, torch.zeros(1, mdp.states)])
    for step in reversed(range(horizon)):
        phi, successor, where = rows_of(batch, learner, step)
        above, zero = np.sqrt(0.7) * np.eye(phi.shape[1]), np.zeros(phi.shape[1])

        def regressed(target, phi=phi, above=above, zero=zero):
            return np.linalg.lstsq(np.vstack([phi, above]), np.concatenate([target, zero]), rcond=None)[0]

        reward = learner.phi.numpy() @ regressed((q[step][where] - 0.6 * human[step + 1, successor]).numpy())
        weights = regressed(reward[where] + after[successor])
        inverse = np.linalg.inv(phi.T @ phi + above.T @ above)
        width = np.sqrt(np.einsum("sad,de,sae->sa", learner.phi, inverse, learner.phi))
        plan.append(np.clip(learner.phi.numpy() @ weights - 0.2 * width, 0.0, horizon - step))
        after = plan[-1].max(-1)
    found = np.stack(plan[::-1])
    chosen = torch.from_numpy(found).argmax(-1)
    assert torch.equal(learner.policy.table[0].argmax(-1), chosen)

    ridge = regressions(learner.phi, learner.model.visits, learner.model.successors, 0.7)
    reward = recovered(ridge, learner.phi, learner.model.visits, q, human[:-1], 0.6)
    q = pessimistic(ridge, learner.phi, learner.model.visits, reward, 0.2, 1.0)
    np.testing.assert_allclose(q, found, atol=1e-8)

    weight = mdp.occupancy(learner.chances).unsqueeze(-1) * learner.chances  # what the human does before the end
    weight[:, learner.over] = 0.0
    error = ((weight * (reward - mdp.reward).square()).sum() / weight.sum()).sqrt()
    assert learner.plan()["reward_error"] == pytest.approx(float(error))


def test_must_1_the_plan_does_not_discount():
    """With the rewards known, whom the human's discount makes leave or stay does not matter to the plan: from exact
    counts it is optimal for the sum."""
    for discount in (0.0, 0.9):
        learner = method(human_discount=discount, rewards="observed", beta=0.0)
        found = expected(learner, 1e12)
        assert found["suboptimality"] == pytest.approx(0.0, abs=1e-9)
        assert found["reward_error"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_must_2_the_reward_is_identified(value, discount):
    """As choices become many r^ is the reward and the plan is optimal, for every human."""
    learner = method(human_discount=discount, human_value=value, beta=0.0)
    found = expected(learner, 1e9)
    assert found["reward_error"] < 1e-5
    assert found["suboptimality"] < 1e-9
    assert expected(learner, 1e5)["reward_error"] > found["reward_error"]


def test_must_2_without_the_reference_it_is_not():
    """Q^ shifted so that its mean over actions is 0 explains the choices as well, and plans for another reward."""
    learner = method(envs=10)
    expected(learner, 1e9)
    visits, phi = learner.model.visits, learner.phi
    q = likeliest(learner.phi_chosen, visits + 0.5)
    assert q[..., 0].eq(0).all()
    ridge = regressions(phi, visits, learner.model.successors, 1.0)
    plans = []
    for each in (q, q - q.mean(-1, keepdim=True)):
        torch.testing.assert_close(each.softmax(-1), q.softmax(-1))
        human = VALUES["average"](each).masked_fill(learner.over, 0.0)
        reward = recovered(ridge, phi, visits, each, human, 0.9)
        plans.append((reward - learner.mdp.reward)[1:, ~learner.over].abs().max())
    assert plans[0] < 1e-4
    assert plans[1] > 0.3


def test_must_3_width_and_clips_by_hand():
    """One state, two steps, both actions stay: seen 3 times and never; regularizer 1, beta 0.5, rewards 0.8 and 0.

    Last step: 0.8 3/4 - 0.5 / 2 = 0.35, and 0 - 0.5 clipped to 0; first step: (0.8 3 + 0.35 3) / 4 - 0.25 = 0.6125.
    """
    phi = torch.eye(2, dtype=torch.float64).reshape(1, 2, 2)
    visits, reward = table([[3.0, 0.0]], [[3.0, 0.0]]), table([[0.8, 0.0]], [[0.8, 0.0]])
    ridge = regressions(phi, visits, visits.unsqueeze(-1), 1.0)
    q = pessimistic(ridge, phi, visits, reward, 0.5, 1.0)
    assert q.flatten().tolist() == pytest.approx([0.6125, 0.0, 0.35, 0.0])
    q = pessimistic(ridge, phi, visits, 100 * reward, 0.5, 1.0)
    assert q.flatten().tolist() == [2.0, 0.0, 1.0, 0.0]  # at most what is left: 2 and 1
    q = pessimistic(ridge, phi, visits, 100 * reward, 0.5, 0.25)
    assert q.flatten().tolist() == [0.5, 0.0, 0.25, 0.0]


def test_must_3_the_end_has_no_value():
    """Whatever was chosen there, and although nothing is doubted."""
    learner = method(envs=20, beta=0.0)
    learner.update(learner.collect())
    assert learner.model.visits[1:, learner.over].sum() > 0
    for phi in (learner.phi, learner.phi_chosen):
        assert phi[learner.over].eq(0).all()
        assert phi[~learner.over].any()
    assert learner.policy.table[0, :, learner.over].argmax(-1).eq(0).all()  # the first of what is all worth 0


def test_must_3_more_doubt_has_lower_values():
    learner = method(envs=50, beta=0.0)
    learner.update(learner.collect())
    ridge = regressions(learner.phi, learner.model.visits, learner.model.successors, 1.0)
    low, high = (
        pessimistic(ridge, learner.phi, learner.model.visits, learner.mdp.reward, beta, 1.0) for beta in (1.0, 0.0)
    )
    assert (low <= high).all()
    assert (low < high).any()


# Limits


def test_without_discount_the_reward_is_the_regression_of_q_alone():
    learner = method(envs=50, human_discount=0.0)
    learner.update(learner.collect())
    visits, phi = learner.model.visits, learner.phi
    q = likeliest(learner.phi_chosen, visits + 0.5)
    ridge = regressions(phi, visits, learner.model.successors, 1.0)
    reward = recovered(ridge, phi, visits, q, VALUES["average"](q), 0.0)
    torch.testing.assert_close(reward[:, ~learner.over], (visits / (visits + 1) * q)[:, ~learner.over])
    myopic = method(envs=50, human_discount=0.0, assumed_discount=0.0)
    assert {name: float(value) for name, value in myopic.update(myopic.collect()).items()} == learner.plan()


def test_a_myopic_learner_of_a_far_sighted_human_is_biased():
    exact, myopic = method(beta=0.0), method(preset="myopic", beta=0.0)
    assert expected(myopic, 1e9)["reward_error"] > 0.3
    assert expected(exact, 1e9)["reward_error"] < 1e-5


def test_with_rewards_and_without_doubt_it_is_value_iteration():
    learner = method(preset="pevi", beta=0.0, max_reward=9.0)
    expected(learner, 1e12)
    visits, phi, mdp = learner.model.visits, learner.phi, learner.mdp
    ridge = regressions(phi, visits, learner.model.successors, 1.0)
    q = pessimistic(ridge, phi, visits, mdp.reward, 0.0, 9.0)
    value = mdp.optimal()[1]
    reached = mdp.occupancy(learner.chances) > 0
    torch.testing.assert_close(q.amax(-1)[reached], value[:-1][reached])


# The method


def test_rewards_are_not_seen_unless_asked_for():
    for rewards, same in (("recovered", True), ("observed", False)):
        found = []
        for factor in (1.0, -1.0):
            learner = method(envs=100, rewards=rewards)
            batch = learner.collect()
            batch["reward"] = factor * batch["reward"]
            found.append(learner.update(batch)["suboptimality"].item())
        assert (found[0] == found[1]) == same


def test_more_choices_are_less_error():
    few, many = method(envs=300), method(envs=30_000)
    one, two = (each.update(each.collect()) for each in (few, many))
    assert two["reward_error"] < 0.4 * one["reward_error"]
    assert two["suboptimality"] < 0.1


def test_few_features_need_few_choices():
    """The same task with the features of a linear MDP, and with one for each pair."""
    linear = method(Linear, {}, envs=3000)
    pairs = DCPPO(linear.config, TabularTask(TabularMDP(linear.mdp.transition, linear.mdp.reward, 4), 3000))
    assert (linear.phi.shape, pairs.phi.shape) == ((13, 4, 4), (13, 4, 52))
    one, two = (each.update(each.collect())["reward_error"] for each in (linear, pairs))
    assert one < 0.5 * two
    assert expected(linear, 1e9)["reward_error"] < 1e-5


def test_what_is_evaluated_is_exact():
    learner = method(envs=40)
    metrics = learner.update(learner.collect())
    found = learner.evaluate(learner.task)
    value = learner.policy.value(learner.mdp)
    assert found["return"] == pytest.approx(value)
    assert found["suboptimality"] == metrics["suboptimality"].item() == pytest.approx(learner.optimum - value)
    assert learner.optimum == pytest.approx(float(learner.mdp.optimal()[1][0, 0]))
    true = learner.mdp.reward.clone()
    assert 0 <= found["pessimistic"] <= 1
    learner.mdp.reward += 10.0  # whatever is believed, following the policy is worth more
    assert learner.plan()["pessimistic"] == 1.0
    learner.mdp.reward.copy_(true)
    learner.mdp.reward[:, ~learner.over] -= 10.0
    assert learner.plan()["pessimistic"] == 0.0


def test_the_weights_of_another_run_bring_no_other_human():
    learner = method(envs=10)
    learner.human.table.fill_(1.0)
    learner.initialized()
    torch.testing.assert_close(learner.human.table[0], learner.chances)
    advance(learner, 10)


def test_who_cannot_leave_is_refused():
    mdp = random_mdp()
    assert not ended(mdp).any()
    assert leaving(mdp, ended(mdp)) is None
    assert leaving(exit_mdp(), ended(exit_mdp())) == 0
    with pytest.raises(UsageError, match="by an action that leaves, for nothing, as in exit-mdp, and random-mdp has"):
        method("random-mdp", {})
    with pytest.raises(UsageError, match="dcppo plans in a table: it needs a tabular task, which CartPole-v1 is not"):
        method("CartPole-v1", {})
    with pytest.raises(UsageError, match="assumed_discount has no effect where rewards are observed"):
        method(rewards="observed", assumed_discount=0.5)
    with pytest.raises(UsageError, match="prior"):
        method(prior=0.0)


def test_what_is_paid_or_left_is_no_end():
    transition = torch.eye(3, dtype=torch.float64).unsqueeze(1).repeat(1, 2, 1)
    transition[1, 0] = torch.tensor([0.0, 0.0, 1.0])
    reward = torch.zeros(3, 2)
    reward[0, 1] = 0.1
    mdp = TabularMDP(transition, reward, 2)
    assert ended(mdp).tolist() == [False, False, True]
    assert leaving(mdp, ended(mdp)) is None  # from the first state nothing leads there
    transition[0, 0] = torch.tensor([0.0, 0.0, 1.0])
    assert leaving(TabularMDP(transition, reward, 2), ended(mdp)) == 0
    assert leaving(TabularMDP(transition, reward + 0.1, 2), ended(mdp)) is None

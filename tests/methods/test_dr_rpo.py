"""DR-RPO: worst cases per coordinate, the robust bonus and soft values, against loops, programs and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.methods.theory.dr_rpo import backwards, capped, estimated, regularized, soft_policy, soft_value
from polopt.tasks import make_task
from polopt.tasks.tabular import NamedMDP, TabularMDP, random_mdp
from polopt.tasks.tabular_sets import BALLS, LinearMDP, ended, off_dynamics, worst_case
from polopt.training import api
from tests.guards.harness import advance

MUST = 4
SIZES = {"tv": 0.3, "tv-penalty": 0.7, "kl-penalty": 0.8, "chi2-penalty": 0.6}


def method(task="off-dynamics", options=None, seed=0, **changes):
    return api.plan("dr-rpo", task, task_options=options or {}, seed=seed, loggers=(), **changes).build()


def mixed(states=5, actions=3, factors=3, horizon=4, seed=0):
    """A linear MDP in which everything is mixed; what the last state pays is nothing, and no action leaves it."""
    rng = np.random.default_rng(seed)
    features = rng.dirichlet(np.ones(factors + 1), size=(states, actions))
    features[-1] = np.eye(factors + 1)[-1]
    successors = rng.dirichlet(np.ones(states), size=factors + 1)
    successors[-1] = np.eye(states)[-1]
    return LinearMDP(features, successors, [*rng.random(factors), 0.0], horizon)


class Mixed(NamedMDP):
    model = staticmethod(mixed)


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1]))


def known(learner, rows=1e7):
    """The ridge after `rows` rows of each pair at every step, with exactly the mean of successors."""
    mdp, pairs = learner.mdp, learner.phi.flatten(0, 1)
    learner.ridge.covariance += rows * (pairs.T @ pairs)
    learner.ridge.moment += rows * (pairs.T @ mdp.transition.flatten(1, 2))
    learner.plan()
    return learner


# Worst cases


@pytest.mark.parametrize("ball", BALLS)
@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_with_the_factors_known_the_worst_is_exact(ball, seed):
    """Up to the distance of levels; a level less is a lower maximum."""
    factors = drawn(seed, 3, 5)
    value = 2 * torch.from_numpy(np.random.default_rng(seed + 1).random(5))
    value[2] = 0.0
    exact = worst_case(factors, value, SIZES[ball], ball)
    found = estimated(ball, SIZES[ball], 1001, 2.0)(factors, value)
    torch.testing.assert_close(found, exact, atol=2e-3, rtol=0)
    if ball in ("tv", "chi2-penalty"):
        assert (found <= exact + 1e-9).all()
        assert (estimated(ball, SIZES[ball], 6, 2.0)(factors, value) <= found + 1e-9).all()


@pytest.mark.parametrize("ball", ["tv", "chi2-penalty"])
def test_levels_begin_at_the_least_value(ball):
    """Values from 0.5 to 0.7, of at most 3: the best levels lie among the values, near the least one."""
    factors, value = drawn(7, 4, 5), torch.tensor([0.5, 0.55, 0.6, 0.65, 0.7], dtype=torch.float64)
    found = estimated(ball, SIZES[ball], 3001, 3.0)(factors, value)
    torch.testing.assert_close(found, worst_case(factors, value, SIZES[ball], ball), atol=2e-3, rtol=0)


def test_must_1_each_coordinate_has_its_own_level():
    """V = (0, 1, 2), size 0.4. The first factor is certain of 2: its level is 2, 2 - 0.8 = 1.2. Of the second, half of
    which is at 2, half at 0: level 2, 1 - 0.8 = 0.2. The third, 0.3 at 1, is best at level 0: 0. One level for all
    could not have both 1.2 and 0: at 2 the third is 0.3 - 0.8 = -0.5."""
    factors = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.7, 0.3, 0.0]], dtype=torch.float64)
    value = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    found = estimated("tv", 0.4, 21, 2.0)(factors, value)
    assert found.tolist() == pytest.approx([1.2, 0.2, 0.0])
    side_by_side = estimated("tv", 0.4, 21, 2.0)(torch.stack((factors, factors.flip(0))), torch.stack((value, value)))
    assert side_by_side[1].tolist() == pytest.approx([0.0, 0.2, 1.2])
    below, above = capped(value, 3, 2.0)
    assert below.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    assert above.tolist() == [0, 1, 2]


def test_other_worst_cases_by_hand():
    """Half at 0, half at 2, and certain of 2: penalties on moving of 0.5."""
    factors = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    value = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert estimated("tv-penalty", 0.5, 2, 3.0)(factors, value).tolist() == [0.25, 0.5]
    kl = estimated("kl-penalty", 0.5, 2, 3.0)(factors, value)
    assert kl.tolist() == pytest.approx([-0.5 * math.log((1 + math.exp(-4)) / 2), 2.0])
    # with level a: a / 2 - (a / 2)^2 / 2, largest at a = 2: 1 - 1 / 2
    assert estimated("chi2-penalty", 0.5, 301, 3.0)(factors, value).tolist() == pytest.approx([0.5, 2.0])


def test_regressions_may_give_what_no_distribution_gives():
    """Negative weights and sums above 1: logarithms and variances stay in range."""
    strange = torch.tensor([[-1.0, 0.2], [3.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    value = torch.tensor([0.0, 2.0], dtype=torch.float64)
    kl = estimated("kl-penalty", 0.5, 2, 3.0)(strange, value)
    assert kl.tolist() == pytest.approx([3.0, 0.0, 3.0])  # at most H, at least 0
    assert estimated("kl-penalty", 1e-4, 2, 3.0)(strange, value).isfinite().all()
    # second row: mean 3 a, mean of squares 3 a^2: no variance is below 0, 3 a at a = 2
    assert estimated("chi2-penalty", 0.5, 31, 3.0)(strange, value)[1] == pytest.approx(6.0)


def test_without_a_ball_no_noise_is_sought():
    """z(a) of a regression need not rise with a: its maximum over levels would be noise, 0 here; at H it is -0.4."""
    model = torch.tensor([[1.0, -0.4]], dtype=torch.float64)
    value = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert estimated("tv", 0.0, 31, 3.0)(model, value).tolist() == [-0.4]
    assert estimated("tv", 1e-9, 31, 3.0)(model, value).item() == pytest.approx(0.0)


def test_must_4_the_fail_state_has_value_0_and_no_bonus():
    learner = method(beta=5.0)
    assert ended(learner.mdp).tolist() == [False, False, False, True, False]
    assert learner.phi[3].abs().max() == 0
    assert learner.ridge.coordinate_width(learner.phi[3]).abs().max() == 0
    learner.plan()
    learner.update(learner.collect())
    torch.testing.assert_close(learner.policy.table[0, :, 3], torch.full((3, 16), 1 / 16, dtype=torch.float64))


def test_must_4_without_a_fail_state_the_least_value_is_estimated():
    """Mass moves to the worst state, which is worth 0.5: E[min(V, a)] - 0.4 (a - 0.5)."""
    factors, value = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0.5, 1.5]).double()
    assert estimated("tv", 0.4, 11, 1.5)(factors, value).tolist() == pytest.approx([0.4 * 0.5 + 0.6 * 1.5])
    assert estimated("tv-penalty", 0.4, 11, 1.5)(factors, value).tolist() == pytest.approx([0.9])
    learner = known(method("random-mdp", {"states": 3, "actions": 2, "horizon": 3}, size=0.2, levels=2001, beta=0.0))
    assert not ended(learner.mdp).any()
    assert learner.diagnostics()["suboptimality"] == pytest.approx(0.0, abs=1e-3)
    assert learner.believed == pytest.approx(learner.optimum, abs=1e-2)


# Bonus and soft values


def test_must_2_the_bonus_is_that_of_coordinates():
    """Two seen rows, (1, 1) / 2 and (1, 0): Lambda = [[1.35, .25], [.25, .35]], and not the elliptic width."""
    inverse = np.linalg.inv([[1.35, 0.25], [0.25, 0.35]])
    features = [[[0.5, 0.5], [1.0, 0.0]]]
    mdp = LinearMDP(features, [[1.0], [1.0]], [0.0, 0.1], 1)
    learner = method(Once, beta=0.3, size=0.0)
    learner.ridge.add(mdp.features, torch.ones(1, 2, 1))
    np.testing.assert_allclose(learner.ridge.covariance[0], [[1.35, 0.25], [0.25, 0.35]])
    learner.plan()
    width = np.sqrt(np.diag(inverse))
    q = 0.3 * np.array([width.sum() / 2, width[0]]) + np.array([0.05, 0.0])
    table = np.exp(q / 0.02) / np.exp(q / 0.02).sum()
    np.testing.assert_allclose(learner.policy.table[0, 0, 0], table, rtol=1e-7)
    elliptic = np.sqrt([np.full(2, 0.5) @ inverse @ np.full(2, 0.5), inverse[0, 0]])
    assert abs(elliptic[0] - width.sum() / 2) > 0.3


class Once(NamedMDP):
    """One state that pays 0 or 0.1."""

    model = staticmethod(lambda: LinearMDP([[[0.5, 0.5], [1.0, 0.0]]], [[1.0], [1.0]], [0.0, 0.1], 1))


@given(st.integers(0, 10**6), st.floats(0.05, 5.0))
@settings(max_examples=20)
def test_must_3_soft_values_are_the_best(seed, eta):
    """V = E_pi[Q] - eta KL at the soft policy, and no policy has more."""
    q, reference, other = 3 * drawn(seed, 2, 4), drawn(seed + 1, 2, 4), drawn(seed + 2, 2, 4)
    value, policy = soft_value(q, reference, eta), soft_policy(q, reference, eta)
    torch.testing.assert_close(regularized(q, policy, reference, eta), value)
    assert (regularized(q, other, reference, eta) <= value + 1e-12).all()
    torch.testing.assert_close(policy.log() - reference.log(), q / eta - (value / eta).unsqueeze(-1))


def test_must_3_soft_values_by_hand_and_without_eta():
    q, uniform = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, 0.5]).double()
    assert soft_value(q, uniform, 2.0).item() == pytest.approx(2 * math.log((math.exp(0.5) + math.exp(1.5)) / 2))
    assert soft_value(q, uniform, 0.0).item() == 3.0
    assert soft_policy(q, uniform, 0.0).tolist() == [0.0, 1.0]
    one = torch.tensor([0.0, 1.0]).double()
    assert regularized(q, one, uniform, 2.0).item() == pytest.approx(3 - 2 * math.log(2))


def test_tables_are_taken_from_the_last_step_on():
    improve = backwards(lambda q, table: q + table, torch.tensor([1.0, 2.0, 3.0]))
    assert [improve(10.0).item() for _ in range(3)] == [13.0, 12.0, 11.0]


# The iterate, row by row


def by_rows(learner, rows, ball_size, eta, reference):
    """Q [H, S, A] by ridge regressions of min(V, a) on the rows (step, state, action, successor)."""
    config, mdp, phi = learner.config, learner.mdp, learner.phi.numpy()
    horizon, value, tables = mdp.horizon, np.zeros(mdp.states), []
    for h in reversed(range(horizon)):
        seen = [(state, action, after) for step, state, action, after in rows if step == h]
        design = np.array([phi[state, action] for state, action, _ in seen])
        inverse = np.linalg.inv(config.regularizer * np.eye(phi.shape[-1]) + design.T @ design)
        best = np.full(phi.shape[-1], -np.inf)
        for level in np.linspace(0, horizon, config.levels) if ball_size > 0 else [horizon]:
            target = np.array([min(value[after], level) for *_, after in seen])
            best = np.maximum(best, inverse @ (design.T @ target) - ball_size * level)
        bonus = config.beta * phi @ np.sqrt(np.diag(inverse))
        theta = learner.theta[h].numpy()
        q = np.clip(phi @ (theta + best) + bonus, 0, horizon - h)
        tables.append(q)
        value = eta * np.log((reference[h] * np.exp(q / eta)).sum(-1)) if eta else q.max(-1)
    return np.stack(tables[::-1])


def rows_of(batch):
    parts = (batch["obs", "step"], batch["obs", "state"], batch["action"], batch["final_obs", "state"])
    return list(zip(*(part.flatten().tolist() for part in parts)))


@pytest.mark.parametrize("task", ["off-dynamics", Mixed])
@pytest.mark.parametrize(("size", "eta"), [(0.3, 0.5), (0.0, 0.5), (0.3, 0.0), (0.0, 0.0)])
def test_the_plan_is_that_of_regressions_row_by_row(task, size, eta):
    """Size 0 is LSVI-UCB with the bonus of coordinates, eta 0 is greedy: both presets are in here."""
    learner = method(task, envs=15, size=size, eta=eta, beta=0.2)
    batch = learner.collect()
    learner.update(batch)
    uniform = np.full(learner.uniform.shape, 1 / learner.mdp.actions)
    q = by_rows(learner, rows_of(batch), size, eta, uniform)
    if eta:
        expected = np.exp((q - q.max(-1, keepdims=True)) / eta)
        np.testing.assert_allclose(learner.policy.table[0], expected / expected.sum(-1, keepdims=True), atol=1e-8)
        assert learner.believed == pytest.approx(eta * np.log(np.exp(q[0, 0] / eta).mean()))
    else:
        chosen = np.take_along_axis(q, learner.policy.table[0].argmax(-1, keepdim=True).numpy(), -1)
        np.testing.assert_allclose(chosen[..., 0], q.max(-1), atol=1e-9)
        assert learner.believed == pytest.approx(q[0, 0].max())


def test_mirror_descent_begins_at_the_last_policy():
    learner = method(Mixed, envs=10, reference="previous", eta=0.5)
    first = learner.policy.table[0].clone()
    batch = learner.collect()
    learner.update(batch)
    q = by_rows(learner, rows_of(batch), 0.5, 0.5, first.numpy())
    expected = first.numpy() * np.exp(q / 0.5)
    np.testing.assert_allclose(learner.policy.table[0], expected / expected.sum(-1, keepdims=True), atol=1e-8)
    assert learner.price == 0.0


def test_as_eta_goes_to_0_it_is_greedy():
    """Soft values are at most H eta log A below greedy ones."""
    greedy = known(method(Mixed, eta=0.0, beta=0.3))
    for eta in (1e-1, 1e-3, 1e-7):
        soft = known(method(Mixed, eta=eta, beta=0.3))
        assert -1e-12 <= greedy.believed - soft.believed <= 4 * eta * math.log(3)


def test_a_penalty_beyond_all_values_is_no_ball():
    one, other = (
        known(method(Mixed, beta=0.3, **size)) for size in ({"size": 0.0}, {"ball": "tv-penalty", "size": 4.0})
    )
    assert torch.equal(one.policy.table, other.policy.table)


# What it is judged by


@pytest.mark.parametrize("ball", BALLS)
def test_with_enough_data_it_plays_the_best_regularized_policy(ball):
    learner = known(method(Mixed, ball=ball, size=SIZES[ball], eta=0.1, beta=0.0, **levels(ball)))
    found = learner.diagnostics()
    assert found["suboptimality"] == pytest.approx(0.0, abs=1e-4)
    assert found["optimism"] == pytest.approx(0.0, abs=5e-3)


def levels(ball):
    return {"levels": 1001} if ball in ("tv", "chi2-penalty") else {}


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_values_and_optima_are_those_of_a_loop(eta):
    """Policies in the worst case of total variation: mass goes from the best states to the worst."""
    learner = method(Mixed, size=0.3, eta=eta)
    mdp, policy = learner.mdp, drawn(3, 4, 5, 3).numpy()
    policy[:, -1] = 1 / 3  # where all is over KL would still be paid
    learner.policy.table.copy_(torch.from_numpy(policy).unsqueeze(0))

    def value_of(act):
        value = np.zeros(5)
        for h in reversed(range(4)):
            worst = []
            for factor in mdp.factors.numpy():
                left, moved = factor.copy(), 0.3
                for state in np.argsort(-value):
                    taken = min(left[state], moved)
                    left[state], moved = left[state] - taken, moved - taken
                left[value.argmin()] += 0.3 - moved
                worst.append(left @ value)
            q = np.asarray(mdp.features) @ (np.asarray(mdp.weights) + np.array(worst))
            value = act(q, h)
            value[-1] = 0.0
        return value[0]

    def played(price):
        return lambda q, h: (policy[h] * (q - price * np.log(3 * policy[h]))).sum(-1)

    best = value_of(lambda q, h: eta * np.log(np.exp(q / eta).mean(-1)) if eta else q.max(-1))
    assert learner.optimum == pytest.approx(best)
    assert learner.diagnostics()["suboptimality"] == pytest.approx(best - value_of(played(eta)))
    assert learner.evaluate(learner.task)["worst_return"] == pytest.approx(value_of(played(0.0)))


def test_what_is_evaluated_is_exact_in_the_task_of_the_evaluation():
    learner = method(envs=4)
    learner.update(learner.collect())
    table = learner.policy.table[0]
    for shift in (0.0, 0.4, 1.0):
        found = learner.evaluate(make_task("off-dynamics", shift=shift))
        assert found["return"] == pytest.approx(float(off_dynamics(shift).value(table)[0, 0]))
    assert found["worst_return"] < learner.evaluate(learner.task)["return"]
    figure = learner.figures()["robustness"]
    assert figure.lines["policy"][0] == pytest.approx(float(learner.mdp.value(table)[0, 0]))
    assert figure.lines["policy"][10] == pytest.approx(found["worst_return"])  # at size 0.5
    assert figure.lines["best where nothing moves"][0] == pytest.approx(2.0)
    assert figure.x[10] == 0.5


def test_averages_are_over_episodes():
    learner, found, sizes = method(envs=3), [], []
    for _ in range(3):
        played = learner.diagnostics()
        metrics = learner.update(learner.collect())
        assert metrics["suboptimality"].item() == played["suboptimality"]
        found.append(played["suboptimality"])
        sizes.append(metrics["average_suboptimality"].item())
    assert sizes == pytest.approx([np.mean(found[: n + 1]) for n in range(3)])
    assert learner.played == 9


def test_it_learns_to_be_robust():
    """After 200 episodes near its own optimum, and at the worst shift better than who expects none."""
    robust, plain = method(size=0.5, envs=4), method(size=0.0, envs=4)
    for learner in (robust, plain):
        advance(learner, 200)
    assert robust.diagnostics()["suboptimality"] < 0.1
    shifted = make_task("off-dynamics", shift=1.0)
    assert robust.evaluate(shifted)["return"] > plain.evaluate(shifted)["return"] + 0.3


def test_what_another_run_has_seen_is_planned_for_anew():
    one, other = method(size=0.5, envs=20), method(size=0.0)
    one.update(one.collect())
    other.ridge.load_state_dict(one.ridge.state_dict())
    other.policy.load_state_dict(one.policy.state_dict())
    other.initialized()
    alone = method(size=0.0, envs=20)
    alone.update(alone.collect())  # the first policy of both saw nothing: the same episodes
    torch.testing.assert_close(other.policy.table, alone.policy.table)
    assert other.believed == pytest.approx(alone.believed)


def test_tasks_without_factors_have_one_for_each_pair():
    learner = method("random-mdp", {"states": 3, "actions": 2, "horizon": 3}, size=0.1)
    mdp = random_mdp(3, 2, 3)
    assert learner.phi.shape == (3, 2, 6)
    torch.testing.assert_close(learner.phi @ learner.factors[1], mdp.transition[1])
    torch.testing.assert_close(learner.phi @ learner.theta[2], mdp.reward[2])
    advance(learner, 5)


class Rich(NamedMDP):
    model = staticmethod(lambda: TabularMDP(torch.ones(1, 1, 1), torch.full((1, 1), 2.0), 1))


def test_what_it_cannot_take_is_refused():
    with pytest.raises(UsageError, match="dr-rpo plans in a table: it needs a tabular task, which CartPole-v1 is not"):
        method("CartPole-v1")
    with pytest.raises(UsageError, match="dr-rpo takes rewards from 0 to 1, and Rich has some from 2 to 2"):
        method(Rich)
    with pytest.raises(UsageError, match="kl-penalty has no size 0: the worst would cost nothing"):
        method(ball="kl-penalty", size=0.0)
    with pytest.raises(UsageError, match=r"levels has no effect on tv-penalty of size 0\.5, where nothing is sought"):
        method(ball="tv-penalty", levels=5)
    with pytest.raises(UsageError, match="levels has no effect on tv of size 0, where"):
        method(size=0.0, levels=5)
    with pytest.raises(UsageError, match="reference has no effect at eta 0"):
        method(eta=0.0, reference="previous")

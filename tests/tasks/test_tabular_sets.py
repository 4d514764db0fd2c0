from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.tabular import TabularMDP, random_mdp
from polopt.tasks.tabular_sets import (
    LinearMDP,
    discounted_occupancy,
    discounted_optimal,
    discounted_value,
    ended,
    exit_mdp,
    expectation,
    features_of,
    finite_optimal,
    finite_value,
    off_dynamics,
    paths,
    robust_optimal,
    worst_case,
    worst_model,
)

shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Distributions over the last axis."""
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1]))


def models(count: int = 3, states: int = 4, actions: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Transitions [M, S, A, S] and rewards [M, S, A]."""
    reward = torch.from_numpy(np.random.default_rng(7).random((count, states, actions)))
    return drawn(8, count, states, actions, states), reward


@given(shapes)
def test_finite_values_are_those_of_one_mdp(shape: tuple[int, int, int, int]) -> None:
    """Two MDPs and two rewards of each, side by side: [2, 2, H, S, A]."""
    states, actions, horizon, seed = shape
    mdps = [random_mdp(states, actions, horizon, mdp_seed=seed + i, reward_rate=0.8) for i in range(2)]
    transition = torch.stack([mdp.transition for mdp in mdps])
    rewards = torch.stack([torch.stack([mdp.reward, mdp.reward.flip(0)]) for mdp in mdps], 1)  # [kind, mdp, ...]
    policy = drawn(seed, horizon, states, actions)
    value = finite_value(transition, rewards, policy)
    best, best_value = finite_optimal(transition, rewards)
    for kind, i in itertools.product(range(2), range(2)):
        alone = TabularMDP(mdps[i].transition, rewards[kind, i], horizon)
        torch.testing.assert_close(value[kind, i], alone.value(policy))
        torch.testing.assert_close(best_value[kind, i], alone.optimal()[1])
        torch.testing.assert_close(alone.value(best[kind, i]), best_value[kind, i])


def test_a_discount_counts_from_each_step_and_values_have_gradients() -> None:
    """One state, rewards 1, 2, 4, of which action 0 gets all and action 1 half: V_0 = sum discount^h r_h by hand."""
    transition, reward = torch.ones(3, 1, 2, 1), torch.tensor([[[1.0, 0.5]], [[2.0, 1.0]], [[4.0, 2.0]]])
    share = torch.full((3, 1, 1), 0.5, requires_grad=True)
    policy = torch.cat([share, 1 - share], -1)
    value = finite_value(transition, reward, policy, discount=0.5)
    assert value[:, 0].tolist() == pytest.approx([0.75 * (1 + 1 + 1), 0.75 * (2 + 2), 0.75 * 4, 0])
    value[0, 0].backward()
    assert share.grad is not None
    assert share.grad.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])  # half of each discounted reward
    assert finite_optimal(transition, reward, 0.5)[1][0].item() == pytest.approx(3)


def test_discounted_values_are_limits_of_finite_ones() -> None:
    transition, reward = models()
    policy = drawn(3, 4, 2)
    value = discounted_value(transition, reward, policy, 0.5)
    steps = 60
    long = finite_value(transition.unsqueeze(1).expand(3, steps, 4, 2, 4), reward.unsqueeze(1).expand(3, steps, 4, 2),
                        policy.expand(steps, 4, 2), 0.5)  # fmt: skip
    torch.testing.assert_close(value, long[:, 0])
    best, best_value = discounted_optimal(transition, reward, 0.5)
    plan = finite_optimal(transition.unsqueeze(1).expand(3, steps, 4, 2, 4),
                          reward.unsqueeze(1).expand(3, steps, 4, 2), 0.5)  # fmt: skip
    torch.testing.assert_close(best_value, plan[1][:, 0])
    torch.testing.assert_close(discounted_value(transition, reward, best, 0.5), best_value)
    assert (best_value >= value).all()


def test_actions_that_are_equally_good_do_not_go_round_in_circles() -> None:
    transition, reward = torch.full((3, 4, 3), 1 / 3, dtype=torch.float64), torch.full((3, 4), 0.1).double()
    policy, value = discounted_optimal(transition, reward, 0.9)
    torch.testing.assert_close(value, torch.ones(3).double(), atol=1e-7, rtol=0)
    assert policy[:, 0].eq(1).all()


def test_occupancy_times_reward_is_the_value_of_the_start() -> None:
    transition, reward = models()
    policy, start = drawn(3, 3, 4, 2), drawn(4, 4)
    occupancy = discounted_occupancy(transition, policy, start, 0.8)
    torch.testing.assert_close(occupancy.sum(-1), torch.ones(3).double())
    total = (occupancy.unsqueeze(-1) * policy * reward).sum((-1, -2)) / 0.2
    torch.testing.assert_close(total, discounted_value(transition, reward, policy, 0.8) @ start)


def test_problems_without_an_end_need_a_discount() -> None:
    transition, reward = models()
    for call in (
        lambda: discounted_optimal(transition, reward, 1.0),
        lambda: robust_optimal(reward[0], worst_model(transition), 1.0),
        lambda: discounted_occupancy(transition, drawn(3, 4, 2), drawn(4, 4), -0.1),
    ):
        with pytest.raises(UsageError, match="needs a discount of at least 0 and below 1"):
            call()


def test_the_robust_policy_is_the_best_against_the_worst_choice_of_models() -> None:
    """A model for each (s, a), 3^8 choices, and 2^4 policies: by listing them all."""
    transition, reward = models()
    policy, value = robust_optimal(reward[0], worst_model(transition), 0.7)
    choices = torch.tensor(list(itertools.product(range(3), repeat=8))).reshape(-1, 4, 2)
    chosen = transition[choices, torch.arange(4)[:, None], torch.arange(2)]  # [3^8, S, A, S]
    best = torch.full((4,), -torch.inf, dtype=torch.float64)
    for actions in itertools.product(range(2), repeat=4):
        table = torch.nn.functional.one_hot(torch.tensor(actions), 2).double()
        worst = discounted_value(chosen, reward[0], table, 0.7).amin(0)
        if torch.equal(table, policy):
            torch.testing.assert_close(worst, value)
        best = torch.maximum(best, worst)
    torch.testing.assert_close(best, value)


def test_with_one_model_nothing_is_robust() -> None:
    transition, reward = models()
    policy, value = robust_optimal(reward, expectation(transition), 0.9)
    plain, best = discounted_optimal(transition, reward, 0.9)
    torch.testing.assert_close(value, best, atol=1e-9, rtol=0)
    assert torch.equal(policy, plain)
    same = robust_optimal(reward, lambda v: worst_case(transition, v[..., None, None, :], 0.0), 0.9)
    torch.testing.assert_close(same[1], best, atol=1e-9, rtol=0)


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.4, 1.0]))
def test_the_worst_within_total_variation_is_a_linear_program(states: int, seed: int, size: float) -> None:
    """min q.V over q and t >= |q - p| with sum t <= 2 size."""
    rng = np.random.default_rng(seed)
    p, value = rng.dirichlet(np.ones(states)), rng.normal(size=states)
    eye, nothing = np.eye(states), np.zeros(states)
    found = linprog(
        np.concatenate([value, nothing]),
        A_ub=np.block([[eye, -eye], [-eye, -eye], [nothing, np.ones(states)]]),
        b_ub=np.concatenate([p, -p, [2 * size]]),
        A_eq=np.concatenate([np.ones(states), nothing])[None],
        b_eq=[1.0],
    )
    assert float(worst_case(torch.from_numpy(p), torch.from_numpy(value), size)) == pytest.approx(found.fun, abs=1e-9)


@pytest.mark.parametrize("ball", ["tv-penalty", "kl-penalty", "chi2-penalty"])
def test_penalties_are_the_least_over_a_grid_of_distributions(ball: str) -> None:
    """All q on three states in steps of 1/200: never below what is found, and close to it."""
    steps = 200
    grid = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
    for seed, size in itertools.product(range(6), (0.05, 0.3, 2.0)):
        rng = np.random.default_rng(seed)
        p, value = rng.dirichlet(2 * np.ones(3)), rng.normal(size=3)
        distance = {
            "tv-penalty": np.abs(grid - p).sum(-1) / 2,
            "kl-penalty": np.where(grid > 0, grid * np.log(np.maximum(grid, 1e-300) / p), 0).sum(-1),
            "chi2-penalty": ((grid - p) ** 2 / p).sum(-1),
        }[ball]
        least = (grid @ value + size * distance).min()
        found = float(worst_case(torch.from_numpy(p), torch.from_numpy(value), size, ball))
        assert found - 1e-9 <= least <= found + 0.02


def test_many_worst_cases_at_once_are_those_alone() -> None:
    p, value = drawn(1, 2, 3, 4), torch.from_numpy(np.random.default_rng(2).normal(size=(3, 4)))
    for ball in ("tv", "tv-penalty", "kl-penalty", "chi2-penalty"):
        many = worst_case(p, value, 0.2, ball)
        for i, j in itertools.product(range(2), range(3)):
            torch.testing.assert_close(many[i, j], worst_case(p[i, j], value[j], 0.2, ball))
    with pytest.raises(UsageError, match="there is no ball 'l2' of distributions: choose from tv, tv-penalty"):
        worst_case(p, value, 0.2, "l2")
    with pytest.raises(UsageError, match="a ball 'kl-penalty' cannot have the size 0"):
        worst_case(p, value, 0, "kl-penalty")
    with pytest.raises(UsageError, match="a ball 'tv' cannot have the size -1"):
        worst_case(p, value, -1)


@given(shapes)
def test_all_paths_give_the_value(shape: tuple[int, int, int, int]) -> None:
    states, actions, horizon, seed = shape
    mdp = random_mdp(states, actions, horizon, mdp_seed=seed, reward_rate=0.8)
    policy = drawn(seed, 2, horizon, states, actions)
    found = paths(mdp)
    probability = found.probability(policy)
    torch.testing.assert_close(probability.sum(-1), torch.ones(2).double())
    value = (probability * found.returns(mdp.reward, 0.9)).sum(-1)
    expected = finite_value(mdp.transition, mdp.reward, policy, 0.9)[:, 0, mdp.start]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found.chance * found.log_prob(policy).sum(-1).exp(), probability)
    assert len({(*s, *a) for s, a in zip(found.state.tolist(), found.action.tolist())}) == len(found.state)


def test_paths_are_a_batch_of_episodes() -> None:
    mdp = random_mdp(3, 2, 2, mdp_seed=4, reward_rate=1.0)
    found = paths(mdp)
    batch = found.episodes(mdp.reward)
    assert batch.batch_size == found.state.shape
    assert torch.equal(batch["obs", "state"], found.state)
    assert batch["obs", "step"][0].tolist() == [0, 1]
    assert batch["mask"].all()
    row = len(found.state) - 1
    paid = [float(mdp.reward[h, found.state[row, h], found.action[row, h]]) for h in range(2)]
    assert batch["reward"][row].tolist() == paid


def test_too_many_paths_are_refused() -> None:
    with pytest.raises(UsageError, match="more than 100 paths"):
        paths(random_mdp(3, 3, 4), most=100)


@pytest.mark.parametrize(("radius", "returns"), [(0.0, [2.0, 1.0, 0.5, 0.0]), (0.5, [1.63, 1.35, 1.21, 1.07])])
def test_off_dynamics_has_a_price_of_robustness(radius: float, returns: list[float]) -> None:
    """The best policy for every factor within `radius`, regularized by 0.02 KL to uniform, at four shifts."""
    mdp = off_dynamics()
    q, value = [], torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        q.append(mdp.features @ (mdp.weights + worst_case(mdp.factors, value, radius)))
        value = 0.02 * ((q[-1] / 0.02).logsumexp(-1) - np.log(16))
    policy = (torch.stack(q[::-1]) / 0.02).softmax(-1)
    found = [float(off_dynamics(shift).value(policy)[0, 0]) for shift in (0, 0.5, 0.75, 1)]
    assert found == pytest.approx(returns, abs=0.01)


def test_off_dynamics_by_hand() -> None:
    mdp = off_dynamics(shift=0.25)
    assert isinstance(mdp, LinearMDP)
    first, last = mdp.transition[0, 1, 0], mdp.transition[0, 1, 15]  # actions of -1 only are safe, of 1 only risky
    assert first.tolist() == [0, 0, 1, 0, 0]
    assert last.tolist() == [0, 0, 0, 0.25, 0.75]
    assert mdp.transition[0, 1, 1].tolist() == [0, 0, 0.75, 0.0625, 0.1875]
    assert mdp.reward[0, :, 1].tolist() == [0.375, 0.375, 0.375, 0, 1]
    assert mdp.features.sum(-1).eq(1).all()


def test_parts_of_a_linear_mdp_are_distributions() -> None:
    with pytest.raises(UsageError, match="features of each pair of a linear MDP must be distributions: at least 0 and"):
        LinearMDP([[[0.5, 0.6]]], [[1.0], [1.0]], [0.0, 0.0], 1)
    with pytest.raises(UsageError, match="features of each pair"):
        LinearMDP([[[-0.5, 1.5]]], [[1.0], [1.0]], [0.0, 0.0], 1)
    with pytest.raises(UsageError, match="the factors of a linear MDP"):
        LinearMDP([[[1.0, 0.0]], [[0.0, 1.0]]], [[2.0, -1.0], [1.0, 0.0]], [0.0, 0.0], 1)


def test_who_leaves_has_left() -> None:
    mdp = exit_mdp(states=3, actions=2, horizon=4, mdp_seed=1)
    assert (mdp.states, mdp.actions) == (4, 2)
    assert mdp.transition[:, :, 0, 3].eq(1).all()
    assert mdp.transition[:, 3, :, 3].eq(1).all()
    assert mdp.transition[:, :3, 1, 3].eq(0).all()
    assert mdp.reward[:, :, 0].eq(0).all()
    assert mdp.reward[:, 3].eq(0).all()
    assert mdp.reward[:, :3, 1].gt(0).all()
    assert not torch.equal(mdp.reward, exit_mdp(states=3, actions=2, horizon=4, mdp_seed=2).reward)


def test_features_are_those_of_a_linear_mdp_or_of_pairs() -> None:
    mdp, linear = random_mdp(3, 2, 2), off_dynamics()
    assert features_of(linear) is linear.features
    phi = features_of(mdp)
    assert phi.shape == (3, 2, 6)
    assert torch.equal(phi.flatten(0, 1), torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(phi @ mdp.transition[1].reshape(6, 3), mdp.transition[1])


def test_what_pays_or_is_left_is_no_end() -> None:
    assert ended(off_dynamics()).tolist() == [False, False, False, True, False]  # the goal pays
    assert ended(exit_mdp(3, 2, 4)).tolist() == [False, False, False, True]
    stays = torch.eye(2).unsqueeze(1).repeat(2, 1, 2, 1)  # [H, S, A, S]
    reward = torch.zeros(2, 2, 2)
    assert ended(TabularMDP(stays, reward, 2)).all()
    reward[1, 0, 1] = -1.0
    stays[0, 1, 0] = torch.tensor([0.5, 0.5])
    assert not ended(TabularMDP(stays, reward, 2)).any()


def test_they_are_tasks_by_name() -> None:
    task = make_task("off-dynamics", num=3, shift=0.5)
    assert task.spec.info["mdp"].factors[3].tolist() == [0, 0, 0, 0.5, 0.5]
    task = make_task("exit-mdp", mdp_seed=4, states=6)
    assert torch.equal(task.spec.info["mdp"].reward, exit_mdp(6, mdp_seed=4).reward)
    with pytest.raises(UsageError, match="has no option 'shift'"):
        make_task("exit-mdp", shift=0.5)

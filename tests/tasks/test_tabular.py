from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.tasks import make_task
from polopt.tasks.tabular import TabularMDP, TabularTask, chain, random_mdp

shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))


def random_policy(mdp: TabularMDP, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.dirichlet(np.ones(mdp.actions), size=(mdp.horizon, mdp.states)))


@given(shapes)
def test_values_solve_the_linear_system(shape: tuple[int, int, int, int]) -> None:
    """(I - P) v = r over all pairs (step, state), the states after the last step worth 0."""
    states, actions, horizon, seed = shape
    mdp = random_mdp(states, actions, horizon, mdp_seed=seed, reward_rate=0.8)
    policy = random_policy(mdp, seed).numpy()
    size = horizon * states
    system, right = np.eye(size), np.zeros(size)
    for h, s, a in itertools.product(range(horizon), range(states), range(actions)):
        row = h * states + s
        right[row] += policy[h, s, a] * mdp.reward[h, s, a].item()
        if h + 1 < horizon:
            system[row, (h + 1) * states : (h + 2) * states] -= policy[h, s, a] * mdp.transition[h, s, a].numpy()
    expected = np.linalg.solve(system, right).reshape(horizon, states)
    value = mdp.value(torch.from_numpy(policy))
    np.testing.assert_allclose(value[:-1], expected, atol=1e-12)
    assert value[-1].eq(0).all()


@given(shapes)
def test_occupancy_times_reward_is_the_value_of_the_start(shape: tuple[int, int, int, int]) -> None:
    states, actions, horizon, seed = shape
    mdp = random_mdp(states, actions, horizon, mdp_seed=seed, reward_rate=0.8)
    policy = random_policy(mdp, seed)
    occupancy = mdp.occupancy(policy)
    torch.testing.assert_close(occupancy.sum(-1), torch.ones(horizon, dtype=torch.float64))
    total = (occupancy.unsqueeze(-1) * policy * mdp.reward).sum()
    torch.testing.assert_close(total, mdp.value(policy)[0, mdp.start])


def test_the_optimal_policy_is_the_best_of_all_deterministic_ones() -> None:
    mdp = random_mdp(states=2, actions=2, horizon=3, mdp_seed=4, reward_rate=0.9)
    policy, value = mdp.optimal()
    best = torch.full((2,), -1.0, dtype=torch.float64)
    for choice in itertools.product(range(2), repeat=6):
        table = torch.nn.functional.one_hot(torch.tensor(choice).reshape(3, 2), 2).double()
        best = torch.maximum(best, mdp.value(table)[0])
    torch.testing.assert_close(value[0], best, rtol=0, atol=1e-14)
    torch.testing.assert_close(mdp.value(policy), value)


def test_a_chain_by_hand() -> None:
    mdp = chain(states=2, horizon=2, slip=0.5)
    # last step: state 0 goes left for 0.01, state 1 goes right for 1; before it: state 0 best goes right (0.5 of 1)
    _, value = mdp.optimal()
    assert value.tolist() == [[pytest.approx(0.505), pytest.approx(1.505)], [0.01, 1.0], [0.0, 0.0]]


def test_wrong_models_are_refused() -> None:
    fine, reward = torch.full((2, 3, 2), 0.5), torch.zeros(2, 3)
    with pytest.raises(UsageError, match="each row of the transitions must be a distribution"):
        TabularMDP(fine * 0.9, reward, 4)
    with pytest.raises(UsageError, match=r"rewards \[4, 3, 2\] do not fit"):
        TabularMDP(fine, torch.zeros(3, 2), 4)
    with pytest.raises(UsageError, match="start state 2 is not one of 2"):
        TabularMDP(fine, reward, 4, start=2)
    with pytest.raises(ValueError, match=r"a policy here is \[4, 2, 3\], not \[2, 3\]"):
        TabularMDP(fine, reward, 4).value(torch.zeros(2, 3))


def test_the_random_mdp_depends_on_its_own_seed_only() -> None:
    one, two = make_task("random-mdp", seed=1), make_task("random-mdp", seed=2, evaluation=True)
    assert torch.equal(one.spec.info["mdp"].transition, two.spec.info["mdp"].transition)
    other = make_task("random-mdp", mdp_seed=1, states=3, actions=2, horizon=4).spec.info["mdp"]
    assert other.reward.shape == (4, 3, 2)
    share = random_mdp(states=20, actions=10, horizon=10, reward_rate=0.3).reward.gt(0).double().mean()
    assert 0.25 < share < 0.35
    fixed = random_mdp(stationary=True)
    assert torch.equal(fixed.transition[0], fixed.transition[4])


def test_episodes_follow_the_model() -> None:
    """Mean return and visits of 4000 episodes against the exact ones, within four standard errors."""
    mdp = random_mdp(states=4, actions=2, horizon=4, mdp_seed=3, reward_rate=0.9)
    task = TabularTask(mdp, num=4000)
    policy = random_policy(mdp, 0)
    generator = torch.Generator().manual_seed(0)
    obs: Any = task.reset()
    returns = torch.zeros(4000)
    for step in range(4):
        assert (obs["step"] == step).all()
        visits = torch.bincount(obs["state"], minlength=4) / 4000
        torch.testing.assert_close(visits.double(), mdp.occupancy(policy)[step], rtol=0, atol=4 * 0.5 / 4000**0.5)
        action = torch.multinomial(policy[step, obs["state"]], 1, generator=generator).squeeze(1)
        obs, reward, terminated, truncated = task.step({"action": action})
        assert (terminated == (step == 3)).all()
        assert not truncated.any()
        returns += reward
    error = float(returns.std()) / 4000**0.5
    assert abs(returns.mean().item() - mdp.value(policy)[0, 0].item()) < 4 * error
    assert (obs["step"] == 4).all()
    assert task.spec.obs.contains({"state": np.int64(0), "step": np.int64(4)})
    with pytest.raises(RunError, match="row 0 of tabular MDP has ended"):
        task.step({"action": action})


def test_a_tabular_task_restores_bitwise() -> None:
    def play(task: TabularTask, steps: int) -> list:
        trace = []
        obs: Any
        for step in range(steps):
            obs, reward, terminated, _ = task.step({"action": torch.full((3,), step % 2)})
            trace.append((obs["state"].tolist(), reward.tolist()))
            if terminated.any():
                task.reset(terminated)
        return trace

    task: Any = make_task("random-mdp", num=3, seed=2)
    task.reset()
    play(task, 7)
    saved = gather(task)
    expected = play(task, 20)
    other: Any = make_task("random-mdp", num=3, seed=5)
    restore(other, saved)
    assert play(other, 20) == expected


def test_observations_list_every_pair() -> None:
    grid = chain(states=3, horizon=2).observations()
    assert grid["state"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert grid["step"].tolist() == [[0, 0, 0], [1, 1, 1]]

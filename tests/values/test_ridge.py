from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import RunError, UsageError
from polopt.core.state import gather, restore
from polopt.tasks.tabular import random_mdp
from polopt.values.ridge import Ridge, linear_values


def data(rows: int, dim: int, seed: int = 0, batch: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*batch, rows, dim)), rng.normal(size=(*batch, rows, 2))


def test_two_features_by_hand() -> None:
    """Lambda = I + (1, 0)(1, 0)^T + (1, 1)(1, 1)^T = [[3, 1], [1, 2]], whose inverse is [[2, -1], [-1, 3]] / 5."""
    ridge = Ridge(2, 1)
    ridge.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0], [5.0]]))
    assert ridge.covariance.tolist() == [[3, 1], [1, 2]]
    assert ridge.weights()[:, 0].tolist() == pytest.approx([9 / 5, 8 / 5])  # of the moment (7, 5)
    width = ridge.width(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]]))
    assert width.tolist() == pytest.approx([(2 / 5) ** 0.5, (3 / 5) ** 0.5, (12 / 5) ** 0.5])
    coordinates = ridge.coordinate_width(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert coordinates.tolist() == pytest.approx([0.4**0.5, 0.5 * 0.4**0.5 + 0.5 * 0.6**0.5])
    assert float(ridge.log_det()) == pytest.approx(np.log(5))


@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 10**6))
def test_it_minimizes_the_regularized_squares(dim: int, rows: int, seed: int) -> None:
    """Against least squares with sqrt(regularizer) I as further rows, whatever the pieces that the rows came in."""
    x, y = data(rows, dim, seed)
    ridge = Ridge(dim, 2, regularizer=0.5)
    cut = rows // 3
    for part in (slice(None, cut), slice(cut, None)):
        ridge.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    above = np.sqrt(0.5) * np.eye(dim)
    expected = np.linalg.lstsq(np.vstack([x, above]), np.vstack([y, np.zeros((dim, 2))]), rcond=None)[0]
    np.testing.assert_allclose(ridge.weights(), expected, atol=1e-9)
    inverse = np.linalg.inv(x.T @ x + 0.5 * np.eye(dim))
    probe = data(4, dim, seed + 1)[0]
    np.testing.assert_allclose(ridge.width(torch.from_numpy(probe)) ** 2, np.diag(probe @ inverse @ probe.T), rtol=1e-7)
    np.testing.assert_allclose(ridge.log_det(), -np.linalg.slogdet(inverse)[1], atol=1e-9)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_indicators_count(seen: list[int]) -> None:
    """The features of a table: means that shrink to 0, and widths 1 / sqrt(n + regularizer) of both kinds."""
    ridge, eye = Ridge(4, 1, regularizer=0.25), torch.eye(4)
    ridge.add(eye[torch.tensor(seen, dtype=torch.int64)], torch.arange(float(len(seen))).unsqueeze(-1))
    count = np.bincount(np.array(seen, dtype=int), minlength=4)
    total = np.bincount(np.array(seen, dtype=int), weights=np.arange(float(len(seen))), minlength=4)
    np.testing.assert_allclose(ridge.weights()[:, 0], total / (count + 0.25))
    np.testing.assert_allclose(ridge.width(eye), (count + 0.25) ** -0.5)
    np.testing.assert_allclose(ridge.coordinate_width(eye), (count + 0.25) ** -0.5)
    np.testing.assert_allclose(ridge.log_det(), np.log(count + 0.25).sum(), atol=1e-12)


def test_regressions_side_by_side_are_those_alone() -> None:
    x, y = data(7, 3, batch=(2, 4))
    weight = np.random.default_rng(5).integers(0, 3, size=(2, 4, 7))
    ridge = Ridge(3, 2, batch=(2, 4))
    ridge.add(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weight))
    probe = torch.from_numpy(data(5, 3, 9)[0])  # the same for all
    for i, j in np.ndindex(2, 4):
        alone = Ridge(3, 2)
        rows = np.repeat(np.arange(7), weight[i, j])  # a row of weight 2 is there twice, one of weight 0 is not
        alone.add(torch.from_numpy(x[i, j, rows]), torch.from_numpy(y[i, j, rows]))
        for many, one in (
            (ridge.weights(), alone.weights()),
            (ridge.width(probe), alone.width(probe)),
            (ridge.coordinate_width(probe.abs()), alone.coordinate_width(probe.abs())),
            (ridge.log_det(), alone.log_det()),
        ):
            torch.testing.assert_close(many[i, j], one)


def test_targets_that_change_are_solved_for() -> None:
    x, y = data(9, 3)
    known, changing = Ridge(3, 2), Ridge(3)
    known.add(torch.from_numpy(x), torch.from_numpy(y))
    changing.add(torch.from_numpy(x))
    torch.testing.assert_close(changing.solve(torch.from_numpy(x.T @ y)), known.weights())


def test_a_singular_ridge_says_so_in_one_sentence() -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    ridge = Ridge(2, batch=(2,), regularizer=0.0)
    ridge.add(torch.stack((x, torch.eye(2))))  # the second of the two is fine
    message = "a ridge with regularizer 0 is singular: what it has seen does not span all 2 features; a larger"
    for call in (lambda: ridge.width(x), lambda: ridge.solve(torch.zeros(2, 2, 1)), ridge.log_det):
        with pytest.raises(RunError, match=message):
            call()
    ridge.add(torch.stack((torch.eye(2), torch.eye(2))))
    assert torch.isfinite(ridge.log_det()).all()
    nearly = Ridge(2, regularizer=0.0)
    nearly.add(torch.tensor([[1.0, 1.0 / 3.0], [0.1, 0.1 / 3.0]], dtype=torch.float64))  # rounding may not save it
    with pytest.raises(RunError, match="singular"):
        nearly.log_det()
    ridge.add(torch.full((2, 1, 2), torch.nan))
    with pytest.raises(RunError, match="not all finite"):
        ridge.log_det()
    with pytest.raises(UsageError, match="regularizer of a ridge must be at least 0, not -1"):
        Ridge(2, regularizer=-1)


def test_wrong_shapes_are_refused() -> None:
    ridge = Ridge(3, 2, batch=(4,))
    with pytest.raises(ValueError, match="do not fit"):
        ridge.add(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"2 targets of \(4, 5\) rows, not None"):
        ridge.add(torch.zeros(4, 5, 3))
    with pytest.raises(ValueError, match=r"2 targets of \(4, 5\) rows, not \(4, 5\)"):
        ridge.add(torch.zeros(4, 5, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="a weight of"):
        ridge.add(torch.zeros(4, 5, 3), torch.zeros(4, 5, 2), torch.zeros(4))


def test_what_it_has_seen_is_its_state() -> None:
    one, other = Ridge(3, 2), Ridge(3, 2)
    x, y = data(4, 3)
    one.add(torch.from_numpy(x), torch.from_numpy(y))
    restore(other, gather(one))
    assert torch.equal(one.weights(), other.weights())
    assert torch.equal(one.log_det(), other.log_det())


def linear(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear MDP of 5 states, 2 actions, 4 steps and 3 factors: features [S, A, d], rewards, successors."""
    rng = np.random.default_rng(seed)
    features, successors = rng.dirichlet(np.ones(3), size=(5, 2)), rng.dirichlet(np.ones(5), size=(4, 3))
    return torch.from_numpy(features), torch.from_numpy(rng.random((4, 3))), torch.from_numpy(successors)


def test_the_values_of_a_table_are_those_of_dynamic_programming() -> None:
    mdp = random_mdp(4, 3, 5, mdp_seed=1)
    reward, successors = mdp.reward.reshape(5, 12), mdp.transition.reshape(5, 12, 4)
    q, value = linear_values(torch.eye(12).reshape(4, 3, 12), reward, successors, 0.0, 5.0)
    torch.testing.assert_close(value, mdp.optimal()[1])
    torch.testing.assert_close(q[2], mdp.q(value[3], 2))


def test_a_regression_on_successors_plans_as_one_on_values() -> None:
    """w = Lambda^-1 sum phi (r + V(s')), as LSVI writes it, at the last step but one, with both clips at work."""
    features, _, _ = linear()
    rng = np.random.default_rng(3)
    state, action, after = rng.integers(5, size=30), rng.integers(2, size=30), rng.integers(5, size=30)
    seen, reward = features[state, action], torch.from_numpy(rng.random(30))
    ridge = Ridge(3, 6)
    ridge.add(seen, torch.cat([torch.eye(5)[after], reward.unsqueeze(-1)], -1))
    weights = ridge.weights().expand(2, 3, 6)  # the same data at both steps
    width = 0.3 * ridge.width(features.reshape(10, 3)).reshape(5, 2)
    high = torch.tensor([1.1, 0.9])
    for sign in (1.0, -1.0):
        q, value = linear_values(features, weights[..., 5], weights[..., :5], sign * width, high, low=0.4)
        target = reward + value[1, after]
        direct = features @ torch.linalg.solve(ridge.covariance, seen.T @ target) + sign * width
        torch.testing.assert_close(q[0], direct.clamp(0.4, 1.1))
        assert not torch.equal(q[0], direct)
        torch.testing.assert_close(value[0], q[0].amax(-1))
        assert value[1].max() <= 0.9


def test_what_a_value_is_worth_and_how_it_is_improved_may_be_given() -> None:
    features, reward, successors = linear()

    def worst(model: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.amin(-1, keepdim=True).expand(model.shape[:-1])

    def soft(q: torch.Tensor) -> torch.Tensor:
        return 0.5 * (q / 0.5).exp().mean(-1).log()

    q, value = linear_values(features, reward, successors, 0.0, 9.0, expected=worst, improve=soft)
    direct = features @ (reward[2] + value[3].min())
    torch.testing.assert_close(q[2], direct)
    torch.testing.assert_close(value[2], 0.5 * (q[2] / 0.5).exp().mean(-1).log())


def test_models_side_by_side_are_planned_as_alone() -> None:
    features, reward, successors = linear()
    other = torch.rand(4, 5, 2, dtype=torch.float64)
    width = torch.stack((torch.zeros_like(other), other))
    q, value = linear_values(features, reward.expand(2, 4, 3), successors.expand(2, 4, 3, 5), width, 2.0)
    for row in range(2):
        alone = linear_values(features.expand(4, 5, 2, 3), reward, successors, width[row], 2.0)
        torch.testing.assert_close(q[row], alone[0])
        torch.testing.assert_close(value[row], alone[1])

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import RunError
from polopt.core.functional import (
    assign,
    conjugate_gradient,
    directional,
    flatten,
    gradient,
    hessian_product,
    line_search,
    unflatten,
)


def parameters(seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [
        torch.randn(2, 3, dtype=torch.float64).requires_grad_(),
        torch.randn(4, dtype=torch.float64).requires_grad_(),
    ]


def value(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return (one.sum(0).tanh() * two[:3]).exp().sum() + two.prod() + one.square().sum() * two[0]


def test_a_vector_and_its_pieces() -> None:
    one, two = torch.arange(6.0).reshape(2, 3), torch.tensor([10.0, 20.0])
    vector = flatten([one, two])
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 10, 20]
    first, second = unflatten(vector, [one, two])
    assert torch.equal(first, one)
    assert torch.equal(second, two)
    weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))]
    assign(weights, vector)
    assert torch.equal(flatten(weights), vector)
    with pytest.raises(ValueError, match=r"a vector of \(7,\) elements does not fit 8 parameters"):
        unflatten(vector[:7], [one, two])


def test_derivatives_are_those_of_finite_differences() -> None:
    """First derivatives along a vector, second ones along it, by central differences."""
    own = parameters()
    point, vector, step = flatten(own).detach(), torch.randn(10, dtype=torch.float64), 1e-5

    def at(shift: float) -> list[torch.Tensor]:
        moved = unflatten(point + shift * vector, own)
        return [piece.clone().requires_grad_() for piece in moved]

    slope = gradient(value(*own), own)
    ends = [at(step), at(-step)]
    difference = (value(*ends[0]) - value(*ends[1])).detach() / (2 * step)
    assert float(slope @ vector) == pytest.approx(float(difference), rel=1e-7)
    slopes = [gradient(value(*end), end) for end in ends]
    bend = hessian_product(value(*own), own)
    torch.testing.assert_close(bend(vector), (slopes[0] - slopes[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bend(2 * vector), 2 * bend(vector))  # the graph is there for more than one product


def test_outputs_along_a_direction() -> None:
    """One product with a vector for every output, against a gradient of each."""
    own = parameters(1)
    vector = torch.randn(10, dtype=torch.float64)
    outputs = torch.stack([value(*own), own[0].sin().sum(), own[1][2] ** 3])
    expected = torch.stack([gradient(each, own) @ vector for each in outputs])
    torch.testing.assert_close(directional(outputs, own, vector), expected)


def test_what_does_not_depend_has_no_slope() -> None:
    own = parameters()
    assert gradient(own[0].sum(), own).tolist() == [1] * 6 + [0] * 4
    assert gradient(torch.ones(()), own).tolist() == [0] * 10
    assert hessian_product(own[0].sum(), own)(torch.ones(10).double()).tolist() == [0] * 10  # a linear function


@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions(size: int, seed: int, damping: float) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, size, size))
    matrix = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(size)
    target = rng.normal(size=(3, size))
    matrices = torch.from_numpy(matrix)
    solved = conjugate_gradient(
        lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1),
        torch.from_numpy(target),
        steps=3 * size,
        damping=damping,
        tolerance=1e-8,
    )
    expected = np.linalg.solve(matrix + damping * np.eye(size), target[..., None])[..., 0]
    np.testing.assert_allclose(solved.x, expected, rtol=1e-4, atol=1e-5)
    assert solved.positive.all()
    np.testing.assert_allclose(solved.require_positive(), solved.x)
    left = target - np.einsum("bij,bj->bi", matrix + damping * np.eye(size), solved.x.numpy())
    np.testing.assert_allclose(solved.residual, np.linalg.norm(left, axis=-1), atol=1e-6)


def test_one_step_is_that_of_steepest_descent() -> None:
    """x = (b.b / b.Ab) b, here 5 / 14 of (1, 2) for A = diag(2, 3)."""
    solved = conjugate_gradient(lambda v: torch.tensor([2.0, 3.0]) * v, torch.tensor([1.0, 2.0]), steps=1)
    assert solved.x.tolist() == pytest.approx([5 / 14, 10 / 14])
    assert float(solved.residual) == pytest.approx(((1 - 10 / 14) ** 2 + (2 - 30 / 14) ** 2) ** 0.5)


def test_a_matrix_without_a_minimum_is_told() -> None:
    """Of three systems the second is indefinite: it keeps what it found before, and the others are solved."""
    diagonal = torch.tensor([[2.0, 3.0], [2.0, -3.0], [4.0, 1.0]])
    target = torch.tensor([[2.0, 3.0], [2.0, 3.0], [0.0, 0.0]])
    solved = conjugate_gradient(lambda v: diagonal * v, target, steps=10)
    assert solved.positive.tolist() == [True, False, True]
    assert solved.x[0].tolist() == pytest.approx([1, 1])
    assert solved.x[1:].eq(0).all()  # (2, 3) itself bends down: 8 - 27 < 0; and what is nothing needs nothing
    with pytest.raises(RunError, match="a direction in which the curvature is not positive"):
        solved.require_positive()
    damped = conjugate_gradient(lambda v: diagonal * v, target, steps=10, damping=3.5)
    assert damped.require_positive()[1].tolist() == pytest.approx([2 / 5.5, 3 / 0.5], rel=1e-4)
    assert not conjugate_gradient(lambda v: v * torch.nan, target, steps=3).positive[:2].any()


def test_an_implicit_gradient() -> None:
    """theta*(nu) maximizes -theta^T A theta / 2 + theta^T C nu, so that d U(theta*) / d nu = C^T A^-1 dU / d theta."""
    rng = np.random.default_rng(0)
    root, cross, slope = rng.normal(size=(4, 4)), rng.normal(size=(4, 3)), torch.from_numpy(rng.normal(size=4))
    matrix = torch.from_numpy(root @ root.T + np.eye(4))
    nu = torch.ones(3, dtype=torch.float64, requires_grad=True)
    theta = torch.linalg.solve(matrix, torch.from_numpy(cross) @ nu.detach()).requires_grad_()
    lower = -theta @ matrix @ theta / 2 + theta @ torch.from_numpy(cross) @ nu
    down = hessian_product(-lower, [theta])
    x = conjugate_gradient(down, slope, steps=10).require_positive()
    found = gradient(gradient(lower, [theta], differentiable=True) @ x, [nu])
    np.testing.assert_allclose(found, cross.T @ np.linalg.solve(matrix.numpy(), slope.numpy()), rtol=1e-8)


def test_the_first_scale_that_is_accepted() -> None:
    asked: list[float] = []
    assert line_search(lambda scale: asked.append(scale) or scale < 0.2) == 0.125
    assert asked == [1.0, 0.5, 0.25, 0.125]
    assert line_search(lambda scale: scale < 0.2, shrink=0.1) == 0.1
    assert line_search(lambda scale: scale < 0.2, tries=3) == 0

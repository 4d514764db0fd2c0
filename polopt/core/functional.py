"""Derivatives as flat vectors [P], and what is solved and searched with them: curvature without a matrix.

Products with Hessians: Pearlmutter 1994, "Fast exact multiplication by the Hessian". Conjugate gradients and
backtracking: Nocedal and Wright 2006, chapters 5 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polopt.core.errors import RunError

Product = Callable[[Tensor], Tensor]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """All elements in one vector [P], a copy."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The vector [P] in pieces shaped as `like`, which are views of it. Raises ValueError for another size."""
    sizes = [tensor.numel() for tensor in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector of {tuple(vector.shape)} elements does not fit {sum(sizes)} parameters")
    return [piece.view_as(tensor) for piece, tensor in zip(vector.split(sizes), like)]


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Writes the vector [P] into the parameters."""
    for parameter, piece in zip(parameters, unflatten(vector, parameters)):
        parameter.copy_(piece)


def gradient(value: Tensor, parameters: Sequence[Tensor], *, differentiable: bool = False) -> Tensor:
    """The gradient [P] of a scalar; 0 where it does not depend on a parameter, or on none of them.

    With `differentiable` it has a gradient itself. The graph of `value` is kept either way.
    """
    if not value.requires_grad:
        return flatten(torch.zeros_like(parameter) for parameter in parameters)
    grads = torch.autograd.grad(
        value, parameters, create_graph=differentiable, retain_graph=True, materialize_grads=True
    )
    return flatten(grads)


def hessian_product(value: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v -> H v, both [P], for the Hessian H of a scalar at the present parameters.

    The graph of `value` must know second derivatives: functions that `torch.compile` made do not.
    """
    slope = gradient(value, parameters, differentiable=True)
    return lambda vector: gradient(slope @ vector.detach(), parameters)


def directional(outputs: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """The derivative of every output, shaped like `outputs`, along the vector [P] in the parameters.

    Of log-probabilities [B] these are the products of each one's score with the vector.
    """
    cotangent = torch.ones_like(outputs, requires_grad=True)
    grads = torch.autograd.grad(
        outputs, parameters, cotangent, create_graph=True, retain_graph=True, materialize_grads=True
    )
    return torch.autograd.grad(flatten(grads) @ vector.detach(), cotangent)[0]  # it is linear in the cotangent


class Solved(NamedTuple):
    """What `conjugate_gradient` found.

    Attributes:
        x: the solution [*batch, P]; where a direction of no positive curvature was met, what was found before it.
        residual: |target - (A + damping I) x| [*batch].
        positive: bool [*batch], False where such a direction was met.
    """

    x: Tensor
    residual: Tensor
    positive: Tensor

    def require_positive(self) -> Tensor:
        """x. Raises RunError, one sentence, where a direction of no positive curvature was met."""
        if not self.positive.all():
            raise RunError(
                "conjugate gradients met a direction in which the curvature is not positive: the matrix has no minimum "
                "to lead to; a larger damping makes it positive"
            )
        return self.x


def conjugate_gradient(
    product: Product, target: Tensor, *, steps: int, damping: float = 0.0, tolerance: float = 1e-10
) -> Solved:
    """Solves (A + damping I) x = target for a symmetric A that is known by its products, from x = 0.

    Systems [*batch, P] side by side, such as one a seed, are solved each by itself; each stands still once it is done.

    Args:
        product: [*batch, P] -> [*batch, P], A times each vector.
        steps: most products; as many as A has different eigenvalues suffice but for rounding.
        tolerance: of the residual, relative to the target, at which a system is done.
    """
    dot = lambda one, other: (one * other).sum(-1)  # noqa: E731
    x, left, direction = torch.zeros_like(target), target, target
    square = dot(left, left)
    bound = tolerance**2 * square
    positive = torch.ones_like(square, dtype=torch.bool)
    for _ in range(steps):
        busy = positive & (square > bound)
        if not busy.any():
            break
        image = product(direction) + damping * direction
        curvature = dot(direction, image)
        bends = curvature > 0  # False for nan as well
        positive, busy = positive & (bends | ~busy), busy & bends
        length = torch.where(busy, square / torch.where(busy, curvature, 1.0), 0.0).unsqueeze(-1)
        moves = busy.unsqueeze(-1)
        x = torch.where(moves, x + length * direction, x)
        left = torch.where(moves, left - length * image, left)
        after = dot(left, left)
        share = torch.where(busy, after / square, 0.0).unsqueeze(-1)
        direction = torch.where(moves, left + share * direction, direction)
        square = torch.where(busy, after, square)
    return Solved(x, square.sqrt(), positive)


def line_search(accept: Callable[[float], bool], *, shrink: float = 0.5, tries: int = 10) -> float:
    """The first scale of 1, shrink, shrink^2, ... that is accepted, out of `tries`; 0 where none is."""
    return next((scale for scale in (shrink**power for power in range(tries)) if accept(scale)), 0.0)

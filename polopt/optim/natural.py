"""Natural gradient steps inside a trust region.

Kakade 2001, "A natural policy gradient"; Schulman et al. 2015, "Trust region policy optimization", arXiv 1502.05477,
appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from polopt.config import Constant, Cosine, Linear
from polopt.core.batch import Batch, positive
from polopt.core.functional import (
    Product,
    assign,
    conjugate_gradient,
    flatten,
    gradient,
    hessian_product,
    line_search,
)
from polopt.optim.divided import add_up
from polopt.optim.optimizer import Loss, Optimizer


def thinned(parts: Sequence[Batch], every: int) -> Sequence[Batch]:
    """Every so many-th row of the whole, in pieces, with weights that have the same sum as before."""
    if every == 1:
        return parts
    begins = accumulate((len(part) for part in parts), initial=0)
    few = [part[-begin % every :: every].clone(False) for part, begin in zip(parts, begins)]
    factor = sum(part["weight"].sum() for part in parts) / positive(sum(part["weight"].sum() for part in few))
    return [part.set("weight", factor * part["weight"]) for part in few if len(part)]


class NaturalOptimizer(Optimizer):
    """Steps along the natural gradient to the edge of a trust region, and back until it is safe.

        x = (F + damping I)^-1 g               g the gradient of the loss, F the Hessian of the divergence
        theta <- theta - shrink^j sqrt(2 radius / x^T (F + damping I) x) x

    for the smallest j < `tries` at which the divergence is at most `radius` and the loss has fallen by `accept` times
    what g promises of that step. Where there is none the parameters stay: the metric `step_scale`, shrink^j, is 0.
    `divergence` is what was reached of it.

    The loss and the divergence must be functions of batch and parameters without luck of their own. The loop waits for
    the device at every try. Nothing is compiled: compiled functions have no second derivatives, so the divergence
    should not be called `*_loss`, as methods compile those.

    Args:
        divergence: batch -> (weighted sum, metrics), as a loss: how far the policy is from the old one, least at the
            present parameters; the mean of KL(old || present) over the states, say.
        radius: of the trust region. It is `lr`: schedules and adaptive rules act on it.
        damping, solver_steps: of the conjugate gradients.
        curvature_every: F is that of every so many-th row, as a metric need not be exact (arXiv 1502.05477, C.1); the
            divergence that the step may reach is that of all rows.

    Raises RunError where the divergence has no positive curvature, which a larger `damping` mends.
    """

    def __init__(
        self,
        *modules: nn.Module | nn.Parameter,
        divergence: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
        radius: float = 0.01,
        schedule: Constant | Linear | Cosine | None = None,
        damping: float = 0.1,
        solver_steps: int = 10,
        curvature_every: int = 1,
        shrink: float = 0.5,
        tries: int = 10,
        accept: float = 0.1,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(*modules, lr=radius, schedule=schedule, micro_batch=micro_batch, kind="sgd")
        self.divergence = divergence
        self.damping, self.solver_steps, self.curvature_every = damping, solver_steps, curvature_every
        self.shrink, self.tries, self.accept = shrink, tries, accept

    def _step_on(self, loss: Loss, parts: Sequence[Batch], shared: dict[str, Any]) -> dict[str, Tensor]:
        start, metrics = flatten(self.parameters).detach(), dict[str, Tensor]()
        slope = torch.zeros_like(start)
        for part in parts:
            value, sums = loss(part, **shared)
            slope = slope + gradient(value, self.parameters)
            add_up(metrics, sums)
        product = self._curvature(thinned(parts, self.curvature_every))
        solved = conjugate_gradient(product, slope, steps=self.solver_steps, damping=self.damping)
        direction = solved.require_positive()
        length = direction @ product(direction) + self.damping * direction @ direction
        step = (2 * self.rate / length.clamp_min(torch.finfo(length.dtype).tiny)).sqrt() * direction
        promised, before = float(slope @ step), self._total(loss, parts, shared)

        def accepted(scale: float) -> bool:
            assign(self.parameters, start - scale * step)
            near = self._total(self.divergence, parts, {}) <= self.rate
            return near and before - self._total(loss, parts, shared) >= self.accept * scale * promised

        scale = line_search(accepted, shrink=self.shrink, tries=self.tries)
        if scale == 0:
            assign(self.parameters, start)
        reached = self._total(self.divergence, parts, {})
        return metrics | {"divergence": start.new_tensor(reached), "step_scale": start.new_tensor(scale)}

    def _curvature(self, parts: Sequence[Batch]) -> Product:
        """v -> F v; the graphs of several pieces are made anew for each product, as memory is for one."""
        if len(parts) == 1:
            return hessian_product(self.divergence(parts[0])[0], self.parameters)

        def product(vector: Tensor) -> Tensor:
            pieces = (hessian_product(self.divergence(part)[0], self.parameters)(vector) for part in parts)
            return sum(pieces, torch.zeros_like(vector))

        return product

    @torch.no_grad()
    def _total(self, loss: Loss, parts: Sequence[Batch], shared: dict[str, Any]) -> float:
        return sum(float(loss(part, **shared)[0]) for part in parts)

    def compile(self, **options: Any) -> None:
        """Changes nothing: see above."""

    def _traced(self, value: Tensor, metrics: dict[str, Tensor]) -> NoReturn:
        raise TypeError("a natural step cannot be part of a compiled function: it needs second derivatives")

    def _apply(self) -> NoReturn:
        raise TypeError("a natural step needs the loss as a function of the batch: use `minimize`")

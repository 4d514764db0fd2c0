"""RMSprop, in torch's form and in TensorFlow's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polopt.config import Constant, Cosine, Linear
from polopt.core.batch import Batch
from polopt.optim.optimizer import Optimizer


@torch.no_grad()
def rmsprop_(
    parameters: list[Any],
    grads: list[Tensor],
    squares: list[Tensor],
    *,
    rate: float | Tensor,
    decay: float,
    eps: float,
    inside: bool,
) -> None:
    """One step, in place of `parameters` and of `squares`, their running mean of squared gradients."""
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, grads, grads, 1 - decay)
    scales = torch._foreach_sqrt(torch._foreach_add(squares, eps) if inside else squares)
    if not inside:
        torch._foreach_add_(scales, eps)
    steps = torch._foreach_div(grads, scales)
    torch._foreach_mul_(steps, rate)
    torch._foreach_sub_(parameters, steps)


class _Steps(torch.optim.Optimizer):
    """What keeps the running means, and steps on `parameter.grad`."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, decay: float, eps: float, inside: bool) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "eps": eps, "inside": inside})

    def square(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            begin = torch.ones_like if self.defaults["inside"] else torch.zeros_like
            state["square_avg"] = begin(parameter, requires_grad=False)
        mean: Tensor = state["square_avg"]
        return mean

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        if moved:
            how = {name: group[name] for name in ("decay", "eps", "inside")}
            rmsprop_(moved, [each.grad for each in moved], [*map(self.square, moved)], rate=group["lr"], **how)


class RMSprop(Optimizer):
    """Steps of a size that follows the root of the mean square of recent gradients g (Hinton's lecture 6e, 2012).

        square <- decay square + (1 - decay) g^2
        theta  <- theta - lr g / (sqrt(square) + eps)          as in torch; square begins at 0
        theta  <- theta - lr g / sqrt(square + eps)            `inside`, as in TensorFlow; square begins at 1

    There is no correction for the beginning: torch's form takes a first step of lr / sqrt(1 - decay) in every
    coordinate, ten times `lr` with the decay of 0.99, TensorFlow's one of about lr g. Arguments that are not here are
    those of `Optimizer`, and so is everything else: schedule, clipping, pieces, compiled steps.
    """

    def __init__(
        self,
        *modules: nn.Module | nn.Parameter,
        lr: float,
        eps: float = 1e-5,
        decay: float = 0.99,
        inside: bool = False,
        schedule: Constant | Linear | Cosine | None = None,
        max_grad_norm: float | None = None,
        micro_batch: int | None = None,
        split: Callable[[Batch], Sequence[Batch]] | None = None,
    ) -> None:
        super().__init__(
            *modules,
            lr=lr,
            schedule=schedule,
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
            split=split,
            kind="sgd",
            eps=eps,
        )
        self.decay, self.inside = decay, inside
        self.torch = self.steps = _Steps(self.parameters, lr=lr, decay=decay, eps=eps, inside=inside)

    def ready(self) -> None:
        super().ready()
        if not self._moments:
            self._moments = [[*map(self.steps.square, self.parameters)]]

    def _move(self, parameters: list[nn.Parameter], grads: list[Tensor], chosen: list[int]) -> None:
        squares = [self._moments[0][index] for index in chosen]
        how: dict[str, Any] = {"rate": self._rate[1], "decay": self.decay, "eps": self.eps, "inside": self.inside}
        rmsprop_(parameters, grads, squares, **how)

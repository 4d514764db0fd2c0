"""Adam on lists that are kept: the kernel of torch's own optimizer, and the form that a compiler reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KERNELS: dict[str, Any] = {"adam": torch._fused_adam_, "adamw": torch._fused_adamw_}
SCALING = ("cpu", "cuda")  # devices whose kernel multiplies gradients itself, in single precision
Moments = Sequence[list[Tensor]]  # averages of gradients, of their squares, and numbers of steps, of every parameter


@torch.no_grad()
def fused_adam_(
    kind: str,
    parameters: Sequence[Tensor],
    grads: list[Tensor],
    moments: Moments,
    group: Mapping[str, Any],
    count: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    """The kernel that `torch.optim.Adam` calls with the settings of `group`: for small networks it spends most of its
    step on gathering the lists.

    `count` [parameters], if given, is the memory of the numbers of steps, which so grow in one operation. Gradients are
    multiplied by `factor`, if there is one, within the kernel where it can.
    """
    averages, squares, steps = moments
    scale = None
    if factor is not None and factor.dtype == torch.float32 and factor.device.type in SCALING:
        scale = factor.reciprocal()
    elif factor is not None:
        torch._foreach_mul_(grads, factor)
    if count is None:
        torch._foreach_add_(steps, 1)
    else:
        count.add_(1)
    KERNELS[kind](
        parameters,
        grads,
        averages,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=scale,
    )


def traced_adam_(
    kind: str,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    count: Tensor,
    rate: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """The same step within a compiled function, where optimizers break a graph. `count` [parameters]: the numbers of
    steps, this one included.

    What depends on these alone is computed for all parameters at once, and powers as exponentials: a power inductor
    would compute anew for every few elements of every parameter.
    """
    parameters, averages, squares = ([*map(_written, part)] for part in (parameters, averages, squares))
    first, second = betas
    steps = count if count.device.type == "mps" else count.double()  # 1 - 0.999 ** 1 would lose four digits
    shares = [1.0 - (steps * (math.log(beta) if beta else -math.inf)).exp() for beta in betas]
    precision = torch.promote_types(parameters[0].dtype, count.dtype)
    sizes, roots = (value.to(precision).unbind() for value in (rate / shares[0], shares[1].rsqrt()))
    if weight_decay and kind == "adam":
        grads = [grad + weight_decay * parameter for grad, parameter in zip(grads, parameters)]
    for parameter, grad, average, square, size, root in zip(parameters, grads, averages, squares, sizes, roots):
        if weight_decay and kind == "adamw":
            parameter.mul_(1.0 - rate * weight_decay)
        average.lerp_(grad, 1.0 - first)
        square.mul_(second).addcmul_(grad, grad, value=1.0 - second)
        parameter.sub_(size * average / (square.sqrt() * root + eps))


def _written(tensor: Tensor) -> Tensor:
    """What a compiled function writes into: torch 2.13 loses what is done to an argument [] of double precision."""
    return tensor.view(1) if not tensor.dim() and tensor.dtype == torch.float64 else tensor

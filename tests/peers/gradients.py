"""What the tests beside other libraries share; the library's own environment needs no more than torch for it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Value = Callable[[nn.Parameter], Tensor]


def record(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """From now on a step of `optimizer`, torch's or polopt's, moves nothing: it keeps the gradients it would have
    stepped on, in this dict."""
    gradients = {}
    if hasattr(optimizer, "torch"):  # polopt's, which takes torch's step where its own kernel does not serve
        optimizer._alike = False
        optimizer = optimizer.torch

    def step(closure: None = None) -> None:
        for group in optimizer.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients.update((parameter, parameter.grad.clone()) for parameter in moved)

    optimizer.step = step
    return gradients


def linear(*modules: nn.Module) -> list[nn.Linear]:
    """The linear layers inside of modules, first to last."""
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]


def plain(layers: Iterable[nn.Linear], value: Value) -> list[Tensor]:
    """`value` (the weight itself, or its gradient) of every parameter, in the order of polopt's networks."""
    return [value(parameter).detach() for layer in layers for parameter in (layer.weight, layer.bias)]


def stacked(members: Sequence[nn.Module], value: Value) -> list[Tensor]:
    """The same of separate critics, in the layout of polopt's ensembles: [E, inputs, outputs] and [E, 1, outputs]."""
    layers = zip(*(plain(linear(member), value) for member in members), strict=True)
    return [torch.stack([tensor.T if tensor.dim() == 2 else tensor[None] for tensor in same]) for same in layers]


@torch.no_grad()
def load(parameters: Iterable[nn.Parameter], tensors: Iterable[Tensor]) -> None:
    """Writes the tensors into the parameters, one by one. Raises ValueError when shapes differ."""
    for parameter, tensor in zip(parameters, tensors, strict=True):
        if parameter.shape != tensor.shape:
            raise ValueError(f"a parameter has shape {tuple(parameter.shape)}, its value {tuple(tensor.shape)}")
        parameter.copy_(tensor)


@torch.no_grad()
def perturb(module: nn.Module, scale: float) -> None:
    """Adds normal noise to every parameter, so that a target network is not its source, and no bias is 0."""
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn_like(parameter))


def relative_error(gradients: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor; every tensor must have one that counts."""
    errors = []
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == other.dtype == torch.float64
        assert gradient.shape == other.shape
        assert other.abs().max() > 1e-5
        errors.append(float((gradient - other).abs().max() / other.abs().max()))
    return max(errors)

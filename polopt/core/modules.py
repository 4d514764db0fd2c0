"""A module's parameters and where they are, for code that asks at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def parameters_of(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, in the order of `module.parameters()`, which makes names and takes ten times as long.
    A shared one comes as often as it is held."""
    found: list[Tensor] = [parameter for parameter in module._parameters.values() if parameter is not None]
    for child in module._modules.values():
        if child is not None:
            found += parameters_of(child)
    return found


def first_parameter(module: nn.Module) -> Tensor | None:
    """The first of them, without a look at the others; None if there is none."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None


def device_of(actor: Any) -> torch.device:
    """Where an actor wants its observations, and where batches are made: the device of its parameters, or the CPU."""
    parameter = first_parameter(actor) if isinstance(actor, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def dtype_of(actor: Any) -> torch.dtype:
    """The precision in which an actor computes: that of its floating parameters, or the default."""
    if isinstance(actor, nn.Module):
        for parameter in parameters_of(actor):
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it, new floating tensors have this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

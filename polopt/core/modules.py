"""A module's parameters, for code that asks at every step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters of a module, in the order of `module.parameters()`, which makes names and takes five times as
    long. A shared one comes as often as it is held."""
    for parameter in module._parameters.values():
        if parameter is not None:
            yield parameter
    for child in module._modules.values():
        if child is not None:
            yield from parameters_of(child)

"""Dropout in front of the normalization, which is switched on and off and does not ask whether gradients are recorded.

Targets and acting are so computed with dropout where a paper says so, which `GradientDropout` never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from polopt.core.errors import UsageError
from polopt.networks.layers import MLP, Chain, EnsembleLinear


class SwitchedDropout(nn.Dropout):
    """Dropout where `on`, and nothing elsewhere."""

    on = False

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, training=self.on)


def drop_before_normalization(network: nn.Module, rate: float) -> None:
    """Puts `SwitchedDropout` behind each hidden linear layer of the trunk of a network, in front of normalization and
    activation. Raises UsageError for a trunk that is no plain MLP."""
    trunk = getattr(network, "trunk", None)
    if type(trunk) is not MLP:
        raise UsageError("dropout in front of the normalization is for plain hidden layers: set it to 0 for other ones")
    layers: list[nn.Module] = []
    for layer in trunk.layers:
        hidden = isinstance(layer, (nn.Linear, EnsembleLinear)) and layer is not trunk.head
        layers += [layer, SwitchedDropout(rate)] if hidden else [layer]
    trunk.layers = Chain(*layers)


@contextlib.contextmanager
def dropping(*modules: nn.Module) -> Iterator[None]:
    """Switches the dropout of these modules on, and off again at the end."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, SwitchedDropout)]
    for layer in layers:
        layer.on = True
    try:
        yield
    finally:
        for layer in layers:
            layer.on = False

"""Multilayer perceptrons, alone or as batched ensembles, and their initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}


def initialize(layer: nn.Linear | nn.Conv1d | nn.Conv2d, init: str = "default", gain: float = 1.0) -> None:
    """Sets the initial weights of one layer in place.

    "orthogonal": an orthogonal weight times `gain` and zero bias (Saxe et al. 2014, arXiv 1312.6120).
    "default": what PyTorch gave the layer, uniform within 1/sqrt(inputs), times `gain`.
    """
    with torch.no_grad():
        if init == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                layer.bias.zero_()
        elif gain != 1.0:
            layer.weight.mul_(gain)
            if layer.bias is not None:
                layer.bias.mul_(gain)


class EnsembleLinear(nn.Module):
    """E linear layers in one batched product: [E, B, inputs] -> [E, B, outputs].

    Parameters are `weight` [E, inputs, outputs] and `bias` [E, 1, outputs]. Each member is drawn as an `nn.Linear`
    of its own would be, one after the other. An input with fewer rows in front than E is that of the first members.
    """

    def __init__(self, members: int, inputs: int, outputs: int, init: str = "default", gain: float = 1.0) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(members)]
        for layer in layers:
            initialize(layer, init, gain)
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]).contiguous())
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return ensemble_linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return "members={}, inputs={}, outputs={}".format(*self.weight.shape)


class EnsembleLayerNorm(nn.Module):
    """Layer normalization of [E, B, size] with a scale and a shift of its own for each member."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:]) * _first(self.weight, x) + _first(self.bias, x)


class GradientDropout(nn.Dropout):
    """Dropout where gradients are recorded, and nothing elsewhere: acting and targets (under `no_grad`) see the whole
    network without a switch between modes."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, training=self.training and torch.is_grad_enabled())


def ensemble_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[members, B, inputs] times the first `members` of `weight` [E, inputs, outputs], plus those of `bias`."""
    weight, bias = _first(weight, x), _first(bias, x)
    if weight.shape[-1] == 1:  # with one column, a batched product and its backward pass take thrice this
        return (x * weight.transpose(1, 2)).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, x, weight)


PLAIN: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: lambda own, x: functional.linear(x, own["weight"], own["bias"]),
    EnsembleLinear: lambda own, x: ensemble_linear(x, own["weight"], own["bias"]),
    nn.ReLU: lambda own, x: torch.relu(x),
    nn.Tanh: lambda own, x: torch.tanh(x),
}
"""What layers compute, of their parameters by name and their input."""


class Chain(nn.Sequential):
    """Layers one after the other, as in its base.

    Of plain layers the function is called and not the module, whose call takes as long as the product where networks
    are small. Layers of other classes, and those with hooks, are called as ever.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        for layer in self._modules.values():
            function = PLAIN.get(type(layer))
            x = layer(x) if function is None or _hooked(layer) else function(layer._parameters, x)
        return x


class MLP(nn.Module):
    """Linear layers with an activation between them: [..., inputs] -> [..., outputs], any leading dimensions.

    With `members=E` it holds E networks that see the same input and returns [E, ..., outputs]; member e computes what
    a single MLP with the weights `weight[e].T` would. "layer" normalization stands between a hidden linear layer and
    its activation, `dropout` (`GradientDropout`) after it. Hidden layers are orthogonal with gain sqrt(2) when
    `init="orthogonal"`, the last one (`head`) has `head_gain` (Huang et al. 2022, "The 37 Implementation Details of
    PPO").
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sizes: Sequence[int] = (64, 64),
        *,
        activation: str = "tanh",
        normalization: str = "none",
        init: str = "default",
        dropout: float = 0.0,
        head_gain: float = 1.0,
        members: int | None = None,
    ) -> None:
        super().__init__()
        self.members = members
        self.outputs = outputs
        layers = self.hidden(inputs, sizes, activation, normalization, init, dropout)
        layers.append(_linear((inputs, *sizes)[-1], outputs, init, head_gain, members))
        self.layers = Chain(*layers)

    def hidden(
        self, inputs: int, sizes: Sequence[int], activation: str, normalization: str, init: str, dropout: float
    ) -> list[nn.Module]:
        """The layers before the head."""
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *sizes), sizes):
            layers.append(_linear(before, after, init, _hidden_gain(init), self.members))
            if normalization == "layer":
                norm = nn.LayerNorm(after) if self.members is None else EnsembleLayerNorm(self.members, after)
                layers.append(norm)
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(GradientDropout(dropout))
        return layers

    @property
    def head(self) -> nn.Module:
        """The last linear layer."""
        return self.layers[-1]

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """Outputs of all members, or of the first `members` of them, at their cost."""
        if self.members is None:
            return self.layers(x)
        count = members or self.members
        if x.dim() == 2:
            return self.layers(x.expand(count, -1, -1))
        rows = x.reshape(1, -1, x.shape[-1]).expand(count, -1, -1)
        return self.layers(rows).reshape(count, *x.shape[:-1], self.outputs)


class ResidualBlock(nn.Module):
    """x + W2 activation(W1 dropout(norm(x))), four times as wide inside: [..., width] -> the same."""

    def __init__(
        self, width: int, activation: str, normalization: str, init: str, dropout: float, members: int | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [GradientDropout(dropout)] if dropout > 0 else []
        if normalization == "layer":
            layers.append(nn.LayerNorm(width) if members is None else EnsembleLayerNorm(members, width))
        layers.append(_linear(width, 4 * width, init, _hidden_gain(init), members))
        layers += [ACTIVATIONS[activation](), _linear(4 * width, width, init, 1.0, members)]
        self.layers = Chain(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualMLP(MLP):
    """An `MLP` whose hidden layers are residual blocks, one for each of `sizes`, which are equal; a linear layer comes
    before them, and an activation after (Hansen-Estruch et al. 2023, arXiv 2304.10573, section 5)."""

    def hidden(
        self, inputs: int, sizes: Sequence[int], activation: str, normalization: str, init: str, dropout: float
    ) -> list[nn.Module]:
        first = _linear(inputs, sizes[0], init, _hidden_gain(init), self.members)
        blocks = [ResidualBlock(size, activation, normalization, init, dropout, self.members) for size in sizes]
        return [first, *blocks, ACTIVATIONS[activation]()]


class Stack(nn.Module):
    """Separate members that see the same input: [..., inputs] -> [E, ..., outputs]. For a user's own trunk."""

    def __init__(self, members: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stack = nn.ModuleList(make() for _ in range(members))

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        return torch.stack([member(x) for member in list(self.stack)[:members]])


def _first(parameter: Tensor, x: Tensor) -> Tensor:
    """The part of a parameter [E, ...] that belongs to the members that `x` [members, ...] is the input of."""
    rows = x.shape[0]
    return parameter if rows == parameter.shape[0] else parameter[:rows]


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _hidden_gain(init: str) -> float:
    return math.sqrt(2.0) if init == "orthogonal" else 1.0


def _linear(inputs: int, outputs: int, init: str, gain: float, members: int | None) -> nn.Module:
    if members is not None:
        return EnsembleLinear(members, inputs, outputs, init, gain)
    layer = nn.Linear(inputs, outputs)
    initialize(layer, init, gain)
    return layer

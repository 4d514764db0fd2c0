"""Multilayer perceptrons, alone or as batched ensembles, and their initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    of its own would be, one after the other.
    """

    def __init__(self, members: int, inputs: int, outputs: int, init: str = "default", gain: float = 1.0) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(members)]
        for layer in layers:
            initialize(layer, init, gain)
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]).contiguous())
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[-1] == 1:  # with one column, a batched product and its backward pass take thrice this
            return (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        return "members={}, inputs={}, outputs={}".format(*self.weight.shape)


class EnsembleLayerNorm(nn.Module):
    """Layer normalization of [E, B, size] with a scale and a shift of its own for each member."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class GradientDropout(nn.Dropout):
    """Dropout where gradients are recorded, and nothing elsewhere: acting and targets (under `no_grad`) see the whole
    network without a switch between modes."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, training=self.training and torch.is_grad_enabled())


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
        layers: list[nn.Module] = []
        hidden_gain = math.sqrt(2.0) if init == "orthogonal" else 1.0
        for before, after in zip((inputs, *sizes), sizes):
            layers.append(_linear(before, after, init, hidden_gain, members))
            if normalization == "layer":
                layers.append(nn.LayerNorm(after) if members is None else EnsembleLayerNorm(members, after))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(GradientDropout(dropout))
        layers.append(_linear((inputs, *sizes)[-1], outputs, init, head_gain, members))
        self.layers = nn.Sequential(*layers)

    @property
    def head(self) -> nn.Module:
        """The last linear layer."""
        return self.layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        if self.members is None:
            return self.layers(x)
        rows = x.reshape(1, -1, x.shape[-1]).expand(self.members, -1, -1)
        return self.layers(rows).reshape(self.members, *x.shape[:-1], self.outputs)


class Stack(nn.Module):
    """Separate members that see the same input: [..., inputs] -> [E, ..., outputs]. For a user's own trunk."""

    def __init__(self, members: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stack = nn.ModuleList(make() for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.stack])


def _linear(inputs: int, outputs: int, init: str, gain: float, members: int | None) -> nn.Module:
    if members is not None:
        return EnsembleLinear(members, inputs, outputs, init, gain)
    layer = nn.Linear(inputs, outputs)
    initialize(layer, init, gain)
    return layer

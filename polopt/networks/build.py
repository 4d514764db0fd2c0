"""Whole networks: normalizer, encoder, recurrent core and trunk, put together from a `Network` config."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.errors import UsageError
from polopt.networks.encoders import Encoder, Obs, leading_shape, make_encoder
from polopt.networks.layers import MLP, ResidualMLP, Stack
from polopt.networks.normalizer import Normalizer

if TYPE_CHECKING:
    from polopt.networks import Network


class FeedForward(nn.Module):
    """Observation (and extra inputs) -> [..., outputs], or [E, ..., outputs] with an ensemble.

    Normalizer and encoder are shared by the members of an ensemble; the trunks are their own.
    """

    recurrent = False

    def __init__(self, encoder: Encoder, trunk: nn.Module, normalizer: Normalizer | None = None) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.encoder = encoder
        self.trunk = trunk

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs if self.normalizer is None else self.normalizer(obs))

    def forward(self, obs: Obs, extra: Tensor | None = None) -> Tensor:
        """`extra` [..., inputs_extra], an action for example, may have more leading dimensions than `obs`: observations
        [B, O] beside actions [n, B, A] give [n, B, outputs], and are encoded once."""
        return self.trunk(join(self.features(obs), extra))


class Recurrent(nn.Module):
    """A network with memory: features -> GRU -> trunk. The hidden state [..., H] is zero when an episode begins."""

    recurrent = True

    def __init__(
        self,
        space: gymnasium.Space,
        encoder: Encoder,
        core: GRU,
        trunk: nn.Module,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.normalizer = normalizer
        self.encoder = encoder
        self.core = core
        self.trunk = trunk
        self.hidden_size = core.size

    def features(self, obs: Obs) -> Tensor:
        return self.encoder(obs if self.normalizer is None else self.normalizer(obs))

    def new_hidden(self, obs: Obs) -> Tensor:
        """The hidden state [..., H] before the first step, for observations with these leading dimensions."""
        weight = self.core.weight_hidden
        return weight.new_zeros(*leading_shape(self.space, obs), self.hidden_size)

    def step(self, obs: Obs, hidden: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: `hidden` [..., H] before -> outputs [..., outputs] and the hidden state after."""
        hidden = self.core.step(self.features(obs), hidden)
        return self.trunk(join(hidden, extra)), hidden

    def unroll(self, obs: Obs, hidden: Tensor, first: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A window: obs [..., T, *shape], `hidden` [..., H] before its first column, `first` [..., T] True where an
        episode begins -> outputs [..., T, outputs] and the hidden states [..., T, H] after each step."""
        states = self.core(self.features(obs), hidden, first)
        return self.trunk(join(states, extra)), states

    def forward(self, obs: Obs, hidden: Tensor, first: Tensor, extra: Tensor | None = None) -> Tensor:
        """The outputs of `unroll`."""
        return self.unroll(obs, hidden, first, extra)[0]


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078; the variant of `torch.nn.GRU`).

    `weight_input` [3H, inputs] and `weight_hidden` [3H, H] hold the reset, update and candidate gates in that order.
    """

    def __init__(self, inputs: int, size: int, init: str = "default") -> None:
        super().__init__()
        self.size = size
        bound = 1.0 / math.sqrt(size)
        self.weight_input = nn.Parameter(torch.empty(3 * size, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(3 * size, size).uniform_(-bound, bound))
        self.bias_input = nn.Parameter(torch.empty(3 * size).uniform_(-bound, bound))
        self.bias_hidden = nn.Parameter(torch.empty(3 * size).uniform_(-bound, bound))
        if init == "orthogonal":
            for weight in (self.weight_input, self.weight_hidden):
                for gate in weight.data.chunk(3):
                    nn.init.orthogonal_(gate)
            nn.init.zeros_(self.bias_input)
            nn.init.zeros_(self.bias_hidden)

    def step(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x [..., inputs], hidden [..., H] -> the next hidden state [..., H]."""
        return self._next(functional.linear(x, self.weight_input, self.bias_input), hidden)

    def forward(self, x: Tensor, hidden: Tensor, first: Tensor) -> Tensor:
        """x [..., T, inputs], hidden [..., H] before the window, first [..., T] -> hidden states [..., T, H].

        The hidden state is set to zero before a step where `first` is True.
        """
        gates = functional.linear(x, self.weight_input, self.bias_input)
        keep = first.logical_not().unsqueeze(-1).to(hidden.dtype)
        states = []
        for gate, alive in zip(gates.unbind(-2), keep.unbind(-2)):
            hidden = self._next(gate, hidden * alive)
            states.append(hidden)
        return torch.stack(states, -2)

    def _next(self, gates: Tensor, hidden: Tensor) -> Tensor:
        reset, update, candidate = gates.chunk(3, -1)
        hidden_reset, hidden_update, hidden_candidate = functional.linear(
            hidden, self.weight_hidden, self.bias_hidden
        ).chunk(3, -1)
        proposal = torch.tanh(candidate + torch.sigmoid(reset + hidden_reset) * hidden_candidate)
        return torch.lerp(proposal, hidden, torch.sigmoid(update + hidden_update))


def join(features: Tensor, extra: Tensor | None) -> Tensor:
    """Features [..., F] beside `extra` [n..., ..., A] -> [n..., ..., F + A]."""
    if extra is None:
        return features
    if features.shape[:-1] != extra.shape[:-1]:
        features = features.expand(*extra.shape[:-1], features.shape[-1])
    return torch.cat([features, extra.to(features.dtype)], -1)


def own_trunk(make: Callable[[int, int], Any], inputs: int, outputs: int) -> nn.Module:
    """A user's trunk, tried once in eval mode. Raises UsageError unless it maps [1, inputs] to [1, outputs]."""
    trunk = make(inputs, outputs)
    call = f"{getattr(make, '__qualname__', repr(make))}({inputs}, {outputs})"
    if not isinstance(trunk, nn.Module):
        raise UsageError(f"{call} gives a {type(trunk).__name__}, not a torch module")
    parameter = next(trunk.parameters(), torch.zeros(()))
    modes = {module: module.training for module in trunk.modules()}
    trunk.eval()
    try:
        with torch.no_grad():
            shape = tuple(trunk(parameter.new_zeros(1, inputs)).shape)
    except RuntimeError as error:
        raise UsageError(f"{call} does not take {inputs} features: {error}") from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    if shape != (1, outputs):
        raise UsageError(f"{call} gives outputs of shape {shape} where {(1, outputs)} is needed")
    return trunk


def build(
    config: Network,
    space: gymnasium.Space,
    outputs: int,
    *,
    inputs_extra: int = 0,
    ensemble: int | None = None,
    head_gain: float | None = None,
    normalizer: Normalizer | None = None,
) -> FeedForward | Recurrent:
    """What `Network.build` returns; see there."""
    encoder = make_encoder(space, config.encoder, config.init)
    memory = config.recurrent == "gru"
    inputs = (config.recurrent_size if memory else encoder.size) + inputs_extra
    core = GRU(encoder.size, config.recurrent_size, config.init) if memory else None
    trunk: nn.Module
    if config.make is None:
        trunk = (ResidualMLP if config.blocks == "residual" else MLP)(
            inputs,
            outputs,
            config.sizes,
            activation=config.activation,
            normalization=config.normalization,
            init=config.init,
            dropout=config.dropout,
            head_gain=config.head_gain if head_gain is None else head_gain,
            members=ensemble,
        )
    elif ensemble is None:
        trunk = own_trunk(config.make, inputs, outputs)
    else:
        make = config.make
        trunk = Stack(ensemble, lambda: own_trunk(make, inputs, outputs))
    if core is None:
        return FeedForward(encoder, trunk, normalizer)
    return Recurrent(space, encoder, core, trunk, normalizer)

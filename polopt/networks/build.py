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

    def forward(self, obs: Obs, extra: Tensor | None = None, members: int | None = None) -> Tensor:
        """`extra` [..., inputs_extra], an action for example, may have more leading dimensions than `obs`: observations
        [B, O] beside actions [n, B, A] give [n, B, outputs], and are encoded once. `members`: only the first so many of
        an ensemble."""
        inputs = join(self.features(obs), extra)
        return self.trunk(inputs) if members is None else self.trunk(inputs, members)


class Recurrent(nn.Module):
    """A network with memory: features -> core -> trunk. The hidden state [..., H] is zero when an episode begins."""

    recurrent = True

    def __init__(
        self,
        space: gymnasium.Space,
        encoder: Encoder,
        core: GRU | Clock,
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
        return self.core.like.new_zeros(*leading_shape(self.space, obs), self.hidden_size)

    def step(self, obs: Obs, hidden: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: `hidden` [..., H] before -> outputs [..., outputs] and the hidden state after."""
        features = self.features(obs)
        hidden = self.core.step(features, hidden)
        return self.trunk(join(self.core.read(features, hidden), extra)), hidden

    def unroll(self, obs: Obs, hidden: Tensor, first: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A window: obs [..., T, *shape], `hidden` [..., H] before its first column, `first` [..., T] True where an
        episode begins -> outputs [..., T, outputs] and the hidden states [..., T, H] after each step."""
        features = self.features(obs)
        states = self.core(features, hidden, first)
        return self.trunk(join(self.core.read(features, states), extra)), states

    def forward(self, obs: Obs, hidden: Tensor, first: Tensor, extra: Tensor | None = None) -> Tensor:
        """The outputs of `unroll`."""
        return self.unroll(obs, hidden, first, extra)[0]


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078; the variant of `torch.nn.GRU`).

    `weight_input` [3H, inputs] and `weight_hidden` [3H, H] hold the reset, update and candidate gates in that order.
    """

    def __init__(self, inputs: int, size: int, init: str = "default") -> None:
        super().__init__()
        self.size = self.outputs = size
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

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype, and on the device, of hidden states."""
        return self.weight_hidden

    def read(self, x: Tensor, hidden: Tensor) -> Tensor:
        """What the trunk reads [..., outputs]: the hidden state after the step."""
        return hidden

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


class Clock(nn.Module):
    """Counts the decisions of an episode, from 1: what a policy must know where the best action depends on the time.

    The hidden state [..., 1] is the count. The trunk reads the features beside the sine and cosine of the count at
    `size` // 2 speeds, from 1 radian a decision to about 1/1000 (after Vaswani et al. 2017, arXiv 1706.03762). There
    are no weights.
    """

    speeds: Tensor

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        half = max(size // 2, 1)
        self.size, self.outputs = 1, inputs + 2 * half
        self.register_buffer("speeds", 1000.0 ** -(torch.arange(half) / max(half - 1, 1)), persistent=False)

    @property
    def like(self) -> Tensor:
        return self.speeds

    def read(self, x: Tensor, hidden: Tensor) -> Tensor:
        angle = hidden * self.speeds
        return torch.cat([x, angle.sin(), angle.cos()], -1)

    def step(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x [..., inputs], hidden [..., 1] -> the next hidden state [..., 1]."""
        return hidden + 1.0

    def forward(self, x: Tensor, hidden: Tensor, first: Tensor) -> Tensor:
        """x [..., T, inputs], hidden [..., 1] before the window, first [..., T] -> hidden states [..., T, 1]."""
        place = torch.arange(1, first.shape[-1] + 1, device=first.device)
        begun = torch.where(first, place, 0).cummax(-1).values  # the place of the last beginning, 0 if there is none
        return torch.where(begun > 0, place - begun + 1.0, place + hidden).unsqueeze(-1)


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
    core: GRU | Clock | None = None
    if config.recurrent == "gru":
        core = GRU(encoder.size, config.recurrent_size, config.init)
    elif config.recurrent == "clock":
        core = Clock(encoder.size, config.recurrent_size)
    inputs = (encoder.size if core is None else core.outputs) + inputs_extra
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

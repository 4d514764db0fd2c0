"""Actions of a Box: flat, and in [-1, 1] or in the units of the environment."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.spec import Spec
from polopt.policies.base import NetworkActor


def register_bounds(module: nn.Module, space: spaces.Box, device: torch.device | None = None) -> None:
    """Gives a policy the buffers `low` and `high` [A], in the default dtype; they are part of the task, not saved."""
    for name, bound in (("low", space.low), ("high", space.high)):
        values = torch.tensor(np.reshape(bound, -1), dtype=torch.get_default_dtype(), device=device)
        module.register_buffer(name, values, persistent=False)


def to_unit(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From [low, high] to [-1, 1]; a coordinate whose bounds coincide is 0."""
    width = high - low
    return torch.where(width > 0, 2.0 * (action - low) / width.clamp_min(torch.finfo(low.dtype).tiny) - 1.0, 0.0)


def rescale(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From [-1, 1] to [low, high]; the clamp takes away what rounding leaves outside."""
    return torch.lerp(low, high, 0.5 * (action + 1.0)).clamp(low, high)


class BoxActor(NetworkActor):
    """An actor of a Box, of which it stores actions flat, [..., A]: in [-1, 1] if it is a `unit` one, otherwise in the
    units of the environment, as sampled, and clamped there."""

    low: Tensor
    high: Tensor

    def __init__(self, spec: Spec, net: nn.Module) -> None:
        super().__init__(spec, net)
        assert isinstance(spec.action, spaces.Box)
        self.size = spec.action_dim
        self.shape = spec.action.shape
        register_bounds(self, spec.action)

    def env_action(self, action: Tensor) -> Tensor:
        inside = rescale(action, self.low, self.high) if self.unit else action.clamp(self.low, self.high)
        return inside.reshape(*action.shape[:-1], *self.shape)

    def own_action(self, action: Tensor) -> Tensor:
        flat = action.flatten(-len(self.shape)) if self.shape else action.unsqueeze(-1)
        return to_unit(flat, self.low, self.high) if self.unit else flat

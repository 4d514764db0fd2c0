"""Successor observations of a window."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch


def successors(batch: Batch) -> Any:
    """next_obs [N, T, ...] of a window: the next column, or final_obs where an episode ends and in the last column.

    Reads obs, final_obs, terminated and truncated. The observation that follows an end belongs to the next episode
    and never appears as a successor.
    """
    return _successors(batch["obs"], batch["final_obs"], batch["terminated"] | batch["truncated"])


def _successors(obs: Any, final_obs: Any, ends: Tensor) -> Any:
    if not isinstance(obs, Tensor):
        parts = {key: _successors(value, final_obs[key], ends) for key, value in obs.items()}
        return TensorDict(parts, batch_size=obs.batch_size)
    time = ends.dim() - 1
    if ends.shape[-1] == 1:
        return final_obs
    shifted = torch.cat([obs.narrow(time, 1, ends.shape[-1] - 1), final_obs.narrow(time, ends.shape[-1] - 1, 1)], time)
    return torch.where(ends.reshape(*ends.shape, *[1] * (obs.dim() - ends.dim())), final_obs, shifted)

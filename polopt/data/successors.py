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
    take = batch["terminated"] | batch["truncated"]
    take = take.clone()
    take[..., -1] = True
    return _successors(batch["obs"], batch["final_obs"], take)


def _successors(obs: Any, final_obs: Any, take: Tensor) -> Any:
    if not isinstance(obs, Tensor):
        parts = {key: _successors(value, final_obs[key], take) for key, value in obs.items()}
        return TensorDict(parts, batch_size=obs.batch_size)
    time = take.dim() - 1
    if take.shape[-1] == 1:
        return final_obs
    shifted = torch.cat([obs.narrow(time, 1, take.shape[-1] - 1), final_obs.narrow(time, take.shape[-1] - 1, 1)], time)
    return torch.where(take.reshape(*take.shape, *[1] * (obs.dim() - take.dim())), final_obs, shifted)

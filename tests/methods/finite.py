"""Batches with discrete actions, and a linear Q-function to work out by hand what methods make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

LINEAR = {"network.sizes": ()}


def batch_of(size: int = 6, actions: int = 2, **keys: Any) -> Any:
    """Decisions [size] of a task with observations [4], such as CartPole."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator)

    batch = {
        "obs": draw(4),
        "action": torch.randint(actions, (size,), generator=generator),
        "reward": draw(),
        "next_obs": draw(4),
        "terminated": torch.arange(size) % 3 == 1,
        "truncated": torch.arange(size) % 3 == 2,
        "discount": torch.full((size,), 0.9),
    }
    return TensorDict(batch | keys, batch_size=[size])


def randomize(*modules: torch.nn.Module) -> None:
    """Other weights for every network, so that no copy equals its source."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def linear(critic: torch.nn.Module, obs: torch.Tensor) -> np.ndarray:
    """Q [E, B, K] of critics without hidden layers at `obs` [B, O]."""
    weight, bias = (parameter.detach().numpy() for parameter in critic.parameters())
    return obs.numpy() @ weight + bias.reshape(len(weight), 1, -1)


def huber(error: np.ndarray, delta: float = 1.0) -> np.ndarray:
    return np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))

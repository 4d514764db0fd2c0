"""The random numbers that tokens are drawn with."""

from __future__ import annotations

import torch
from torch import Tensor


class Luck:
    """Uniform numbers [N, 1] for every step of N rows, the same whichever rows ask for them first."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.device = device
        self.steps: list[Tensor] = []

    def drawn(self, steps: int) -> Tensor:
        """Those of the last of so many steps."""
        while len(self.steps) < steps:
            self.steps.append(torch.rand(self.count, 1, dtype=wide(self.device), device=self.device))
        return self.steps[steps - 1]


def wide(device: torch.device) -> torch.dtype:
    """In what tokens are drawn: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64

"""Zones as tables on a device, and which of them strike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.tasks.point.layout import read_zones


class Zones:
    """Z zones in D dimensions, read from options; `len` is Z.

    Attributes:
        chancy: whether luck decides. costs: whether one has a cost.
        reward, cost: of a strike of each, [Z]. ends: bool [Z].
    """

    def __init__(self, options: Any, dims: int, device: torch.device) -> None:
        found = read_zones(options, dims)
        zones = [zone for zone, _, _ in found]

        def real(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.get_default_dtype(), device=device)

        def flags(values: list[bool]) -> Tensor:
            return torch.tensor(values, dtype=torch.bool, device=device)

        self.middle = real([middle for _, middle, _ in found]).view(-1, dims)
        self.size = real([size for _, _, size in found]).view(-1, dims)
        self.ball, self.ends = flags([zone.radius is not None for zone in zones]), flags([zone.ends for zone in zones])
        self.chance, self.fade = real([zone.chance for zone in zones]), real([zone.fade for zone in zones])
        self.reward, self.cost = real([zone.reward for zone in zones]), real([zone.cost for zone in zones])
        self.chancy = any(zone.chance < 1 or zone.fade for zone in zones)
        self.costs = any(zone.cost for zone in zones)

    def __len__(self) -> int:
        return len(self.middle)

    def within(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Which zones each place [..., D] is in, bool [..., Z], and how probable it is that they strike, [..., Z]."""
        off = (place.unsqueeze(-2) - self.middle) / self.size
        square = off * off
        inside = torch.where(self.ball, square.sum(-1), square.amax(-1)) <= 1.0
        chance = self.chance * torch.exp(-self.fade * square.sum(-1)) if self.chancy else self.chance
        return inside, inside * chance

"""A source that marks its batches with the weight that made them; in a file that a process of its own imports fast."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn

from polopt.core.ledger import Ledger
from polopt.data.base import Source


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class Marks(Source):
    """Batches of one row: the weight that made it, its number, and numbers that were drawn."""

    saved = ("made",)

    def __init__(self) -> None:
        self.made = 0
        self.ledger = Ledger()

    def next(self, actor: Any) -> Any:
        self.made += 1
        self.ledger.completions += 3
        drawn = torch.rand(()).item() + random.random() + np.random.random()  # noqa: NPY002
        row = {"weight": actor.value.item(), "number": self.made, "drawn": drawn, "group": 0}
        return TensorDict({name: torch.tensor([value]) for name, value in row.items()}, batch_size=[1])

    def episodes(self) -> list[tuple[float, int]]:
        return [(float(self.made), 1)]

"""Running means of samples: over the latest ones, and of the partition function of each prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from polopt.core.batch import same_shape
from polopt.core.state import Stateful


class Latest(Stateful):
    """The mean over the latest steps that together have `window` samples or more; 0 before the first, and with none."""

    saved = ("steps",)

    def __init__(self, window: int) -> None:
        self.window = window
        self.steps: list[list[float]] = []  # mean and number of samples of each

    def add(self, mean: Tensor | float, count: int) -> None:
        """Takes in a step of `count` samples with this mean."""
        self.steps.append([float(mean), float(count)])
        while self.steps and sum(count for _, count in self.steps[1:]) >= self.window:
            self.steps.pop(0)

    @property
    def mean(self) -> float:
        total = sum(count for _, count in self.steps)
        return sum(mean * count for mean, count in self.steps) / total if total else 0.0


class Partition(Stateful):
    """Z = sum_x P(x) of each prompt: the mean of P(x) / q(x) over all samples x of q so far, whatever q was.

    Kept in logarithms and double precision. `most` is the largest Z that can be: where the mean would be above, the
    largest of the new P/q are cut to one height (`cut_to_sum`).
    """

    def __init__(self, most: float | None = None) -> None:
        self.most = most
        self._seen: dict[int, tuple[float, int]] = {}  # log of the sum, number of samples

    @torch.no_grad()
    def update(self, log_weight: Tensor, index: Tensor, group: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in log P/q of samples of the prompts `index`, each group of one prompt; all arguments are [B].

        Returns (log P/q, log Z) [B]: -inf in both where not `valid`, the first as `most` has cut it, the second of the
        samples before and these. Raises ValueError when shapes differ.
        """
        same_shape(log_weight=log_weight, index=index, group=group, valid=valid)
        weight = torch.where(valid, log_weight, -math.inf).to("cpu", torch.float64)
        log_z, index, group, valid = torch.full_like(weight, -math.inf), index.cpu(), group.cpu(), valid.cpu()
        for number in group[valid].unique():
            rows = (group == number) & valid
            prompt = int(index[rows][0])
            total, count = self._seen.get(prompt, (-math.inf, 0))
            count += int(rows.sum())
            if self.most is not None:
                weight[rows] = cut_to_sum(weight[rows].exp(), count * self.most - math.exp(total)).log()
            total = float(torch.cat((weight.new_tensor([total]), weight[rows])).logsumexp(0))
            self._seen[prompt], log_z[rows] = (total, count), total - math.log(count)
        return weight.to(log_weight), log_z.to(log_weight)

    def extra_state(self) -> dict[str, Any]:
        if not self._seen:
            return {}
        total, count = (list(column) for column in zip(*self._seen.values()))
        sums = torch.tensor(total, dtype=torch.float64)
        return {"index": torch.tensor(list(self._seen)), "total": sums, "count": torch.tensor(count)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        columns = [state[name].tolist() for name in ("index", "total", "count")] if state else [[], [], []]
        self._seen = {index: (total, count) for index, total, count in zip(*columns)}


def cut_to_sum(values: Tensor, most: float) -> Tensor:
    """min(values, height) [S] for the height at which they sum to `most`, or as they are where they sum to less.

    Values are at least 0, `most` is above 0.
    """
    if values.sum() <= most:
        return values
    ordered = values.sort().values
    below = torch.cat((ordered.new_zeros(1), ordered[:-1].cumsum(0)))
    # The height if this one and all larger ones are cut; where that is not so it comes out too low.
    height = (most - below) / torch.arange(len(values), 0, -1).to(values)
    return values.clamp_max(height.max().item())

"""Small methods that are judged by another number than the return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polopt.core.batch import Batch
from polopt.evaluation.figures import Figure, Points
from polopt.methods.control.ppo import PPO
from polopt.tasks.base import Task


class Volume(PPO):
    """PPO, judged by a number of its policy that goes up and down."""

    slug = "volume"
    score = "hypervolume"

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        weights = torch.cat([value.detach().flatten() for value in self.policy.parameters()])
        return {"hypervolume": 0.5 + 0.5 * torch.sin(20.0 * weights.sum()).item(), "return": -5.0}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        return metrics | {"leader/entropy": metrics["entropy"], "student/entropy": 2 * metrics["entropy"]}

    def figures(self) -> dict[str, Figure]:
        x = torch.arange(4.0) + self.ledger.updates
        return {"front": Points(x, -x, x_label="speed", y_label="thrift", front=True)}


class Regretful(Volume):
    """What is missing to 1, of which less is better; no return."""

    slug = "regretful"
    score = "-regret"

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        return {"regret": 1.0 - super().evaluate(task, episodes)["hypervolume"], "regret_std": 0.25}


METHODS: dict[str, type[Any]] = {"volume": Volume, "regretful": Regretful}

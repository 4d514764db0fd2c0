"""Supervised fine-tuning: maximum likelihood of demonstrated completions.

As a stage of language-model training: Radford et al., "Improving Language Understanding by Generative Pre-Training",
2018; it is the warm start of every method that learns from rewards.

    loss   - sum_t weight_t log pi(y_t | x, y_<t)          weights: every token the same, or every completion

With `--emphasis probability` each token also counts by its own probability, sg[pi(y_t | x, y_<t)], so that the
gradient is that of the expected number of right tokens: DFT (Wu et al., "On the Generalization of SFT: A Reinforcement
Learning Perspective with Reward Rectification", 2025, arXiv 2508.05629), the preset `dft`.

Demonstrations are the worked solutions of the task's problems, or the `solution` column of a file of prompts. Only
tokens of the completion, its end included, are learned; the prompt is not.

Departs from the paper in: AdamW without warm-up by default; completions are padded, not packed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.language import LanguageMethod
from polopt.bases.method import Smoke
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch
from polopt.data.demonstrated import Demonstrated, demonstrated
from polopt.data.samplers import Sequential, Shuffled
from polopt.losses.estimator import token_weights
from polopt.losses.regression import emphasis, imitation
from polopt.policies.base import with_noise
from polopt.tasks.base import Task


class SFT(LanguageMethod):
    @dataclass(frozen=True)
    class Config(LanguageMethod.Config):
        batch_size: int = param(64, "assumed", low=1, unit="completions", help="per optimizer step")
        aggregate: str = param("token", "assumed", choices=("token", "sequence"), help="what counts the same")
        emphasis: str = param(
            "none",
            "arXiv 2508.05629",
            choices=("none", "probability", "uncertainty"),
            help="a token counts by its probability p (DFT), or by p (1 - p)",
        )
        lr: float = param(1e-3, "assumed", above=0, help="for new, small models; 1e-5 suits billions of parameters")
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "assumed")

    slug = "sft"
    headline: ClassVar[tuple[str, ...]] = ("loss",)
    trains_on = "text tasks with worked solutions, your prompts"
    metrics = {
        "loss": "cross-entropy per token (or completion) | falls",
        "eval/token_loss": "per token of held-out demonstrations; `eval/return` is minus that when nothing can score "
        "completions",
    }
    default_steps = 2_000
    presets: ClassVar[dict[str, dict[str, Any]]] = {"dft": {"emphasis": "probability"}}
    no_limit = "it is a base: there is nothing simpler in the catalogue that it could be"
    smoke = Smoke("addition", 12, {"model": "tiny", "batch_size": 24, "policy.max_tokens": 16}, {"digits": 1})

    def build(self, task: Task) -> None:
        super().build(task)
        size = task.size  # type: ignore[attr-defined]
        sampler = Sequential() if size is None else Shuffled(size)
        self.source = Demonstrated(task, self.config.batch_size, sampler)

    def imitation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error, weight = self.policy.imitation_loss(batch, batch.get("noise", None)), batch["weight"]
        loss = imitation(error, weight, emphasis(-error, self.config.emphasis))
        return loss, {"loss": imitation(error.detach(), weight)}

    def weigh(self, batch: Batch) -> Batch:
        """A shallow copy with the `weight` [B, T] of every token, and what the loss draws at random."""
        batch = with_noise(self.policy, batch)
        batch["weight"] = token_weights(batch["mask"], self.config.aggregate, rows=batch.get("row_weight", None))
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.imitation_loss, self.weigh(batch))

    @torch.no_grad()
    def evaluate_data(self, task: Any, count: int) -> dict[str, float]:
        """Of held-out demonstrations: their loss per token, and `return`, which is minus that."""
        rows = demonstrated(task, self.policy, list(range(count)))
        loss, mask = self.policy.imitation_loss(rows).double(), rows["mask"]
        mean = (loss.sum() / mask.sum()).item()
        spread = (loss.sum(1) / mask.sum(1)).std(correction=0).item()
        return {
            "return": -mean,
            "return_std": spread,
            "length": mask.sum(1).double().mean().item(),
            "token_loss": mean,
        }

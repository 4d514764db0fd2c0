"""VADE: the prompts of the next batch are chosen by what is believed of their pass rates, before anything is sampled.

Hu et al., "VADE: Variance-Aware Dynamic Sampling via Online Sample-Level Difficulty Estimation for Multimodal RL",
2025, arXiv 2511.18902.

A group whose completions are all right or all wrong teaches nothing. Of each prompt i of a pool there are counts a_i of
right and b_i of wrong completions, 0 at first, and a batch is chosen by Thompson sampling:

    p_i   ~ Beta(a_i + 1, b_i + 1)       drawn anew for every prompt at every step         `belief.draw`
    I_i   = p_i (1 - p_i)^2              largest at 1 / 3                                  `information`, `hardness` 2
    batch = the B prompts with the largest I_i

After the update, of the G completions of a prompt r_i were right. Evidence of prompts that were trained on fades fast,
for training changed their pass rates, and that of all others slowly, for the policy drifts:

    of the batch   a_i <- lambda_1 a_i + r_i,   b_i <- lambda_1 b_i + G - r_i              `tried_memory` 0.2
    of the others  a_i <- lambda_2 a_i,         b_i <- lambda_2 b_i                        `untried_memory` 0.999

No completion is sampled to estimate anything, and the loss is the base's: GRPO's, or with `--preset gspo` that of GSPO.
Differs from its base in the choice of prompts only. What was never tried is drawn from Beta(1, 1) and so comes soon.

Departs from the paper in: a completion counts as right where the task's verifier gives it the full reward, or where its
reward is at least `--right-at`; completions whose reward could not be computed count neither as right nor as wrong, and
a prompt that has no others was not tried. The ablations are `--hardness 1` (p (1 - p)), `--estimate mean` (without
sampling) and `--tried-memory 0` (the last visit only). Rates, batch size, clip range and penalty of the paper's runs
are not known here: those of GRPO's first paper stand in.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.language import need_verifier, pool_size, right
from polopt.bases.method import Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.data.curricula import Best
from polopt.methods.language.rec import GRPO
from polopt.policies.language import need_text
from polopt.tasks.base import Task
from polopt.values.groups import group_mean
from polopt.values.tracker import BetaBelief


def information(rate: Tensor, hardness: float = 2.0) -> Tensor:
    """I = p (1 - p)^hardness of pass rates p, shaped like them; largest at 1 / (1 + hardness)."""
    return rate * (1 - rate) ** hardness


class VADE(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(128, "assumed", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "framework figure", low=1, unit="completions")
        tried_memory: float = param(
            0.2, "framework figure", low=0, high=1, help="share of the evidence that stays, of prompts in a batch"
        )
        untried_memory: float = param(
            0.999, "framework figure", low=0, high=1, help="the same, of prompts not in the batch"
        )
        hardness: float = param(2.0, "framework figure", low=0, help="exponent of 1 - p in the information gain")
        estimate: str = param(
            "sampled", "framework figure", choices=("sampled", "mean"), help="p: drawn from the belief, or its mean"
        )
        right_at: float | None = param(
            None, "polopt", unit="reward", help="a completion with so much is right; none: as the verifier says"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("dynamic_sampling", because="where beliefs are to learn from every group that was sampled")

    slug = "vade"
    headline = ("reward", "accuracy", "informative", "estimate_error", "completion_length")
    trains_on = "a pool of prompts"
    metrics = {
        "estimate_error": "mean distance of the pass rates of a batch from what was believed before it | falls",
        "believed": "mean believed pass rate of the pool",
        "visited": "share of the pool of which something was seen | rises to 1",
    }
    presets = {
        "gspo": {"surrogate": "gspo", "reference_kl": None},
        "paper": {"model": "Qwen/Qwen2.5-7B-Instruct", "policy.max_tokens": 2048},
        "small": {"batch_prompts": 16, "lr": 1e-4, "reference_kl": None, "policy.max_tokens": 32},
    }
    no_limit = (
        "its loss is GRPO's and only the choice of prompts is its own, while limit cases are shown on the base's "
        "batches: tests/methods/test_vade.py shows that with a batch as large as the pool it is GRPO bitwise"
    )
    smoke = Smoke(
        "vowels",
        128,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "updates_per_batch": 2,
            "right_at": 0.3,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 16, "score_truncated": True},
    )

    def build(self, task: Task) -> None:
        need_text(self.spec)
        config = self.config
        size = pool_size(task, config.batch_prompts, by=self.slug)
        if config.right_at is None:
            need_verifier(task, by=self.slug, instead=": say with --right-at from which reward on one is")
        self.belief = BetaBelief(size, tried=config.tried_memory, untried=config.untried_memory)
        super().build(task)

    def make_sampler(self, task: Any) -> Best:
        return Best(self.belief.size, self.scores)

    def scores(self) -> Tensor:
        """I of every prompt [size], with fresh draws."""
        config, belief = self.config, self.belief
        rate = belief.draw(self.generator) if config.estimate == "sampled" else belief.value()
        return information(rate, config.hardness)

    @torch.no_grad()
    def track(self, batch: Batch) -> dict[str, Tensor]:
        """Moves the beliefs by what became of the completions of `batch`."""
        success, valid = right(batch, self.config.right_at), ~batch["failed"]
        believed = self.belief.value(batch["index"].cpu()).to(success)
        error = (believed - group_mean(success, batch["group"], valid)).abs()[valid].mean()
        self.belief.update(batch["index"][valid], success[valid])
        seen = self.belief.alpha + self.belief.beta > 0
        return {
            "estimate_error": error,
            "believed": self.belief.value().mean(),
            "visited": seen.to(self.belief.alpha.dtype).mean(),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return super().update(batch) | self.track(batch)

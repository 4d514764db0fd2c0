"""CHORD: imitation of experts as a weighted loss beside reinforcement, by a weight of the run and one of each token.

Zhang et al., "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement Learning via
Dynamic Weighting", 2025, arXiv 2508.11408.

A step has completions of the policy in groups and, beside them, demonstrations of other problems, written by an expert:

    loss    (1 - mu) L_GRPO + mu L_SFT           each a mean over the tokens of its own rows of the whole step
    L_GRPO  - mean min(rho A, clip(rho, 1 - 0.2, 1 + 0.2) A),  A = (r - mean r) / std r of the group
    L_SFT   - mean sg[phi(p)] log p,             p = pi(y*_t | x, y*_<t) of the expert's token, now
    phi(p)  p (1 - p), `--emphasis uncertainty`; 1, `none`; p, `probability`

phi is 0 where the policy knows the token anyway and where the token is out of its reach, which would disrupt it, and
1/4 at most: at equal mu it is a much weaker pull than plain imitation. On the token's own logit it has the slope
p (1 - p)^2, largest at p = 1/3. With `--cutoff c` tokens of p > c get no gradient; phi is then that of p all the same.

mu goes from imitation to reinforcement by batches t = 1, 2, ...:

    t < T_w         mu_peak t / T_w                                                      T_w: `mu_warmup`
    t < T_w + T_d   mu_valley + (mu_peak - mu_valley) (1 + cos(pi (t - T_w) / T_d)) / 2  T_d: `mu_decay`
    after that      mu_valley

The default is CHORD-phi, mu = 0.1 all the time; CHORD-mu is `--preset mu`, both together `--preset both`. At mu = 0 no
demonstration is drawn.

Differs from its base, GRPO, in L_SFT; there is no penalty against a reference. Experts are in no group.

Departs from the paper in: experts are the worked solutions of the task (`--task.style` says how those of generated
tasks are written), of all its problems or of the first `expert_pool`. The rate of `paper` is assumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.config import param
from polopt.core.batch import Batch, align_left
from polopt.core.errors import UsageError
from polopt.data.demonstrated import IMITATED, OWN, Demonstrated, beside
from polopt.data.samplers import Sequential, Shuffled
from polopt.losses.estimator import token_weights
from polopt.losses.regression import emphasis, imitation
from polopt.methods.language.rec import GRPO
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task

OPEN_R1 = {"prompt_column": "problem", "solution_column": "solution", "match": "math", "chat": True}


def mu_at(step: int, warmup: int, decay: int, peak: float, valley: float) -> float:
    """The share of imitation in batch number `step`, from 1 on."""
    if step < warmup:
        return peak * step / warmup
    if step >= warmup + decay:
        return valley
    return valley + (peak - valley) * (1 + math.cos(math.pi * (step - warmup) / decay)) / 2


class CHORD(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(32, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "official code", low=1, unit="completions")
        aggregate: str = param(
            "token",
            "official code",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss of own completions",
        )
        reference_kl: ReferenceKL | None = param(None, "official code", help="penalty against the start")
        experts: int = param(64, "official code", low=1, unit="demonstrations", help="per batch")
        expert_pool: int | None = param(
            None, "polopt", low=1, unit="problems", help="only the first so many have demonstrations; none: all"
        )
        mu_valley: float = param(0.1, "official code", low=0, high=1, help="weight of imitation, at last")
        mu_peak: float = param(0.1, "official code", low=0, high=1, help="that after the warm-up")
        mu_warmup: int = param(0, "official code", low=0, unit="batches", help="of mu, from 0")
        mu_decay: int = param(0, "official code", low=0, unit="batches", help="of mu, by half a cosine")
        emphasis: str = param(
            "uncertainty",
            "section 4.2",
            choices=("none", "probability", "uncertainty"),
            help="of experts' tokens with probability p: phi = p (1 - p), 1, or p",
        )
        cutoff: float = param(1.0, "official code", above=0, high=1, help="likelier tokens of experts are let be")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.mu_warmup + self.mu_decay == 0:
                self.refuse("mu_peak", because="without a warm-up or a decay")
            if self.emphasis == "none":
                self.refuse("cutoff", because="on the emphasis 'none'")

    slug = "chord"
    headline = ("reward", "accuracy", "mu", "expert_log_prob", "completion_length")
    trains_on = "text tasks with demonstrations"
    metrics = {
        "mu": "weight of imitation beside reinforcement",
        "expert_log_prob": "mean log-probability of the experts' tokens | rises",
        "expert_emphasis": "mean of phi over the experts' tokens, 1 without it | what is left of the pull of mu",
    }
    probes = {
        "cutoff": {"cutoff": 0.01},
        "expert_pool": {"expert_pool": 2},
    }
    presets = {
        "mu": {"emphasis": "none", "mu_peak": 0.9, "mu_valley": 0.05, "mu_decay": 200},
        "both": {"mu_peak": 0.5, "mu_valley": 0.02, "mu_warmup": 200, "mu_decay": 400},
        "paper": {"model": "Qwen/Qwen2.5-7B-Instruct", "lr": 1e-6, "policy.max_tokens": 10_240},
        "small": {"batch_prompts": 16, "experts": 32, "lr": 1e-4, "policy.max_tokens": 32},
    }
    studies = {"paper": Study("datasets/open-r1/OpenR1-Math-220k", task_options=OPEN_R1)}
    limits = (
        Limit(
            base="grpo",
            at={"mu_valley": 0.0},
            apart={"mu_valley": 0.1},
            base_at={"aggregate": "token", "reference_kl": None},
            because="without imitation it is GRPO with a mean over tokens and no reference",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "experts": 3,
            "mu_peak": 0.5,
            "mu_warmup": 1,
            "mu_decay": 3,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"score_truncated": True},
    )
    saved = ("batches",)

    def build(self, task: Task) -> None:
        super().build(task)
        self.batches = 0
        pool, size = self.config.expert_pool, task.size  # type: ignore[attr-defined]
        if pool is not None:
            if size is not None and pool > size:
                raise UsageError(f"expert_pool {pool} is more than the {size} problems of {task.spec.name}")
            size = pool
        self.experts = Demonstrated(task, self.config.experts, Sequential() if size is None else Shuffled(size))

    @property
    def mu(self) -> float:
        """Of the batch after the `batches` that there have been."""
        config = self.config
        return mu_at(self.batches + 1, config.mu_warmup, config.mu_decay, config.mu_peak, config.mu_valley)

    def mix(self, batch: Batch) -> Batch:
        """The rows of a step, with `origin` [B]: own completions, and unless mu is 0 demonstrations."""
        rows = batch.clone(False)
        rows["origin"] = torch.full_like(rows["index"], OWN)
        if self.mu == 0:
            return rows
        shown = self.experts.next(self.policy)
        shown["origin"] = torch.full_like(shown["index"], IMITATED)
        shown["advantage"] = torch.zeros(len(shown), dtype=rows["advantage"].dtype, device=rows.device)
        return beside(rows, shown)

    def optimizer_batches(self, batch: Batch) -> Iterator[Batch]:
        return super().optimizer_batches(self.mix(batch))

    def weigh(self, batch: Batch) -> Batch:
        """A shallow copy with the weights [B, T] of two means over tokens: `weight` over those of own completions,
        `expert_weight` over those of demonstrations."""
        batch = batch.clone(False)
        mask, expert = batch["mask"], align_left(batch["origin"] == IMITATED, batch["mask"])
        batch["weight"] = self.sampled_weights(batch, mask & ~expert)
        batch["expert_weight"] = token_weights(mask & expert, "token")
        return batch

    def importance(self, log_prob: Tensor, weight: Tensor) -> Tensor:
        """phi [B, T] of experts' tokens, which have weights [B, T]."""
        value = emphasis(log_prob, self.config.emphasis)
        return torch.ones_like(log_prob) if value is None else value

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["expert_weight"]
        log_prob = self.policy.log_prob(batch)
        reinforced, metrics = self.sampled_term(log_prob, batch)
        phi = self.importance(log_prob, weight)
        imitated = imitation(-log_prob.clamp_max(math.log(self.config.cutoff)), weight, phi)
        loss = (1 - self.mu) * reinforced + self.mu * imitated
        return loss, metrics | {
            "expert_log_prob": (weight * log_prob).sum(),
            "expert_emphasis": (weight * phi).sum(),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        mu = torch.tensor(self.mu)
        metrics = super().update(batch)
        self.batches += 1
        return metrics | {"mu": mu}

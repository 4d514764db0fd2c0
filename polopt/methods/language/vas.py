"""VAS: half of every batch are prompts whose rewards vary, by scores that are taken again as the policy moves.

Leng, Wang, Li, Zhang et al., "MMR1: Enhancing Multimodal Reasoning with Variance-Aware Sampling and Open Resources",
2025, arXiv 2509.21268.

The step of GRPO on a prompt is as large as the variance of its rewards lets it be. Before the first step and after
every T_update batches (`rescore_every`) the present policy answers every prompt x of the pool N times, and with P(x)
the share of right answers

    OVS(x) = P(x) (1 - P(x))                                              variance of the outcome
    TDS(x) = diversity of the N answers                                   `diversity`: distinct 3-grams, 1 - self-BLEU
    VPS(x) = a OVS(x) + b TDS(x)                                          `outcome_weight` 1, `diversity_weight` 0
    W(x)   <- m W(x) + (1 - m) (VPS(x) - min VPS) / (max VPS - min VPS + 1e-8)                `momentum` 0

Of a batch of B prompts floor(lambda B) (`weighted_share` 0.5) are drawn with replacement, P(x) proportional to W(x),
and the rest comes from the whole pool in one fixed random order, again and again. Each draw is a group of its own.

Differs from its base, GRPO, in which prompts it is asked; the loss averages over tokens and its penalty is 0.01. Scores
cost pool x N completions each time, which are charged to the budget and taught nothing with: a pool that is large
beside T_update batches spends most of it on them.

Departs from the paper in: an answer counts as right where the verifier gives it the full reward, or where its reward is
at least `--right-at`; answers that could not be scored do not count, and a prompt without others scores 0. Where all
scores are equal the weighted prompts are drawn uniformly (0 / 0 in the official code). 3-grams and BLEU are of sampled
tokens (the official code counts the padding behind them too), and self-BLEU enters as 1 - self-BLEU. Token means are
over the batch (over eight rows of a device there). Where less than a batch's share is left of the fixed order it begins
anew, as there; unlike there, also after new scores it goes on where it was.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.language import need_verifier, pool_size, right
from polopt.bases.method import Limit
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.state import Stateful
from polopt.data.curricula import Mixture, Replaced, Rotation
from polopt.data.sweeps import Sweep
from polopt.methods.language.rec import GRPO
from polopt.methods.language.vas_settings import VASSettings
from polopt.policies.language import need_text
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task
from polopt.values.diversity import distinct, unlike
from polopt.values.groups import group_mean

DIVERSITY = {"distinct-3": distinct, "self-bleu": unlike}


def outcome_variance(rate: Tensor) -> Tensor:
    """OVS = P (1 - P) of pass rates, shaped like them."""
    return rate * (1 - rate)


def normalized(score: Tensor) -> Tensor:
    """(s - min) / (max - min + 1e-8) over the pool; all 0 where all scores are equal."""
    return (score - score.min()) / (score.max() - score.min() + 1e-8)


class PromptWeights(Stateful):
    """W of every prompt of a pool, from scores that come in part by part.

    `age` counts the batches since they were made, None before there are any.
    """

    learned = False
    saved = ("age",)

    def __init__(self, size: int, momentum: float) -> None:
        self.momentum = momentum
        self.age: int | None = None
        self.score = torch.zeros(size)
        self.weight = torch.zeros(size)

    def note(self, index: Tensor, score: Tensor) -> None:
        """The scores of some prompts, for the weights to come."""
        self.score = self.score.index_copy(0, index, score)

    def renew(self) -> None:
        """Makes weights of the scores of all prompts."""
        keep = 0.0 if self.age is None else self.momentum
        self.weight = keep * self.weight + (1 - keep) * normalized(self.score)
        self.age = 0

    def extra_state(self) -> dict[str, Any]:
        return {"score": self.score, "weight": self.weight}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.score, self.weight = state["score"].clone(), state["weight"].clone()


class VAS(VASSettings, GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(512, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "official code", low=1, unit="completions")
        aggregate: str = param(
            "token",
            "official code",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss: tokens, sequences, or a constant length",
        )
        weight_decay: float = param(0.01, "official code", low=0)
        reference_kl: ReferenceKL | None = param(ReferenceKL(0.01), "official code", help="penalty against the start")
        weighted_share: float = param(0.5, "official code", low=0, high=1, help="of a batch, drawn by weight")
        rescore_every: int | None = param(
            4, "official code", low=1, unit="batches", help="scores are taken again; none: only before the first step"
        )
        scoring_samples: int = param(8, "official code", low=2, unit="completions", help="of every prompt, for a score")
        outcome_weight: float = param(1.0, "official code", low=0, help="of the variance of the outcome")
        diversity_weight: float = param(0.0, "official code", low=0, help="of the diversity of the answers")
        diversity: str = param("distinct-3", "official code", choices=tuple(DIVERSITY), help="how it is measured")
        momentum: float = param(0.0, "official code", low=0, below=1, help="share of the weights before that stays")
        right_at: float | None = param(
            None, "polopt", unit="reward", help="an answer with so much is right; none: as the verifier says"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.weighted_share:
                scoring = ("rescore_every", "scoring_samples", "outcome_weight", "diversity_weight", "diversity")
                self.refuse(*scoring, "momentum", "right_at", because="where no prompt is drawn by weight")
            if not self.diversity_weight:
                self.refuse("diversity", because="without a diversity_weight")
            if self.rescore_every is None:
                self.refuse("momentum", because="where scores are taken only once")

    slug = "vas"
    limits = (
        Limit(
            base="grpo",
            at={"weighted_share": 0.0},
            base_at={"reference_kl.coefficient": 0.01, "aggregate": "token", "weight_decay": 0.01},
            apart={"weighted_share": 0.5},
            because="without weighted prompts it is GRPO on the pool in a random order, until that ends",
            collects="each",
        ),
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        found = super().derived(config, steps)
        if config.weighted_share:  # how many steps are left beside the scores depends on the pool
            del found["optimizer steps"]
            found["completions per scored prompt"] = config.scoring_samples
        return found

    def build(self, task: Task) -> None:
        need_text(self.spec)
        config = self.config
        size = pool_size(task, config.batch_prompts, by=self.slug)
        if config.weighted_share and config.right_at is None:
            need_verifier(task, by=self.slug, instead=": say with --right-at from which reward on one is")
        self.weights = PromptWeights(size, config.momentum)
        super().build(task)
        prompts = config.batch_prompts * config.samples_per_prompt // config.scoring_samples
        self.sweep = Sweep(task, prompts, config.scoring_samples, ledger=self.ledger)

    def make_sampler(self, task: Any) -> Mixture:
        whole = Rotation(task.size)
        return Mixture(Replaced(task.size, lambda: self.weights.weight), whole, self.config.weighted_share)

    @property
    def due(self) -> bool:
        """Whether scores are to be taken, before the next batch."""
        age, every = self.weights.age, self.config.rescore_every
        return self.config.weighted_share > 0 and (age is None or (every is not None and age >= every))

    def collect(self) -> Batch:
        """A batch of the mixture; where scores are due, answers of the whole pool first, a batch's worth at a time."""
        if self.due and not self.sweep.left:
            self.sweep.begin()
        if not self.sweep.left:
            return super().collect()
        batch = self.sweep.next(self.behavior)
        batch["scoring"] = torch.ones_like(batch["failed"])
        return batch

    @torch.no_grad()
    def take_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Answers give their prompts a score, and teach nothing else; after the last of the pool there are weights."""
        config, group, valid = self.config, batch["group"], ~batch["failed"]
        rate = group_mean(right(batch, config.right_at), group, valid)[:: config.scoring_samples]
        variance = outcome_variance(rate)
        score = config.outcome_weight * variance
        if config.diversity_weight:
            score = score + config.diversity_weight * self.differences(batch).to(score)
        self.weights.note(batch["index"][:: config.scoring_samples].cpu(), score.cpu())
        if not self.sweep.left:
            self.weights.renew()
        found = {"pass_rate": rate.mean(), "varied": (variance > 0).to(rate.dtype).mean()}
        return self.batch_metrics(batch) | found | {"waiting": torch.tensor(self.sweep.left / self.sweep.size)}

    def differences(self, batch: Batch) -> Tensor:
        """TDS of every prompt of a batch."""
        measure, samples = DIVERSITY[self.config.diversity], self.config.scoring_samples
        tokens = [row[mask].tolist() for row, mask in zip(batch["completion"].cpu(), batch["mask"].cpu())]
        texts = [[text for text in tokens[at : at + samples] if text] for at in range(0, len(tokens), samples)]
        return torch.tensor([measure(each) for each in texts])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        if "scoring" in batch.keys():
            return self.take_scores(batch)
        if self.weights.age is not None:
            self.weights.age += 1
        return super().update(batch)

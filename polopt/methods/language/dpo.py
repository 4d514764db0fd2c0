"""DPO: Direct Preference Optimization.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", 2023, arXiv
2305.18290.

Under a Bradley-Terry model of preferences, the reward whose KL-regularized optimum is pi is beta log(pi / pi_ref) up to
a term of the prompt, so the likelihood of the preferences is a loss of the policy itself:

    h(y)   = log pi(y|x) - log pi_ref(y|x)                    summed over the tokens of y
    loss     - E_(x, chosen, rejected) log sigmoid(beta (h(chosen) - h(rejected)))

pi_ref is the model at the start. `--loss` takes other losses of the margin: ipo (arXiv 2310.12036, h averaged over
tokens as its authors run it; ipo-sum is its equation 17, with the sum), hinge, robust; `--label-smoothing` is
conservative DPO.

Pairs are the columns `prompt`, `chosen`, `rejected` of a file, or a generated task's worked solutions against those of
other problems. Evaluations add, on held-out pairs: `preferred`, the share whose chosen answer has the higher implicit
reward, which is also the `return` of pairs without answers or rewards to score completions by; the `margin` of these
rewards; and log pi of the chosen answers, which DPO may lower while the others look well.

Departs from the paper in: AdamW in place of RMSprop; no warm-up by default, where the paper warms up for 150 steps; the
reference is scored with every batch, not in advance.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.language import LanguageMethod
from polopt.bases.method import Smoke
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.mixing import cat_rows
from polopt.data.preferences import Preferences, pairs_of
from polopt.data.tokens import ROW
from polopt.losses.pairwise import implicit_reward, pairwise
from polopt.optim import frozen_copy
from polopt.policies.base import Scores
from polopt.tasks.base import Task


@dataclass(frozen=True)
class PairsConfig(LanguageMethod.Config):
    """What all losses of pairs have."""

    batch_size: int = param(64, "appendix B", low=1, unit="pairs", help="per optimizer step")
    pairs: int = param(1_000, "polopt", low=1, help="how many are made of a task whose problems have no end")
    lr: float = param(1e-6, "appendix B", above=0)
    lr_schedule: Constant | Linear | Cosine = param(Constant(), "appendix B")


class DPO(LanguageMethod):
    @dataclass(frozen=True)
    class Config(PairsConfig):
        beta: float = param(0.1, "appendix B", above=0, help="of the implicit reward; larger stays nearer")
        loss: str = param("sigmoid", "equation 7", choices=("sigmoid", "ipo", "ipo-sum", "hinge", "robust"))
        label_smoothing: float = param(0.0, "equation 7", low=0, below=0.5, help="probability of a wrong label")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
                raise UsageError(f"label_smoothing has no effect on the loss '{self.loss}'")

    slug = "dpo"
    requires = (Scores,)
    headline = ("preferred", "margin", "chosen_log_prob", "chosen_log_ratio")
    trains_on = "pairs of answers"
    metrics = {
        "pair_loss": "of the preferences | starts at log 2",
        "preferred": "share of pairs whose chosen answer has the higher implicit reward | towards 1; at 1 early: "
        "over-fitting",
        "margin": "mean difference of the implicit rewards | grows",
        "chosen_log_ratio": "log pi - log pi_ref of the chosen answers | should not fall far below 0",
        "rejected_log_ratio": "the same of the rejected answers",
        "chosen_log_prob": "log pi of the chosen answers, summed over tokens | holds",
        "eval/preferred": "on held-out pairs; `eval/return` is this when nothing can score completions",
        "eval/margin": "on held-out pairs",
        "eval/chosen_log_prob": "on held-out pairs",
    }
    extra: ClassVar[str | None] = None  # a column of further answers that the loss takes
    default_steps = 1_000
    presets = {"small": {"lr": 1e-4, "batch_size": 32}}
    no_limit = "it is the base of the others"
    smoke = Smoke("addition", 8, {"model": "tiny", "batch_size": 24, "pairs": 64, "lr": 1e-3, "policy.max_tokens": 8})

    def build(self, task: Task) -> None:
        super().build(task)
        self.reference_policy = frozen_copy(self.policy)

    def prepare(self) -> None:
        task: Any = self.task
        data = self.recorded_pairs(task, task.size or self.config.pairs)
        self.source = Preferences(data, self.config.batch_size, self.generator)

    def recorded_pairs(self, task: Any, count: int) -> Batch:
        """The first `count` pairs of a task."""
        return pairs_of(task, self.policy, range(count), self.extra)

    def scores(self, policy: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi per token [B, T] of both sides of the pairs, in one pass: their prompt is the same."""
        sides = [batch[side].select(*ROW) for side in ("chosen", "rejected")]
        log_probs = policy.log_prob(cat_rows(sides)).split(len(batch))
        chosen, rejected = (each[:, : rows["mask"].shape[1]] for each, rows in zip(log_probs, sides))
        return chosen, rejected

    def log_ratio(self, log_prob: Tensor, reference: Tensor, rows: Batch) -> Tensor:
        """h [B] of one side: the sum over its tokens, for ipo their mean."""
        ratio = (log_prob - reference).sum(1)
        return ratio / rows["mask"].sum(1).clamp_min(1) if self.config.loss == "ipo" else ratio

    @torch.no_grad()
    def score_reference(self, batch: Batch) -> Batch:
        """Adds the weights of the pairs, and `reference_log_prob` [B, T] to both sides."""
        batch = weigh(batch)
        for side, log_prob in zip(("chosen", "rejected"), self.reference_scores(batch)):
            batch[side] = batch[side].clone(False).set("reference_log_prob", log_prob)
        return batch

    def reference_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi_ref per token [B, T] of both sides."""
        return self.scores(self.reference_policy, batch)

    def loss_of_pairs(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        """The loss of the pairs, given h [B] of both sides."""
        config = self.config
        kind, smoothing = config.loss.removesuffix("-sum"), config.label_smoothing
        return pairwise(chosen, rejected, config.beta, batch["weight"], kind=kind, label_smoothing=smoothing)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        log_probs = self.scores(self.policy, batch)
        chosen, rejected = (
            self.log_ratio(log_prob, rows["reference_log_prob"], rows)
            for log_prob, rows in zip(log_probs, (batch["chosen"], batch["rejected"]))
        )
        loss = self.loss_of_pairs(chosen, rejected, batch)
        margin = implicit_reward(chosen - rejected, config.beta)
        return loss + self.anchor(log_probs[0], batch), {
            "pair_loss": loss,
            "preferred": weighted_mean((margin > 0).to(margin.dtype), weight),
            "margin": weighted_mean(margin, weight),
            "chosen_log_prob": weighted_mean(log_probs[0].sum(1), weight),
            "chosen_log_ratio": weighted_mean(chosen, weight),
            "rejected_log_ratio": weighted_mean(rejected, weight),
        }

    def anchor(self, chosen_log_prob: Tensor, batch: Batch) -> Tensor:
        """What is added to the loss of the pairs, given log pi [B, T] of the chosen answers: nothing here."""
        return chosen_log_prob.new_zeros(())

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.policy_loss, self.score_reference(batch))

    @torch.no_grad()
    def evaluate_data(self, task: Any, count: int) -> dict[str, float]:
        """Of held-out pairs: `preferred`, `margin` and `chosen_log_prob` as in training, and `return` = `preferred`."""
        batch = self.score_reference(self.recorded_pairs(task, count))
        metrics = self.policy_loss(batch)[1]
        shown = {name: metrics[name].item() for name in ("preferred", "margin", "chosen_log_prob")}
        length = batch["chosen", "mask"].sum(1).double().mean().item()
        share = shown["preferred"]
        return {"return": share, "return_std": (share * (1 - share)) ** 0.5, "length": length} | shown

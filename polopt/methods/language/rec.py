"""REC: group-relative REINFORCE as an off-policy method, with GRPO as one of its named settings.

Yao et al., "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm: Demystifying Some Myths About GRPO and Its
Friends", 2025, arXiv 2509.24203. GRPO: Shao et al., "DeepSeekMath", 2024, arXiv 2402.03300.

The surrogate sum_{i<j} (a_i - a_j)^2, with a_i = r_i - tau log(pi(y_i|x) / pi_old(y_i|x)), has at pi = pi_old the
gradient of REINFORCE with a group baseline, wherever the samples y_i came from. Two things may be added, and nothing
else is needed off-policy: a restraint on the update, and a choice of data.

    A_i    = r_i - mean_j r_j                                              advantage, `--baseline` (no std by default)
    rho_it = sg[pi(y_it|.) / pi_old(y_it|.)]                               pi_old sampled; sg stops the gradient
    loss     - sum_it weight_it W_it M_it A_i log pi(y_it|.) + restraint   `weight` averages over tokens

M, the gate, and W, 1 or rho, are named values of `--surrogate`: rec-one-side (PPO's clip without the ratio),
rec-one-side-is (with it: GRPO), rec-one-side-wide, rec-two-side, rec-ring, rec-seq-one-side-is, reinforce (no gate).

    restraint   k2:  c mean (log pi - log pi_old)^2 (OPMD)          forward-kl:  - c mean log pi (AsymRE)
    data        drop: negatives in excess of the positives are dropped at random and the baseline is computed again
                weight: A_i exp(A_i / temperature)

All that is built on it can also treat completions at the token limit apart (`--overlong`) and leave out groups that
teach nothing (`--dynamic-sampling`), as DAPO does.

With `--sync-interval 1` and one optimizer step per batch every gate is open and all surrogates coincide.

Differs from its base, REINFORCE with a group baseline, in the gates, restraints and data choices above. `grpo` divides
the advantage by the group's standard deviation, averages over sequences and penalizes the divergence from the model at
the start, as in its first paper.

Departs from the paper in: the sampler's lags are counted in batches; multi-turn episodes give all turns the same
advantage. Where the official code divides by the deviation of the rows that stay it takes their number n:
`--baseline rec`; `--baseline.std group` alone takes n - 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.language import GroupMethod
from polopt.bases.method import Limit, Smoke, Study
from polopt.config import param
from polopt.core.batch import Batch, average
from polopt.core.errors import UsageError
from polopt.data.ahead import Ahead
from polopt.data.informative import Informative
from polopt.losses import Surrogate
from polopt.losses.surrogate import surrogate_loss
from polopt.methods.language.rec_settings import RECSettings
from polopt.policies.wrappers import Lagged
from polopt.regularizers import ReferenceKL
from polopt.regularizers.anchors import cloning, squared_log_ratio
from polopt.tasks.base import Task
from polopt.values import GroupBaseline, Overlong
from polopt.values.groups import group_mean, group_sum


def drop_negatives(reward: Tensor, group: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Which rows stay (bool [B]): of each group's rows below its mean reward, as many as there are others, at random.

    `reward`, `group` and `valid` are [B]; rows that are not valid neither count nor stay. RED-Drop, section 4.
    """
    negative = valid & (reward < group_mean(reward, group, valid))
    excess = group_sum((2.0 * negative - 1.0) * valid, group)  # negatives minus positives, of each row's group
    draw = torch.rand(len(reward), generator=generator).to(reward.device)
    order = torch.where(negative, draw, 2.0)
    rank = ((group[:, None] == group) & (order < order[:, None])).sum(1)  # among the negatives of the group
    return valid & ~(negative & (rank < excess))


class REC(RECSettings, GroupMethod):
    @dataclass(frozen=True)
    class Config(GroupMethod.Config):
        sync_interval: int = param(
            1, "official code", low=1, unit="batches", help="the sampler is refreshed this often"
        )
        ahead: int = param(0, "official code", low=0, unit="batches", help="sampled ahead of the updates (sync_offset)")
        sampler: str = param(
            "inline", "polopt", choices=("inline", "process", "actor"), help="here, in a process beside, or on Ray"
        )
        baseline: GroupBaseline = param(GroupBaseline(), "section 2")
        surrogate: Surrogate = param(Surrogate.named["rec-one-side"], "section 3.2")
        restraint: str = param("none", "section 4", choices=("none", "k2", "forward-kl"), help="added to the loss")
        restraint_coefficient: float = param(0.5, "section 4", low=0, help="OPMD's temperature / 2")
        data: str = param("all", "section 4", choices=("all", "drop", "weight"), help="which samples count, how much")
        weight_temperature: float = param(1.0, "official code", above=0, help="of --data weight")
        overlong: Overlong = param(Overlong(), "arXiv 2503.14476", help="completions near and at the token limit")
        dynamic_sampling: int = param(
            0,
            "arXiv 2503.14476",
            low=0,
            unit="batches",
            help="groups with equal rewards are replaced, from at most so many batches; 0: kept",
        )

        samples_ahead: ClassVar[bool] = True
        """Of a class that says so itself: its batches depend on nothing but the weights."""
        inert = {"sampler": "the same batches, wherever they are sampled"}

        def __post_init__(self) -> None:
            super().__post_init__()
            if "samples_ahead" not in vars(type(self)):
                self.refuse("ahead", because="here: its batches depend on more than the weights")
            if self.ahead == 0:
                self.refuse("sampler", because="without --ahead")
            else:
                self.refuse("dynamic_sampling", because="with --ahead")
            if self.sampler == "process" and self.policy.engine != "transformers":
                raise UsageError(f"sampler process: {self.policy.engine} begins processes itself, as an actor may")
            if self.restraint == "none":
                self.refuse("restraint_coefficient", because="on the restraint 'none'")
            if self.data != "weight":
                self.refuse("weight_temperature", because=f"on the data '{self.data}'")
            if self.samples_per_prompt == 1:
                self.refuse("dynamic_sampling", because="with one completion of a prompt, where no two rewards differ")

    slug = "rec"

    behavior_lag: Lagged | None = None

    def build(self, task: Task) -> None:
        super().build(task)
        if self.config.dynamic_sampling:
            self.source = Informative(self.source, self.config.batch_prompts, self.config.dynamic_sampling)
        if self.config.ahead:
            self.source = Ahead(self.source, self.config.ahead, self.ledger, self.config.sampler)

    def sampled_policy(self) -> Any:
        if self.config.sync_interval == 1:
            return self.policy
        self.behavior_lag = Lagged(self.policy, self.config.sync_interval, on="update")
        return self.behavior_lag.stale

    @torch.no_grad()
    def evaluate_groups(self, batch: Batch) -> Batch:
        """Adds `advantage` [B], and `reference_log_prob` if there is a reference; failed rows get no advantage."""
        config = self.config
        batch = self.score_reference(batch)
        reward, group, valid = self.learned_rewards(batch), batch["group"], self.counted(batch)
        if config.data == "drop":
            valid = drop_negatives(reward, group, valid, self.generator)
        advantage = config.baseline.advantage(reward, group, valid)
        if config.data == "weight":
            advantage = advantage * (advantage / config.weight_temperature).exp()
        if config.overlong.cut != "train":
            whole = (~batch["truncated"]).to(advantage.dtype)
            advantage, batch["row_weight"] = advantage * whole, batch.get("row_weight", 1.0) * whole
        batch["advantage"] = advantage
        return batch

    def counted(self, batch: Batch) -> Tensor:
        """Which rows [B] are in the statistics of rewards."""
        valid = ~batch["failed"]
        return valid & ~batch["truncated"] if self.config.overlong.cut == "drop" else valid

    def learned_rewards(self, batch: Batch) -> Tensor:
        """The rewards [B] of the task, less the soft penalty of long completions if there is one."""
        limit = self.config.policy.max_tokens * self.spec.info.get("turns", 1)
        return self.config.overlong.penalized(batch["reward"], batch["mask"].sum(1), limit)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.sampled_term(self.policy.log_prob(batch), batch)

    def sampled_term(self, log_prob: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of completions that the policy sampled, from their log-probabilities [B, T] now."""
        config, weight = self.config, batch["weight"]
        loss, metrics = self.surrogate_terms(log_prob, batch, batch["advantage"], weight)
        if config.restraint == "k2":
            loss = loss + config.restraint_coefficient * squared_log_ratio(log_prob, batch["log_prob"], weight)
        elif config.restraint == "forward-kl":
            loss = loss + config.restraint_coefficient * cloning(log_prob, weight)
        penalty, penalty_metrics = self.reference_term(log_prob, batch)
        return loss + penalty, metrics | penalty_metrics

    def surrogate_terms(
        self, log_prob: Tensor, batch: Batch, advantage: Tensor, weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate loss of advantages [B] with weights [B, T], and its metrics."""
        surrogate = self.config.surrogate
        return surrogate_loss(surrogate, log_prob, batch["log_prob"], advantage, weight, mask=batch["mask"])

    def step_on(self, part: Batch) -> dict[str, Tensor]:
        """One optimizer step on a part of the batch."""
        return self.optimizer.minimize(self.policy_loss, part)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.evaluate_groups(batch)
        steps = [self.step_on(part) for part in self.optimizer_batches(batch)]
        if self.behavior_lag is not None:
            self.behavior_lag.update()
        informative = (batch["advantage"] != 0).to(batch["advantage"].dtype).mean()
        return average(steps) | self.batch_metrics(batch) | {"informative": informative}

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """What was sampled, the sampler's mismatch, what dynamic sampling kept, and how old the batch is."""
        metrics = super().batch_metrics(batch)
        if isinstance(self.source, Informative):
            metrics["kept"] = torch.tensor(self.source.kept / max(self.source.tried, 1))
        if isinstance(self.source, Ahead):
            metrics["staleness"] = torch.tensor(float(self.source.lag))
        return metrics


class GRPO(REC):
    @dataclass(frozen=True)
    class Config(REC.Config):
        batch_prompts: int = param(16, "section 4.2", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(64, "section 4.2", low=1, unit="completions")
        aggregate: str = param(
            "sequence",
            "equation 3",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss: tokens, sequences, or a constant length",
        )
        baseline: GroupBaseline = param(GroupBaseline(std="group"), "section 4.1.2")
        surrogate: Surrogate = param(Surrogate.named["grpo"], "equation 3")
        samples_ahead = True
        reference_kl: ReferenceKL | None = param(ReferenceKL(0.04), "section 4.2", help="penalty against the start")

    slug = "grpo"
    presets = {
        "dr-grpo": {"baseline": "group-baseline", "aggregate": "constant", "reference_kl": None},
        "dapo": {"surrogate": "dapo", "aggregate": "token", "reference_kl": None},
        "cispo": {"surrogate": "cispo", "aggregate": "token", "reference_kl": None},
        "gspo": {"surrogate": "gspo", "reference_kl": None},
        "small": {"samples_per_prompt": 8, "lr": 1e-4, "reference_kl": None, "policy.max_tokens": 32},
        "paper": {"model": "deepseek-ai/deepseek-math-7b-instruct", "policy.max_tokens": 1024},
    }
    studies: ClassVar[dict[str, Study]] = {
        "paper": Study("datasets/openai/gsm8k", steps=64 * 7_473)  # once; it had 144,000 questions, of MATH as well
    }
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            base="rec",
            at={"reference_kl": None, "surrogate": "reinforce", "baseline.std": "none", "aggregate": "token"}
            | {"restraint": "none"},
            apart={"baseline.std": "group"},
            base_at={"surrogate": "reinforce", "restraint": "none"},
            because="without the gate, the ratio, the standardization and the penalty it is REINFORCE with a baseline",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "updates_per_batch": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 64, "score_truncated": True},
    )

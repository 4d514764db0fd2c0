"""f-DPG: a language model brought to a target distribution over texts, in the f-divergence of one's choice.

Go, Korbak, Kruszewski, Rozen, Ryu and Dymetman, "Aligning Language Models with Preferences through f-divergence
Minimization", 2023, arXiv 2302.08215.

A preference is a distribution p(x) = P(x) / Z over completions of a prompt, made of a, the model at the start. The
policy pi is moved down D_f(pi || p) = E_{x~p}[ f(pi/p) ], whose gradient for any f is that of REINFORCE with the reward
-f'. Samples come from a proposal q: pi itself, or an earlier pi.

    target      P(x) = a(x) exp(r(x) / beta)                      `--target reward`, that of RLHF with a KL penalty
                P(x) = a(x) max(r(x), floor)                      `--target constraint`, r 1 where it holds and else 0
    partition   Z = mean of P(x) / q(x) over all samples of the prompt so far, those of this batch among them
    ratio       log t = sg[log pi(x)] - log P(x) + log Z          of whole completions; sg stops the gradient
    reward      R = -f'(t)      jensen-shannon log(1 + 1/t) - log 2,  forward-kl 1/t - 1 (DPG),  reverse-kl -log t,
                                total-variation -sign(log t) / 2,  and both chi-squared
    loss        - mean_x sg[pi(x) / q(x)] (R - B) log pi(x)       B: mean of R over the latest samples of earlier steps

`--proposal adaptive` samples from a copy, which becomes pi every `proposal_every` batches if pi is nearer to p by then.
Which f: forward KL covers the target and is slow where P is sparse, reverse KL sharpens, Jensen-Shannon is between.

Differs from its base, REINFORCE, in the reward, which depends on the policy: the optimum is p and not the best text.
With reverse KL and `--target reward` it is REINFORCE on r - beta log(pi / a), divided by beta.

Departs from the paper in: f'(1) = 0 for every f, which matters in the first step only, when there is no B yet; B is of
earlier steps, where the release mixes in pieces of the same one; prompts whose Z is still 0 are left out of the mean;
`max_z` cuts the largest P/q to one height, where the release takes all of the excess from the largest. Constraints on
averages are a reward, sum_i lambda_i phi_i with beta 1; fitting lambda is left out. `small` is for tiny models.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.language import CompletionMethod
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, weighted_mean
from polopt.core.errors import UsageError
from polopt.losses.estimator import policy_gradient, ratio
from polopt.methods.language.f_dpg_settings import FDPGSettings
from polopt.optim import frozen_copy, renew
from polopt.policies.base import Density
from polopt.regularizers.divergences import divergence, slope
from polopt.tasks.base import Task
from polopt.values.groups import group_count
from polopt.values.running import Latest, Partition

NEVER = 50.0  # log t where P(x) = 0: as good as infinite for every bounded f'
MEASURED = ("jensen-shannon", "forward-kl", "reverse-kl", "total-variation")
UNBOUNDED = ("reverse-kl", "reverse-chi-squared")  # infinite where P(x) = 0


def log_preference(reward: Tensor, target: str, beta: float, floor: float) -> Tensor:
    """log P(x) - log a(x) [B]."""
    return reward / beta if target == "reward" else reward.clamp_min(floor).log()


def log_ratio(log_prob: Tensor, log_p: Tensor) -> Tensor:
    """log t = log pi - log p [B], detached; `NEVER` where p = 0 (log_p -inf)."""
    return torch.where(log_p == -math.inf, NEVER, log_prob.detach() - log_p)


def dpg_loss(
    log_prob: Tensor, log_q: Tensor, log_p: Tensor, weight: Tensor, kind: str, baseline: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss, R [B]) of samples of q, all arguments [B]: log pi with its gradient, log q, log p, weights of a mean."""
    reward = -slope(log_ratio(log_prob, log_p), kind)
    return policy_gradient(log_prob, ratio(log_prob, log_q), reward - baseline, weight), reward


class FDPG(FDPGSettings, CompletionMethod):
    @dataclass(frozen=True)
    class Config(CompletionMethod.Config):
        batch_prompts: int = param(16, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(1024, "official code", low=1, unit="completions")
        divergence: str = param("jensen-shannon", "section 5", choices=(*MEASURED, UNBOUNDED[1], "forward-chi-squared"))
        target: str = param("reward", "section 3.2", choices=("reward", "constraint"), help="what is made of rewards")
        beta: float = param(0.1, "section 5.1", above=0, unit="reward", help="of --target reward")
        floor: float = param(1e-3, "polopt", low=0, below=1, help="of --target constraint: P / a where it is broken")
        max_z: float | None = param(None, "official code", above=0, help="the largest Z that can be; 1 for constraints")
        baseline_window: int = param(1024, "official code", low=0, unit="completions", help="of B; 0: none")
        proposal: str = param("policy", "section 3.1", choices=("policy", "adaptive"), help="what is sampled from")
        proposal_every: int = param(16, "official code", low=1, unit="batches", help="between two looks at it")
        proposal_metric: str = param("forward-kl", "official code", choices=MEASURED, help="nearer in which divergence")
        proposal_window: int = param(256, "official code", low=1, unit="completions", help="that it is estimated from")
        lr: float = param(1.41e-5, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(12 / 1024), "official code")
        max_grad_norm: float | None = param(None, "official code", above=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("floor" if self.target == "reward" else "beta", because=f"on the target '{self.target}'")
            if self.proposal == "policy":
                unused = ("proposal_every", "proposal_metric", "proposal_window")
                self.refuse(*unused, because="where the policy is its own proposal")
            if self.target == "constraint" and not self.floor and self.divergence in UNBOUNDED:
                raise UsageError(f"the divergence '{self.divergence}' is infinite where P = 0: give a floor above 0")

    slug = "f-dpg"
    saved = ("batches",)
    requires = (Density,)

    proposal: Any = None  # a copy of the policy, where it is not sampled itself

    def build(self, task: Task) -> None:
        config = self.config
        super().build(task)
        self.reference_policy = frozen_copy(self.policy)
        self.partition, self.baseline = Partition(config.max_z), Latest(config.baseline_window)
        self.of_policy, self.of_proposal = Latest(config.proposal_window), Latest(config.proposal_window)
        self.batches = 0

    def sampled_policy(self) -> Any:
        if self.config.proposal == "policy":
            return self.policy
        self.proposal = frozen_copy(self.policy)
        return self.proposal

    @torch.no_grad()
    def evaluate_target(self, batch: Batch) -> Batch:
        """Adds `log_q`, `log_a`, `log_p`, `log_z` and `row_weight` [B]; prompts count alike, if their Z is above 0."""
        config, valid = self.config, ~batch["failed"]
        batch = batch.clone(False)
        log_q = batch["log_q"] = batch["log_prob"].sum(1)
        log_a = batch["log_a"] = self.reference_policy.log_prob(batch).sum(1)
        preference = log_preference(batch["reward"], config.target, config.beta, config.floor)
        log_weight, log_z = self.partition.update(log_a + preference - log_q, batch["index"], batch["group"], valid)
        known = log_z > -math.inf
        batch["log_p"] = torch.where(known, log_q + log_weight - log_z, -math.inf)
        batch["log_z"] = torch.where(known, log_z, 0.0)
        batch["row_weight"] = known / group_count(log_q, batch["group"], valid).clamp_min(1.0)
        return batch

    def policy_loss(self, batch: Batch, baseline: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        log_q, log_p = batch["log_q"], batch["log_p"]
        log_prob = self.policy.log_prob(batch).sum(1)
        loss, reward = dpg_loss(log_prob, log_q, log_p, weight, config.divergence, baseline)

        importance, log_t = ratio(log_prob, log_q), log_ratio(log_prob, log_p)

        def mean(value: Tensor) -> Tensor:
            return weighted_mean(value, weight)

        nothing = torch.zeros_like(log_t)
        metrics = {kind.replace("-", "_"): mean(importance * divergence(log_t, nothing, kind)) for kind in MEASURED}
        metrics |= {
            "pseudo_reward": mean(reward),
            "kl_start": mean(importance * divergence(log_prob.detach(), batch["log_a"])),
            "log_z": mean(batch["log_z"]),
            "importance": mean(importance),
        }
        if self.proposal is not None:
            metrics["target_policy"] = metrics[config.proposal_metric.replace("-", "_")]
            metrics["target_proposal"] = mean(divergence(log_ratio(log_q, log_p), nothing, config.proposal_metric))
        return loss, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.evaluate_target(batch)
        baseline = self.baseline.mean  # of earlier steps
        parts = self.optimizer_batches(batch)
        metrics = average([self.optimizer.minimize(self.policy_loss, part, baseline=baseline) for part in parts])
        self.baseline.add(metrics["pseudo_reward"], len(batch))
        if self.proposal is not None:
            self.improve_proposal(metrics, len(batch))
        return metrics | self.batch_metrics(batch)

    def improve_proposal(self, metrics: dict[str, Tensor], count: int) -> None:
        """Makes the proposal the policy as it is now, when it is time and the policy was the nearer one to p."""
        self.batches += 1
        self.of_policy.add(metrics["target_policy"], count)
        self.of_proposal.add(metrics["target_proposal"], count)
        if self.batches % self.config.proposal_every == 0 and self.of_policy.mean < self.of_proposal.mean:
            renew(self.proposal)

"""HPT: hybrid post-training, reinforcement where the model sometimes succeeds, imitation where it does not.

Lv et al., "Towards a Unified View of Large Language Model Post-Training", 2025, arXiv 2509.04419.

The gradients of SFT, REINFORCE, PPO, GRPO, CISPO, GSPO, SRFT and LUFFY are one estimator with four slots,

    grad = keep * (1 / pi_ref) * advantage * grad pi                     `losses/surrogate.py`, named values

so both kinds of data fit into one loss. Which kind a prompt contributes is decided per prompt and step by the share of
its n fresh completions that are right, P = solved / n:

    (alpha, beta) = (1, 0) if solved > gate, else (0, 1)                 `--gating switch`
    loss  alpha L_RL + sft_coefficient beta L_SFT                         alpha, beta of the prompt of a row
    L_RL  - rl_coefficient (1 / N) sum_it A_i rho_it log pi(y_it) / length
                                                                          A_i = R_i - mean_j R_j, own completions only;
                                                                          a constant length; N completions of a step
    L_SFT - mean over the tokens of the demonstrations of log pi(y*_t)

`--gating soft` takes the official code's table from solved to (alpha, beta) instead; `fixed` is the baseline that mixes
half of each for every prompt. `--offline-gate` inserts the demonstration of prompts with gate < solved <= offline gate
as an off-policy RL row (LUFFY's term), its reward of 1 set against the mean of the own completions and itself.

L_RL sums over the rows that are reinforced, while N, all completions of a step, stays, so the term grows with their
number; L_SFT is a mean over the demonstrations, however many there are. `rl_coefficient` sets the two beside each
other: the official run adds up the 64 rows of a device and takes the mean over 8 devices, N = 512. A kind without rows
adds nothing.

Differs from its base, GRPO without standard deviations, in the gate and the demonstrations; clipping and the penalty
against a reference are off, as in the official runs.

Departs from the paper in: demonstrations are the task's worked solutions. In the official code L_SFT and the entropy
are means over a micro-batch, as many as the lengths ask for, and these means are added up, here there is one over the
step; an update whose gradient norm exceeds 80 is skipped, here every gradient is clipped at 1 as it is there; the soft
table counts the demonstration among the solved of 8, here it is read by the share of own completions (7 there); the
off-policy row of the second gate has advantage 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.language import GroupMethod, need_verifier
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, align_left, average
from polopt.core.errors import UsageError
from polopt.data.demonstrated import IMITATED, OWN, beside, demonstrated
from polopt.losses import Surrogate
from polopt.losses.estimator import token_weights
from polopt.losses.surrogate import surrogate_loss
from polopt.tasks.base import Task
from polopt.values import GroupBaseline
from polopt.values.groups import group_count, group_sum

OFFLINE = 2  # `origin` of a demonstration as an RL row
SOFT = ((0.0, 1.0), (0.125, 0.5), (0.25, 0.25), (0.5, 0.125), (1.0, 0.0))  # (alpha, beta) by solved of 7


def gates(solved: Tensor, samples: int, gate: int, gating: str) -> tuple[Tensor, Tensor]:
    """(alpha, beta) [P], the shares of reinforcement and imitation, from the solved counts [P] of `samples` each."""
    if gating == "fixed":
        return torch.full_like(solved, 0.5), torch.full_like(solved, 0.5)
    if gating == "switch":
        own = (solved > gate).to(solved.dtype)
        return own, 1.0 - own
    sevenths = (solved * 7 / samples).round().long().clamp_max(len(SOFT) - 1)
    table = torch.tensor(SOFT, dtype=solved.dtype, device=solved.device)
    return table[sevenths, 0], table[sevenths, 1]


class HPT(GroupMethod):
    @dataclass(frozen=True)
    class Config(GroupMethod.Config):
        batch_prompts: int = param(128, "official code", low=1, unit="prompts", help="per batch")
        updates_per_batch: int = param(2, "official code", low=1, help="optimizer steps per batch, on parts of it")
        aggregate: str = param(
            "constant",
            "official code",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss of own completions",
        )
        lr: float = param(5e-6, "official code", above=0)
        gate: int = param(0, "section 4.1", low=-1, help="prompts with at most so many solved are imitated; -1: none")
        offline_gate: int = param(-1, "official code", low=-1, help="up to here demonstrations are RL rows; -1: none")
        gating: str = param(
            "switch", "section 3.3", choices=("switch", "soft", "fixed"), help="by gate, by a table, or half of each"
        )
        sft_coefficient: float = param(1.0, "official code", low=0, help="0.3 in the paper's 1.5B run")
        rl_coefficient: float = param(
            64.0, "official code", low=0, help="times the mean over a step's completions; 64 is their sum over a device"
        )
        entropy_coefficient: float = param(0.001, "official code", low=0)
        baseline: GroupBaseline = param(GroupBaseline.named["dr-grpo"], "official code")
        surrogate: Surrogate = param(Surrogate(keep="all"), "official code", help="of own completions")
        offline_surrogate: Surrogate = param(Surrogate.named["luffy"], "official code", help="of demonstrations as RL")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.gating != "switch" and (self.gate, self.offline_gate) != (0, -1):
                raise UsageError(f"gate and offline_gate have no effect on the gating '{self.gating}'")
            if self.offline_surrogate.needs_old:
                raise UsageError("offline_surrogate must do without an old policy, as luffy, srft and sft do")
            if self.offline_gate <= self.gate:
                self.refuse("offline_surrogate", because="without an offline_gate above the gate")

    slug = "hpt"
    probes = {"offline_surrogate": {"offline_gate": 3}}
    headline = ("reward", "accuracy", "imitated", "completion_length")
    trains_on = "text tasks with demonstrations"
    metrics = {
        "entropy": "of the policy, in nats per token, where it has a bonus",
        "imitated": "share of prompts that are imitated | falls",
        "imitation_log_prob": "weighted log-probability of their demonstrations",
    }
    presets = {
        "qwen-1.5b": {"sft_coefficient": 0.3},
        "llama-8b": {"gate": 2},
        "small": {"batch_prompts": 16, "updates_per_batch": 1, "lr": 1e-4, "policy.max_tokens": 32},
    }
    limits = (
        Limit(
            base="rec",
            at={
                "gate": -1,
                "surrogate.keep": "all",
                "entropy_coefficient": 0.0,
                "aggregate": "token",
                "updates_per_batch": 1,
                "rl_coefficient": 1.0,
            },
            apart={"gate": 4},
            base_at={"surrogate.keep": "all", "restraint": "none"},
            because="when no prompt is imitated it is group-relative REINFORCE with importance weights",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {"model": "tiny", "batch_prompts": 4, "samples_per_prompt": 4, "lr": 1e-2, "policy.max_tokens": 4},
        {"score_truncated": True},
    )

    def build(self, task: Task) -> None:
        super().build(task)
        need_verifier(task, by=self.slug)

    def mix(self, batch: Batch) -> Batch:
        """Rows that count: own completions of prompts that are solved often enough, demonstrations of the others.

        Adds `origin` [B], `share` [B] (alpha or beta of the row's prompt) and `advantage` [B], which for own rows comes
        from all own completions of the prompt and from nothing else. Failed rows count as not solved.
        """
        config, samples = self.config, self.config.samples_per_prompt
        reward, group, valid = batch["reward"], batch["group"], ~batch["failed"]
        solved = group_sum(batch["correct"].to(reward.dtype), group)[::samples]  # per prompt
        alpha, beta = gates(solved, samples, config.gate, config.gating)
        offline = ((solved > config.gate) & (solved <= config.offline_gate)).to(reward.dtype)
        own = batch.clone(False)
        own["advantage"] = config.baseline.advantage(reward, group, valid)
        own["share"] = (alpha * (1 - offline))[group]
        own["origin"] = torch.full_like(group, OWN)
        shown = []
        index = batch["index"][::samples]
        mean = (group_sum(reward, group, valid) + 1) / (group_count(reward, group, valid) + 1)  # with a demonstration
        for origin, share, advantage in (
            (IMITATED, beta, torch.ones_like(beta)),
            (OFFLINE, offline, 1 - mean[::samples]),
        ):
            chosen = share > 0
            if chosen.any():
                rows = demonstrated(self.task, self.policy, index[chosen].tolist())
                rows["origin"] = torch.full_like(rows["index"], origin)
                rows["share"], rows["advantage"] = share[chosen], advantage[chosen]
                shown.append(rows)
        return beside(own[own["share"] > 0], *shown)

    def weigh(self, batch: Batch) -> Batch:
        """A shallow copy with `weight` [B, T] of RL rows and of demonstrations, and with the weights of two means:
        `token_weight` over all tokens, `own_weight` over those of own completions."""
        config = self.config
        batch = batch.clone(False)
        mask, origin = batch["mask"], align_left(batch["origin"], batch["mask"])
        reinforced, imitated = mask & (origin != IMITATED), mask & (origin == IMITATED)
        whole = config.batch_prompts * config.samples_per_prompt / config.updates_per_batch  # completions of a step
        weight = self.sampled_weights(batch, reinforced)
        weight = weight * (config.rl_coefficient * reinforced.any(1).sum() / whole)  # of a mean over rows, their sum
        weight = weight + config.sft_coefficient * token_weights(imitated, "token")
        batch["weight"] = align_left(batch["share"], mask) * weight
        batch["token_weight"] = token_weights(mask, "token")
        batch["own_weight"] = token_weights(mask & (origin == OWN), "token")
        return batch

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, advantage, mask = self.config, batch["advantage"], batch["mask"]
        log_prob = self.policy.log_prob(batch)

        def weight(kind: int) -> Tensor:
            return batch["weight"] * align_left(batch["origin"] == kind, mask)

        def reinforcement(log_prob: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return surrogate_loss(config.surrogate, log_prob, batch["log_prob"], advantage, weight, mask=mask)

        loss, _ = reinforcement(log_prob, weight(OWN))
        _, metrics = reinforcement(log_prob.detach(), batch["own_weight"])  # the numbers shown are means over tokens
        imitation, _ = surrogate_loss(Surrogate.named["sft"], log_prob, None, advantage, weight(IMITATED))
        offline, _ = surrogate_loss(config.offline_surrogate, log_prob, None, advantage, weight(OFFLINE))
        own = batch.clone(False)
        own["weight"] = batch["own_weight"]  # the estimate of a divergence needs the policy's own samples
        penalty, penalty_metrics = self.reference_term(log_prob, own)
        loss = loss + imitation + offline + penalty
        if config.entropy_coefficient > 0:
            entropy = (batch["token_weight"] * self.policy.entropy(batch)).sum()
            loss = loss - config.entropy_coefficient * entropy
            metrics = metrics | {"entropy": entropy}
        return loss, metrics | penalty_metrics | {"imitation_log_prob": (weight(IMITATED) * log_prob).sum()}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        rows = self.score_reference(self.mix(batch))
        steps = [self.optimizer.minimize(self.policy_loss, part) for part in self.optimizer_batches(rows)]
        imitated = (rows["origin"] == IMITATED).sum() / self.config.batch_prompts
        return average(steps) | self.batch_metrics(batch) | {"imitated": imitated.to(torch.get_default_dtype())}

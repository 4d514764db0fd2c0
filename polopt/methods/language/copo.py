"""COPO: groups whose answers agree learn from how their prompt compares with the other prompts of the batch.

Han et al., "COPO: Consistency-Aware Policy Optimization", 2025, arXiv 2508.04138; official code hijih/copo-code.

A group of GRPO that is all right or all wrong has advantages of 0 and teaches nothing. COPO adds a second, global
advantage, one value for each prompt, and mixes the two losses by how much the answers of the group agree.

    local    A_i = (r_i - mean_q r) / (std_q r + eps)                       in the group of the prompt q, as in GRPO
    global   G(q) = c(q) mean_q r,   A^(q) = (G(q) - mean G) / (std G + eps)    over prompts, each of which counts once
    entropy  H(q) = - sum_k p_k log2 p_k        p_k: shares of the final answers of the group, equal ones together
    mix      w_i = sigmoid(sharpness (H(q) - threshold)) z_i
    loss     w_i S(A_i) + (1 - w_i) global_scale S(A^(q))          S: the clipped surrogate, each of its own advantage

    `--mix`  soft-with-zero: z_i = 1 where r_i is not 0, so that a wrong completion has the global loss only
             soft-with-forced: z_i = 1 where A_i is not 0, so that only groups with equal rewards have it only
             soft: z_i = 1; zero, forced: w_i = z_i of these; global: w_i = 0; local: w_i = 1, which is GRPO

`--shaping consistency` takes c(q) = 1 - (1 - 1/n) H(q) / log2 n, from 1 where n answers agree to 1/n, in place of 1.
What a completion's answer is says the task (`TextTask.extract`); completions that give none agree with each other.

Differs from its base, GRPO, in the global term: every prompt of a batch has a gradient, unless all have the same mean.
It raises all completions of an easy prompt and lowers all of a hard one, whatever they say: 1/n of the gradient of the
pass rate, with the other prompts as baseline. With `soft-with-zero` it so raises wrong completions of easy prompts.

Departs from the paper in: nothing known; completions whose reward could not be computed are in no statistic, and c is
of the completions that a prompt has. `small` is for tiny models.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.config import param
from polopt.core.batch import Batch, align_left
from polopt.losses import Surrogate
from polopt.methods.language.rec import GRPO
from polopt.regularizers import ReferenceKL
from polopt.values.groups import group_count, group_equal, group_mean
from polopt.values.strata import group_entropy, group_share, standardize_groups

MIXES = ("soft-with-zero", "soft-with-forced", "soft", "zero", "forced", "global", "local")


def local_share(
    mix: str, entropy: Tensor, reward: Tensor, advantage: Tensor, sharpness: float, threshold: float
) -> Tensor:
    """w [B], the share of the local loss, from H, rewards and local advantages [B]."""
    share = torch.sigmoid(sharpness * (entropy - threshold)) if mix.startswith("soft") else torch.ones_like(entropy)
    if mix.endswith("zero"):
        share = share * (reward != 0)
    if mix.endswith("forced"):
        share = share * (advantage != 0)
    return torch.zeros_like(share) if mix == "global" else share


def consistency(entropy: Tensor, count: Tensor) -> Tensor:
    """c [B] of groups of `count` [B] completions with the entropy H [B]: 1 where all agree, 1/n where none do."""
    most = count.clamp_min(2.0)  # one completion agrees with itself: H is 0
    return 1.0 - (1.0 - 1.0 / most) * entropy / (most.log() / math.log(2))


class COPO(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(512, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "official code", low=1, unit="completions")
        updates_per_batch: int = param(16, "official code", low=1, help="optimizer steps per batch, on parts of it")
        mix: str = param("soft-with-zero", "run_copo.sh", choices=MIXES, help="of the local and the global loss")
        sharpness: float = param(5.0, "run_copo.sh", above=0, unit="1/bit", help="of the soft mixes")
        threshold: float = param(1.0, "run_copo.sh", unit="bit", help="entropy of answers at which both count alike")
        shaping: str = param("none", "run_copo.sh", choices=("none", "consistency"), help="of the mean reward G")
        global_scale: float = param(1.0, "official code", low=0, help="factor on the global loss")
        surrogate: Surrogate = param(Surrogate.named["dual-clip"], "official code")
        reference_kl: ReferenceKL | None = param(ReferenceKL(0.001), "official code", help="penalty against the start")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.mix.startswith("soft"):
                self.refuse("sharpness", "threshold", because=f"on the mix '{self.mix}'")
            if self.mix == "local":
                self.refuse("shaping", "global_scale", because="where there is no global loss")

    slug = "copo"
    headline = ("reward", "accuracy", "answer_entropy", "local_share", "degenerate")
    metrics = {
        "answer_entropy": "of the final answers of a group, mean over prompts, in bits | falls as they agree more",
        "local_share": "mean w, how much of the loss is that of GRPO",
        "degenerate": "share of groups with equal rewards, of which GRPO learns nothing",
        "reached": "share of completions with a gradient | near 1",
        "global_surrogate": "mean of the global advantage times ratio where the gradient is kept, as it is mixed in",
    }
    probes = {"reference_kl.coefficient": {"reference_kl.coefficient": 1.0}}
    presets = {
        "paper": {
            "model": "Qwen/Qwen2.5-3B-Instruct",
            "samples_per_prompt": 6,
            "reference_kl": None,
            "policy.max_tokens": 2048,
        },
        "dapo": {
            "surrogate.clip_high": 0.28,
            "reference_kl": None,
            "aggregate": "token",
            "overlong": "soft-penalty",
            "dynamic_sampling": 10,
        },
        "small": {
            "batch_prompts": 16,
            "updates_per_batch": 1,
            "reference_kl": None,
            "lr": 1e-4,
            "policy.max_tokens": 32,
        },
    }
    studies = {  # a tenth of the data, about 70 batches
        "paper": Study("datasets/BytedTsinghua-SIA/DAPO-Math-17k", steps=70 * 512 * 6, task_options={"pool": 1740})
    }
    limits = (
        Limit(
            base="grpo",
            at={"mix": "local"},
            apart={"mix": "forced"},
            base_at={"surrogate": "dual-clip", "reference_kl.coefficient": 0.001},
            because="without the global loss it is GRPO with the dual clip",
        ),
        Limit(
            base="grpo",
            at={"mix": "soft", "threshold": -10.0},
            apart={"threshold": 3.0},
            base_at={"surrogate": "dual-clip", "reference_kl.coefficient": 0.001},
            because="with a threshold far below every entropy the sigmoid rounds to 1",
        ),
    )
    smoke = Smoke("vowels", 96, GRPO.smoke.config | {"mix": "soft"}, GRPO.smoke.task_options)

    @torch.no_grad()
    def evaluate_groups(self, batch: Batch) -> Batch:
        """Adds `advantage`, `global_advantage`, `local_share` and `answer_entropy` [B]."""
        config, batch = self.config, super().evaluate_groups(batch)
        reward, group, valid = self.learned_rewards(batch), batch["group"], self.counted(batch)
        entropy = batch["answer_entropy"] = group_entropy(batch["answer"], group, valid)
        mean = group_mean(reward, group, valid)
        if config.shaping == "consistency":
            mean = mean * consistency(entropy, group_count(reward, group, valid))
        batch["global_advantage"] = standardize_groups(mean, group, valid, config.baseline.std_eps)
        batch["local_share"] = local_share(
            config.mix, entropy, reward, batch["advantage"], config.sharpness, config.threshold
        )
        return batch

    def surrogate_terms(
        self, log_prob: Tensor, batch: Batch, advantage: Tensor, weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The two surrogates, each clipped by itself, and then mixed."""
        share = align_left(batch["local_share"], weight)
        loss, metrics = super().surrogate_terms(log_prob, batch, advantage, weight * share)
        other, more = super().surrogate_terms(log_prob, batch, batch["global_advantage"], weight * (1.0 - share))
        mixed = {name: metrics[name] + more[name] for name in metrics if name != "surrogate"}  # of all completions
        both = {"surrogate": metrics["surrogate"], "global_surrogate": more["surrogate"]}
        return loss + self.config.global_scale * other, mixed | both

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        group, valid, share = batch["group"], self.counted(batch), batch["local_share"]
        alike = group_equal(self.learned_rewards(batch), group, valid)
        prompts = group_share(group, valid)
        prompts = prompts / prompts.sum().clamp_min(1.0)
        learned = (share * batch["advantage"] != 0) | ((1.0 - share) * batch["global_advantage"] != 0)
        return super().batch_metrics(batch) | {
            "answer_entropy": (prompts * batch["answer_entropy"]).sum(),
            "local_share": (prompts * share).sum(),
            "degenerate": (prompts * alike).sum(),
            "reached": (prompts * learned).sum(),
        }

"""Lite PPO: the two tricks that a policy without a critic needs, and all others of the study as options.

Liu et al., "Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning", 2025, arXiv 2508.08221.

The study changes one trick at a time in one framework. Two are left: rewards are compared with the mean of their GROUP
and divided by the standard deviation of the whole BATCH, and every TOKEN of a batch counts the same.

    A_i   = (r_i - mean of the group) / (std of all rewards of the rollout batch + 1e-6)       n - 1 in the deviation
    loss    - sum_it min(rho_it A_i, clip(rho_it, 1 - 0.2, 1 + 0.2) A_i) / number of tokens of the optimizer step

rho_it = pi(y_it|.) / pi_old(y_it|.). No KL penalty, no terms for long completions, no dynamic sampling. The deviation
is computed once, before the batch is cut into optimizer steps. In a group of 8 with one or seven right, GRPO's own
deviation makes the sum of A^2 as large as with four right; the batch's leaves it at 7/16 of that, so prompts that are
nearly always or never solved do not weigh as much as those in between. Where all rewards are equal A is 0. Both
divisors are numbers of the batch: its first step has the direction of the plain policy gradient, sum_i A_i grad log pi.

The tricks, each an option of its own (a preset where the study gives it a name):

    normalization     --baseline, --baseline.std     mean of group, batch or none; std of group, batch, batch-centered
                                                     (of r - mean of the group, as in other ports) or none
    clip-higher       --surrogate.clip-high          0.2 to 0.32
    aggregation       --aggregate                    token, sequence (better for aligned models), constant (Dr. GRPO)
    overlong filter   --overlong filter              completions cut at the limit have no loss; with --overlong.cut drop
                                                     they are in no mean and no deviation either
    soft penalty      --overlong soft-penalty        rewards fall by 1 over the last fifth of the limit (DAPO)
    dynamic sampling  --dynamic-sampling 10          groups with equal rewards are replaced by new ones (DAPO)

Differs from its base, GRPO, in the deviation, the mean over tokens, and in having no KL penalty.

Departs from the paper in: its framework's fourth level, running statistics, is left out. `paper` has the batch, length
and rate of the paper's base models; temperature and cuts of the sampling, and one step per batch, are assumed.
"""

from dataclasses import dataclass

from torch import Tensor

from polopt.bases.method import Limit, Study
from polopt.config import param
from polopt.core.batch import Batch
from polopt.losses import Surrogate
from polopt.methods.language.rec import GRPO
from polopt.regularizers import ReferenceKL
from polopt.values import GroupBaseline


class LitePPO(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(128, "section 3", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "section 3", low=1, unit="completions")
        aggregate: str = param(
            "token",
            "section 5",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss: tokens, sequences, or a constant length",
        )
        baseline: GroupBaseline = param(GroupBaseline.named["lite-ppo"], "section 5")
        surrogate: Surrogate = param(Surrogate.named["ppo"], "section 5")
        reference_kl: ReferenceKL | None = param(None, "section 5", help="penalty against the start")

    slug = "lite-ppo"
    headline = ("reward", "accuracy", "advantage_max", "completion_length", "truncated")
    metrics = {
        "advantage_max": "largest absolute advantage of the batch | 1 to 4; above, nearly all rewards of it are equal",
    }
    presets = {
        "paper": {
            "model": "Qwen/Qwen3-4B-Base",
            "policy.max_tokens": 8192,
            "policy.temperature": 0.99,
            "policy.top_p": 0.99,
            "policy.top_k": 100,
        },
        "small": {"batch_prompts": 16, "lr": 1e-4, "policy.max_tokens": 32},
        # What the study compares with, and its single tricks.
        "group-std": {"baseline": "grpo", "aggregate": "sequence"},
        "reinforce-plus-plus": {"baseline": "reinforce-plus-plus"},
        "dr-grpo": {"baseline": "dr-grpo", "aggregate": "constant"},
        "dapo": {
            "baseline": "grpo",
            "surrogate": "clip-higher",
            "overlong": "soft-penalty",
            "dynamic_sampling": 10,
        },
        "aligned": {"surrogate": "clip-higher", "aggregate": "sequence"},
        "clip-higher": {"surrogate": "clip-higher"},
        "overlong-filter": {"overlong": "filter"},
    }
    studies = {"paper": Study("datasets/open-r1/DAPO-Math-17k-Processed")}  # its own subsets are not to be had
    limits = (
        Limit(
            base="grpo",
            at={"baseline.std": "group", "aggregate": "sequence"},
            apart={"baseline.std": "batch"},
            base_at={"reference_kl": None},
            because="with the deviation of the group and the mean over sequences it is GRPO without its KL penalty",
        ),
        Limit(
            base="grpo",
            at={"aggregate": "sequence", "batch_prompts": 1},
            apart={"baseline.std": "none"},
            base_at={"reference_kl": None, "batch_prompts": 1},
            because="where a batch is one group, so are their deviations",
        ),
    )
    smoke = GRPO.smoke

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Those of GRPO, and the largest absolute advantage."""
        return super().batch_metrics(batch) | {"advantage_max": batch["advantage"].abs().max()}

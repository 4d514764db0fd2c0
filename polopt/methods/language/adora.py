"""ADORA: groups count in full where a long answer pays off just now, and a tenth where it does not.

Ren et al., "ADORA: Training Reasoning Models with Dynamic Advantage Estimation on Reinforcement Learning", 2026, arXiv
2602.10019; first described by Gui and Ren in 2025 with the code that this follows.

At every visit of a prompt the weight of its group is found anew, from nothing but the group's own completions: rewards
r_i, lengths l_i in tokens, and whether they were cut. Long reasoning pays where the longest right answer is longer than
wrong ones are on average; wrong answers that reached the limit are left out of that average.

    right = {i: r_i > c}        wrong = {i: r_i <= c, l_i < limit}
    pays    max of l_i over right > mean of l_i over wrong                 strictly; `longest_right`, `mean_wrong`
    w     = 1 where it pays, else attenuation (lambda, 0.1)
    A_i   = w (r_i - mean of the group) / (std of the group + 1e-6)        the weight comes after the normalization

The two versions of the code differ where a set is empty (`--rule`):

    llm     no right answer: -inf; no wrong one: -inf. All right counts in full, all wrong does not
    vl      no wrong answer: +inf; a group without a right one counts in full. All wrong counts in full, all right not

With rewards of 0 and 1 such groups have no advantage, so there the rules differ only in groups whose wrong answers were
all cut: in full with llm, a tenth with vl. `--criterion module:function` is a rule of one's own: f(rewards, lengths,
truncated) -> weights [P], all [P, n]. With attenuation w also moves the size of the update: `group_weight`.

Differs from its base, GRPO, in w. `--whiten true` standardizes the advantages over the tokens of the batch, after the
weight, as its code does with `--baseline rloo` and `dr-grpo`.

Departs from the paper in: criteria of the paper other than length, which its code does not have, are left out (they are
`--criterion`); the code's clamp of the estimate of KL at 10; the default of its trainer for texts, 0.001 of the entropy
as a bonus; `vl` has the settings of its vision run, for texts, but not the second beta of its Adam, 0.95.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Limit, Study
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.methods.language.rec import GRPO
from polopt.regularizers import ReferenceKL

Criterion = Callable[[Tensor, Tensor, Tensor], Any]
"""(rewards, lengths, truncated), each [P, n], of P groups of n completions -> their weights [P]. The reward of a
completion that is in no statistic, such as one that could not be scored, is NaN."""


def long_pays(reward: Tensor, length: Tensor, cut: Tensor, right_above: float = 0.5, rule: str = "llm") -> Tensor:
    """Whether long answers pay in each group (bool [...]), from rewards, lengths and what was cut, [..., n] each.

    A reward that is NaN is of no answer, right or wrong. `rule` is "llm" or "vl".
    """
    right, wrong = reward > right_above, (reward <= right_above) & ~cut
    length, none = length.to(torch.get_default_dtype()), -torch.inf if rule == "llm" else torch.inf
    longest_right = torch.where(right, length, -torch.inf).amax(-1)
    count = wrong.sum(-1)
    mean_wrong = torch.where(count > 0, (length * wrong).sum(-1) / count.clamp_min(1), none)
    pays = longest_right > mean_wrong
    return pays | ~right.any(-1) if rule == "vl" else pays


def whitened(advantage: Tensor, tokens: Tensor) -> Tensor:
    """Advantages [B] with mean 0 and deviation 1 over the tokens, of which each row has `tokens` [B]; 0 without any."""
    share = tokens / tokens.sum().clamp_min(1)
    centered = (advantage - (share * advantage).sum()) * (tokens > 0)
    return centered * (share * centered.square()).sum().clamp_min(1e-8).rsqrt()


class ADORA(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(64, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(16, "official code", low=1, unit="completions")
        updates_per_batch: int = param(2, "official code", low=1, help="optimizer steps per batch, on parts of it")
        lr: float = param(3e-7, "official code", above=0)
        aggregate: str = param(
            "token",
            "official code",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss: tokens, sequences, or a constant length",
        )
        reference_kl: ReferenceKL | None = param(ReferenceKL(0.001), "official code", help="penalty against the start")
        attenuation: float = param(0.1, "official code", low=0, help="weight of groups where long answers do not pay")
        rule: str = param("llm", "official code", choices=("llm", "vl"), help="where all are right, or all are wrong")
        right_above: float = param(0.5, "official code", unit="reward", help="rewards above are of right answers")
        max_length: int | None = param(
            None, "official code", low=1, unit="tokens", help="wrong answers from here on are left out; none: those cut"
        )
        criterion: Criterion | None = param(None, "polopt", help="module:function with the weights of groups")
        whiten: bool = param(False, "official code", help="standardize over the tokens of the batch, after the weight")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.criterion is not None:
                names = ("attenuation", "rule", "right_above")
                self.refuse(*names, because="beside a criterion, which gives the weights")
            if self.whiten and self.data == "drop":
                raise UsageError("whiten standardizes over all completions, and --data drop leaves some out")

    slug = "adora"
    headline = ("reward", "accuracy", "paying", "completion_length", "truncated")
    probes = {"max_length": {"policy.max_tokens": 24, "right_above": 0.1}}
    metrics = {
        "group_weight": "mean weight of the groups: how much smaller the update is",
        "paying": "share of groups that count in full",
        "paying_right": "share of right answers in them",
    }
    presets = {
        "paper": {
            "model": "Qwen/Qwen2.5-7B",
            "weight_decay": 0.01,
            "right_above": 1.01,
            "max_length": 3900,
            "policy.max_tokens": 2048,
        },
        "vl": {
            "batch_prompts": 128,
            "samples_per_prompt": 8,
            "updates_per_batch": 8,
            "lr": 1e-6,
            "lr_schedule": "cosine",
            "lr_schedule.end": 0.1,
            "weight_decay": 0.01,
            "aggregate": "sequence",
            "baseline.std_eps": 1e-9,
            "rule": "vl",
            "max_length": 4094,
            "policy.max_tokens": 4096,
        },
        "small": GRPO.presets["small"] | {"batch_prompts": 16, "updates_per_batch": 1},
    }
    studies = {"paper": Study("reasoning-gym/knights_knaves", steps=100 * 64 * 16)}  # made like that of Logic-RL
    limits = (
        Limit(
            base="grpo",
            at={"attenuation": 1.0},
            apart={"attenuation": 0.1},
            base_at={"reference_kl.coefficient": 0.001, "aggregate": "token"},
            because="where every group counts in full it is GRPO with a mean over tokens",
        ),
    )
    smoke = GRPO.smoke

    @torch.no_grad()
    def evaluate_groups(self, batch: Batch) -> Batch:
        """As GRPO, with `group_weight` [B] in the advantage."""
        batch = super().evaluate_groups(batch)
        batch["group_weight"] = self.group_weights(batch)
        batch["advantage"] = batch["advantage"] * batch["group_weight"]
        if self.config.whiten:
            learned = batch["mask"].sum(1) * ~batch["failed"] * batch.get("row_weight", 1.0)
            batch["advantage"] = whitened(batch["advantage"], learned)
        return batch

    def group_weights(self, batch: Batch) -> Tensor:
        """The weight [B] of each row's group, from (rewards, lengths, truncated) of its completions."""
        config, length = self.config, batch["mask"].sum(1)
        reward = torch.where(self.counted(batch), self.learned_rewards(batch), torch.nan)
        bound = config.max_length or config.policy.max_tokens * self.spec.info.get("turns", 1)
        cut = (length >= bound) | (batch["truncated"] & (config.max_length is None))
        reward, length, cut = (x.unflatten(0, (-1, config.samples_per_prompt)) for x in (reward, length, cut))  # [P, n]
        if config.criterion is None:
            pays = long_pays(reward, length, cut, right_above=config.right_above, rule=config.rule)
            weight = torch.where(pays, 1.0, config.attenuation)
        else:
            weight = torch.as_tensor(config.criterion(reward, length, cut)).to(reward)
            if weight.shape != reward.shape[:1] or not ((weight >= 0) & weight.isfinite()).all():
                raise UsageError(f"the criterion must give {len(reward)} weights of at least 0, one for each group")
        return weight.repeat_interleave(config.samples_per_prompt)

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Those of GRPO, and how the groups were weighed."""
        weight = batch["group_weight"]
        paying = (weight >= 1).to(weight.dtype)
        right = (batch["reward"] > self.config.right_above).to(weight.dtype)
        return super().batch_metrics(batch) | {
            "group_weight": weight.mean(),
            "paying": paying.mean(),
            "paying_right": (paying * right).sum() / paying.sum().clamp_min(1.0),
        }

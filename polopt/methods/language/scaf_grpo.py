"""Scaf-GRPO: where every answer to a prompt fails, one that was written with the least help takes a failure's place.

Zhang et al., "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning", 2025, arXiv
2510.19807.

A group q of n completions that are all wrong has no advantages, so a prompt beyond the model's reach teaches nothing.
After `warmup` batches, which leave easy prompts to themselves, such a prompt is asked again with every level of help,
once each, and help that suffices barely is taken:

    trigger   t > warmup  and  R(o_1) = ... = R(o_n) = 0                        `unsolved`
    h*        = min { j : R(o^h_j) > 0 },   o^h_j ~ pi(. | q, help_j)           one a level, all in one batch
    G'        = G with o^h* in place of the first failure, or G where no level helps             `substitutes`
    A_i       = (R_i - mean G') / (std G' + 1e-6)                               n - 1 in the deviation
    loss      - mean over tokens of min(rho A, clip(rho, 1 - 0.2, 1 + 0.2) A), dual clip at 3

Old and new log-probability of the row o^h* are both given the prompt it was written to, help included: rho is 1 before
the first step. Help is prompt and has no loss. What is logged as reward and accuracy is without help.

Levels of help are beginnings of the task's worked solutions, level j of L showing the share j / (L + 1), and with
`--piece step` or line nothing of the answer at the end; or, with `--tiers`, columns of hints from the most abstract to
the most concrete (the paper's knowledge, planning, solution), each a list of texts of which L / tiers levels show the
first, the first two, ...

`--guidance direct` is the paper's ablation that gives the most help at once.

Differs from its base, GRPO, in the substituted rows, a token mean, and no penalty against the model at the start.

Departs from the paper in: without `--tiers` the ladder is cut from worked solutions; the loss is a mean over the tokens
of an optimizer step (in the official code a mean of the means of micro-batches); `--tiers` of the official run, which
leaves planning out, are two; its switches that paste a helped answer behind the plain prompt are left out. A completion
counts as a failure when its reward is 0, or could not be computed while that of another one was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.language import check_prompts
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.curricula import Given
from polopt.data.mixing import cat_rows
from polopt.data.prompt_groups import PromptGroups
from polopt.data.tokens import trim
from polopt.losses import Surrogate
from polopt.methods.language.rec import GRPO
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task
from polopt.tasks.ladders import PARTIAL, PIECES, Cuts, Tiers
from polopt.tasks.text import Ladder
from polopt.values.groups import group_count, group_sum

OFFICIAL = ("knowledge_components_parts", "planning_skeleton_parts", "solution_breakdown_parts")


def unsolved(reward: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """bool [B]: the row is in a group of which every valid row, and at least one, has the reward 0. All are [B]."""
    rewarded = group_sum((reward != 0).to(reward.dtype), group, valid)
    return (rewarded == 0) & (group_count(reward, group, valid) > 0)


def substitutes(reward: Tensor, group: Tensor, valid: Tensor, help: Tensor) -> Tensor:
    """Which rows [N] of a batch [B] the groups consist of: the N rows without help (0), but in place of the first one
    of a group that row of it which was rewarded with the least help, if there is one. `help` is int64 [B]."""
    rows = (help == 0).nonzero().flatten()
    works = (help > 0) & valid & (reward > 0)
    for each in group[works].unique():
        helped = (works & (group == each)).nonzero().flatten()
        first = (group[rows] == each).nonzero()[0]
        rows[first] = helped[help[helped].argmin()]
    return rows


class ScafGRPO(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(256, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "official code", low=1, unit="completions")
        updates_per_batch: int = param(4, "official code", low=1, help="optimizer steps per batch, on parts of it")
        aggregate: str = param("token", "official code", choices=("token", "sequence", "constant", "sum"))
        surrogate: Surrogate = param(Surrogate.named["dual-clip"], "official code")
        reference_kl: ReferenceKL | None = param(None, "official code", help="penalty against the model at the start")
        warmup: int = param(50, "official code", low=0, unit="batches", help="in which nobody is helped")
        levels: int = param(12, "section 3.2", low=0, help="of help; 0: none, which is GRPO")
        tiers: tuple[str, ...] = param(
            (), "section 3.2", help="columns of hints, the most abstract first; none: beginnings of worked solutions"
        )
        guidance: str = param(
            "progressive", "section 3.3", choices=("progressive", "direct"), help="every level, or only the highest"
        )
        piece: str = param("character", "assumed", choices=tuple(PIECES), help="what solutions are not cut through")
        words: str = param(PARTIAL, "assumed", help="the prompt with {prompt} and {given}, the beginning of a solution")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.tiers:
                self.refuse("piece", "words", because="on hints from the columns that tiers names")
                if self.levels % len(self.tiers):
                    raise UsageError(f"levels must be the same for each of the {len(self.tiers)} tiers: a multiple")
            if self.levels:
                self.refuse("dynamic_sampling", because="where prompts that nobody solves are helped, not left out")
            else:
                self.refuse("warmup", "tiers", "guidance", "piece", "words", because="without levels of help")

    slug = "scaf-grpo"
    headline = ("reward", "accuracy", "unsolved", "rescued", "help")
    trains_on = "text tasks with rewards and worked solutions or hints"
    saved = ("batches",)
    probes = {"baseline.single": {"samples_per_prompt": 1}}
    metrics = {
        "unsolved": "share of prompts none of whose completions is rewarded | falls",
        "rescued": "share of prompts of which an answer that was written with help is learned from",
        "help": "mean level of that help, 0 where there is none | falls",
    }
    presets = {
        "paper": {"model": "Qwen/Qwen2.5-Math-7B", "lr": 1e-6, "tiers": OFFICIAL, "policy.max_tokens": 2048},
        "small": {"batch_prompts": 16, "updates_per_batch": 1, "lr": 1e-4, "warmup": 10, "policy.max_tokens": 32}
        | {"levels": 7, "words": "{prompt}{given}"},
    }
    limits = (
        Limit(
            base="grpo",
            at={"levels": 0},
            apart={"levels": 4, "warmup": 1},
            base_at={"aggregate": "token", "reference_kl": None, "surrogate": "dual-clip"},
            because="without help it is GRPO with a token mean and no penalty",
            collects="each",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {"model": "tiny", "batch_prompts": 4, "samples_per_prompt": 2, "updates_per_batch": 2, "lr": 1e-2}
        | {"warmup": 1, "levels": 3, "policy.max_tokens": 4},
        {"pool": 64, "score_truncated": True},
    )

    def ladder(self) -> Ladder:
        """The help of every level."""
        config = self.config
        if config.tiers:
            return Tiers(config.tiers, config.levels // len(config.tiers))
        shares = tuple(level / (config.levels + 1) for level in range(1, config.levels + 1))
        return Cuts(shares, piece=config.piece, words=config.words)

    def build(self, task: Task) -> None:
        super().build(task)
        self.batches = 0
        self.helped: Task | None = None
        if self.config.levels:
            self.helped = task.with_ladder(self.ladder())  # type: ignore[attr-defined]
            self.asked = Given()
            self.help_source = PromptGroups(self.helped, 1, 1, sampler=self.asked, ledger=self.ledger, extra=True)

    def prepare(self) -> None:
        """Refuses also help that is missing, or that the model has no room for."""
        super().prepare()
        if self.helped is not None:
            check_prompts(self.policy, self.helped)

    def collect(self) -> Batch:
        """Groups of completions, and behind them one with each level of help (`help`, int64 [B]; 0 is none) for every
        prompt that is unsolved. Rows with help have index and group of the prompt."""
        batch = super().collect()
        batch["help"] = torch.zeros_like(batch["group"])
        self.batches += 1
        if self.helped is None or self.batches <= self.config.warmup:
            return batch
        first = unsolved(batch["reward"], batch["group"], ~batch["failed"]).nonzero().flatten()
        first = first[first % self.config.samples_per_prompt == 0]
        return cat_rows([batch, self.with_help(batch[first])]) if len(first) else batch

    def with_help(self, prompts: Batch) -> Batch:
        """One completion of each of these prompts (rows of a batch) with each level of help."""
        levels, top = torch.arange(1, self.config.levels + 1), self.config.levels
        levels = levels[-1:] if self.config.guidance == "direct" else levels
        ids = prompts["index"].cpu()[:, None] * (top + 1) + levels
        self.asked.ids, self.help_source.count = ids.flatten().tolist(), ids.numel()
        rows = self.help_source.next(self.behavior)
        # What is reported of training is without help.
        self.help_source.episodes()
        self.help_source.components()
        rows["help"] = levels.repeat(len(prompts)).to(rows["group"])
        for name in ("index", "group"):
            rows[name] = prompts[name].repeat_interleave(len(levels))
        return rows

    def update(self, batch: Batch) -> dict[str, Tensor]:
        plain = batch[batch["help"] == 0]
        order = substitutes(batch["reward"], batch["group"], ~batch["failed"], batch["help"])
        rows = trim(batch[order])
        helped = (rows["help"] > 0).to(torch.get_default_dtype())
        alone = unsolved(plain["reward"], plain["group"], ~plain["failed"]).to(helped.dtype)
        shares = {"unsolved": alone.mean(), "rescued": helped.sum() / self.config.batch_prompts}
        shares["help"] = (helped * rows["help"]).sum() / helped.sum().clamp_min(1.0)
        return super().update(rows) | self.batch_metrics(plain) | shares

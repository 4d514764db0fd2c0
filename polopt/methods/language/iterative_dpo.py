"""Iterative DPO: rounds of pairs from the policy itself, each with a loss of preferences and a reference of its own.

Iterative DPO: Xiong et al. 2023, arXiv 2312.11456; Xu et al. 2023, arXiv 2312.16682. SPPO: Wu et al. 2024, arXiv
2405.00675. IPO: Azar et al. 2023, arXiv 2310.12036.

At the beginning of round t the policy is pi_t. It answers each of `pairs` prompts K times, and the answers are judged:

    P_ij      probability that answer i beats j: sigmoid((r_i - r_j) / label_temperature) of their rewards; without a
              temperature 1 or 0, and 1/2 of equal ones. Or what `--judge module:function` says of the two texts
    win_i     mean over the K answers j of P_ij, j = i included
    pair      the answers with the most and with the least win_i; with a temperature or a judge their order is drawn
    h(y)      log pi(y|x) - start_weight log pi_0(y|x) - (1 - start_weight) log pi_t(y|x)         summed over tokens
    loss      - log sigmoid(beta (h(chosen) - h(rejected)))                  `--loss sigmoid`, and DPO's others
              (h(chosen) - h(rejected) - 1 / (2 beta))^2                     ipo-sum
              mean over both of (h(y) - (win(y) - 1/2) / beta)^2             sppo

It is minimized over `epochs` passes, then the next round begins. With `--start-weight` 0 the reference is renewed in
every round, and the policy moves on for ever, a proximal point method; with 1 it is always the model at the start,
pi_0; in between both hold it. Pairs of answers that are equally good teach nothing, and are left out, unless their
order is drawn or the loss takes win rates. With K = 2 a pair is two independent samples.

Differs from its base, DPO, in where the pairs come from, and in the references.

Departs from the paper in: AdamW in place of SPPO's RMSprop; one schedule of the learning rate for all rounds; the
references are scored with every batch, not in advance.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.language import all_prompts, check_prompts
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core import ranks
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.base import to_env
from polopt.data.prompt_groups import PromptGroups
from polopt.data.rounds import Rounds, updates_per_round
from polopt.data.tokens import ROW
from polopt.losses.pairwise import win_rates
from polopt.methods.language.dpo import DPO, PairsConfig
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.base import Actor
from polopt.tasks.base import Task
from polopt.tasks.problem import Prompt

Judge = Callable[[Prompt, str, str], float]


def preferences(reward: Tensor, temperature: float | None) -> Tensor:
    """P [N, K, K], the probability that answer i beats j, of rewards [N, K]."""
    gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    return (gap.sign() + 1) / 2 if temperature is None else (gap / temperature).sigmoid()


def best_and_worst(preference: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """win [N, K], and which answers [N] win most and least; of equal ones the first and the last. Answers that are not
    valid (bool [N, K]) beat nobody, are beaten by nobody, and are not chosen where there is another."""
    there = valid.unsqueeze(-2).to(preference.dtype)
    win = (preference * there).sum(-1) / there.sum(-1).clamp_min(1.0)
    best = torch.where(valid, win, -torch.inf).argmax(-1)
    worst = win.shape[-1] - 1 - torch.where(valid, win, torch.inf).flip(-1).argmin(-1)
    return win, best, worst


def judged(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str]) -> Tensor:
    """P [N, K, K] of N prompts with K answers each [N K]: what `judge(prompt, one, other)` says of every two of them,
    each once, however many processes share the run.

    Equal texts are not judged. Raises UsageError where it says no probability.
    """
    count = len(answers) // len(prompts)
    said = ranks.shared(
        range(len(prompts)),
        lambda rows: {row: _table(judge, prompts[row], answers[row * count : (row + 1) * count]) for row in rows},
    )
    return torch.tensor([said[row] for row in range(len(prompts))])


def _table(judge: Judge, prompt: Prompt, texts: Sequence[str]) -> list[list[float]]:
    """[K][K] of the answers to one prompt."""
    found = [[0.5] * len(texts) for _ in texts]
    for i, j in itertools.combinations(range(len(texts)), 2):
        if texts[i] != texts[j]:
            value = float(judge(prompt, texts[i], texts[j]))
            if not 0 <= value <= 1:
                raise UsageError(f"the judge gave {value:g}, which is not the probability that an answer is better")
            found[i][j], found[j][i] = value, 1 - value
    return found


def anchored(share: float, start: Tensor | None, now: Tensor | None) -> Tensor:
    """share start + (1 - share) now, log-probabilities of any shape; one without weight may be left out."""
    parts = [part * each for part, each in ((share, start), (1 - share, now)) if each is not None]
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class RoundsConfig(PairsConfig):
    """Where the pairs of a round come from."""

    pairs: int = param(512, "assumed", low=1, help="prompts of a round, each with one pair")
    samples_per_prompt: int = param(2, "arXiv 2312.11456", low=2, unit="completions", help="K")
    epochs: int = param(1, "arXiv 2405.00675, official code", low=1, help="passes over the pairs of a round")
    label_temperature: float | None = param(
        None, "assumed", above=0, unit="reward", help="labels are drawn at it; none: the higher reward is chosen"
    )
    judge: Judge | None = param(
        None,
        "arXiv 2405.00675",
        help="f(prompt, one, other), the probability that one of two texts is better, which need not follow from any "
        "reward; labels are drawn from it",
    )
    fresh_optimizer: bool = param(True, "official code of SPPO", help="AdamW begins anew in every round")

    learns_from_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None:
            self.refuse("label_temperature", because="beside a judge")

    @property
    def draws(self) -> bool:
        """Whether the order of a pair is drawn."""
        return self.label_temperature is not None or self.judge is not None


class IterativeDPO(DPO):
    @dataclass(frozen=True)
    class Config(RoundsConfig, DPO.Config):
        start_weight: float = param(
            0.0,
            "arXiv 2312.16682",
            low=0,
            high=1,
            help="of the model at the start in the reference, beside the round's",
        )
        loss: str = param(
            "sigmoid", "arXiv 2312.11456", choices=("sigmoid", "ipo", "ipo-sum", "hinge", "robust", "sppo")
        )

    slug = "iterative-dpo"
    headline = ("reward", "preferred", "margin", "informative")
    trains_on = "text tasks with rewards"
    metrics = {
        "reward": "of the completions of the minibatch's prompts, as sampled in this round | rises from round to round",
        "completion_length": "mean number of their tokens",
        "informative": "share of prompts whose pair counts | near 0: answers are equally good",
        "round": "which round it is, from 1",
    }
    default_steps = 100
    presets = {
        "sppo": {
            "loss": "sppo",
            "beta": 0.001,
            "samples_per_prompt": 5,
            "pairs": 20_000,
            "label_temperature": 1.0,
            "lr": 5e-7,
            "lr_schedule": "linear",
            "lr_schedule.warmup": 0.1,
        },
        "small": {"lr": 1e-4, "batch_size": 32, "pairs": 128, "policy.max_tokens": 32},
    }
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            base="dpo",
            task="addition",
            at={"start_weight": 1.0, "fresh_optimizer": False, "pairs": 4, "batch_size": 4, "label_temperature": 1.0},
            apart={"start_weight": 0.0},
            because="against the model at the start every pair has DPO's loss, whatever round it is of",
            collects="method",
        ),
    )
    smoke = Smoke(
        "vowels",
        6,
        {
            "model": "tiny",
            "batch_size": 4,
            "pairs": 8,
            "samples_per_prompt": 3,
            "epochs": 2,
            "start_weight": 0.25,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 64, "score_truncated": True},
    )

    source: Rounds

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        updates = updates_per_round(config.pairs, config.batch_size, config.epochs)
        return {
            "completions per round": config.pairs * config.samples_per_prompt,
            "optimizer steps per round": updates,
            "rounds": -(-steps // updates),
        }

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        self.round_policy = frozen_copy(self.policy) if self.start_weight < 1 else None
        if self.start_weight == 0:
            self.reference_policy = None
        self.behavior_policy = config.policy.behavior(self.policy)
        groups = PromptGroups(
            task, config.pairs, config.samples_per_prompt, sampler=all_prompts(task), ledger=self.ledger
        )
        self.source = Rounds(
            groups, config.batch_size, config.epochs, prepare=self.make_pairs, generator=self.generator
        )

    @property
    def start_weight(self) -> float:
        """What the model at the start weighs in the reference."""
        return self.config.start_weight

    def prepare(self) -> None:
        check_prompts(self.policy, self.task)

    @property
    def behavior(self) -> Actor:
        return self.behavior_policy

    def collect(self) -> Batch:
        if self.source.finished:
            self.begin_round()
        return super().collect()

    def begin_round(self) -> None:
        """The policy that samples now is the reference of the round."""
        if self.round_policy is not None:
            polyak_update(self.round_policy, self.policy, 1.0)
        if self.config.fresh_optimizer:
            self.optimizer.forget()

    def judge(self, batch: Batch) -> Tensor:
        """P [N, K, K] of the completions [N K] of N prompts."""
        config, count = self.config, self.config.samples_per_prompt
        if config.judge is None:
            return preferences(batch["reward"].unflatten(0, (-1, count)), config.label_temperature)
        task: Any = self.task
        prompts = [problem.prompt for problem in task.problems(batch["index"].tolist())]
        answers = to_env(self.policy, prompts, batch["completion"])
        return judged(config.judge, prompts[::count], answers).to(batch["reward"])

    def make_pairs(self, batch: Batch) -> Batch:
        """The pairs [N] of a round from completions [N K]; `row_weight` is 0 where a pair teaches nothing."""
        config, count = self.config, self.config.samples_per_prompt
        preference, valid = self.judge(batch), ~batch["failed"].unflatten(0, (-1, count))
        win, best, worst = best_and_worst(preference, valid)
        prompt = torch.arange(len(best), device=best.device)
        surely = preference[prompt, best, worst]
        counts = valid.sum(1) > 1
        if config.loss != "sppo" and not config.draws:
            counts = counts & (surely > 0.5)
        elif config.loss != "sppo":
            other = torch.rand(len(best), generator=self.generator).to(surely) > surely
            best, worst = torch.where(other, worst, best), torch.where(other, best, worst)
        sides = {}
        for name, each in (("chosen", best), ("rejected", worst)):
            sides[name] = batch[prompt * count + each].select(*ROW).set("win", win[prompt, each])
        share = valid / valid.sum(1, keepdim=True).clamp_min(1)
        columns = {"reward": batch["reward"], "completion_length": batch["mask"].sum(1)}
        means = {name: (share * column.unflatten(0, (-1, count))).sum(1) for name, column in columns.items()}
        index = batch["index"].unflatten(0, (-1, count))[:, 0]
        rows = {**sides, **means, "index": index, "row_weight": counts.to(share.dtype)}
        return TensorDict(rows, batch_size=[len(best)], device=batch.device)

    def reference_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        policies = (self.reference_policy, self.round_policy)
        scored = [(None, None) if policy is None else self.scores(policy, batch) for policy in policies]
        chosen, rejected = (anchored(self.start_weight, *anchors) for anchors in zip(*scored))
        return chosen, rejected

    def loss_of_pairs(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        if self.config.loss != "sppo":
            return super().loss_of_pairs(chosen, rejected, batch)
        wins = batch["chosen", "win"], batch["rejected", "win"]
        return win_rates(chosen, rejected, *wins, self.config.beta, batch["weight"])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        means = {name: batch[name].mean() for name in ("reward", "completion_length")}
        informative, number = batch["row_weight"].mean(), torch.tensor(float(self.source.round))
        return super().update(batch) | means | {"informative": informative, "round": number}

    def evaluate_data(self, task: Any, count: int) -> dict[str, float]:
        return {}  # there are no held-out pairs: the task scores completions

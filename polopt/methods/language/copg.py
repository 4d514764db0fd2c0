"""CoPG: Contrastive Policy Gradient, policy gradients from rewarded pairs of any origin, without importance weights.

Flet-Berliac et al., "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly
fashion", 2024, arXiv 2406.19185.

Wanted is the policy with the largest E R(x, y) - beta KL(pi || pi_ref), which is pi*(y|x) ~ pi_ref(y|x) exp(R / beta).
There, and nowhere else, the regularized reward is the same for all answers to a prompt:

    h(y)      log pi(y|x) - log pi_ref(y|x)                                summed over the tokens of y, its end included
    R_pi(y)   R(x, y) - beta h(y)
    loss      E_(x, y, y') (R_pi(y) - R_pi(y'))^2 / (4 beta)               gradients flow through both h

The gradient is that of REINFORCE on both answers, each with the regularized reward of the other for its baseline:

    - 1/2 [(R_pi(y) - R_pi(y')) grad log pi(y|x) + (R_pi(y') - R_pi(y)) grad log pi(y'|x)]

With that baseline the answers may come from anywhere, as long as they cover pi_ref. On pairs of the policy itself it is
the gradient of the objective (RLOO with K = 2); on rewards that are 1/2 apart in every pair it is IPO with tau = beta.
Any score will do as a reward, and pairs of equal rewards count: they hold their log ratios together.

`--data recorded` is for pairs that are there: the columns `chosen_reward` and `rejected_reward` of a file say what they
are worth, or else the task scores both. `--data sampled` draws two answers to each of `pairs` prompts, makes `epochs`
passes over them and draws anew: all is from the model at the start if there is one round, and on-policy if a batch is a
round. Which of the two is called chosen means nothing to the loss; in what is logged it is the one of higher reward.
Rewards matter as multiples of beta; `pull` says how many nats they ask for, and 1 to 10 is good.

Evaluations add, where completions can be scored, of fresh samples: `kl` to the model at the start and `objective`.

Differs from its base, DPO, in the loss, and in rewards in place of preferences.

Departs from the paper in: its learned reward is whatever scores the answers here; rates, sizes and beta are assumed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.language import all_prompts, check_prompts
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, same_shape, weighted_mean
from polopt.core.random import paired
from polopt.data.preferences import SIDES, pairs, recorded_rewards
from polopt.data.prompt_groups import PromptGroups
from polopt.data.rounds import Rounds, updates_per_round
from polopt.data.tokens import ROW
from polopt.methods.language.dpo import DPO, PairsConfig
from polopt.policies.base import Actor
from polopt.tasks.base import Task


def regularized(reward: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    """R_pi [...] of answers with these rewards and log ratios h, both [...]."""
    same_shape(reward=reward, log_ratio=log_ratio)
    return reward - beta * log_ratio


def copg(gap: Tensor, margin: Tensor, beta: float, weight: Tensor) -> Tensor:
    """Sum over pairs of weight (R_pi(y) - R_pi(y'))^2 / (4 beta), all tensors [B].

    `gap` is R(y) - R(y') and `margin` is h(y) - h(y'). Raises ValueError when shapes differ.
    """
    same_shape(gap=gap, weight=weight)
    return (weight * regularized(gap, margin, beta).square() / (4 * beta)).sum()


class CoPG(DPO):
    @dataclass(frozen=True)
    class Config(PairsConfig):
        beta: float = param(0.1, "assumed", above=0, unit="reward per nat", help="larger stays nearer to the start")
        data: str = param("recorded", "abstract", choices=("recorded", "sampled"), help="where the pairs come from")
        pairs: int = param(
            1_000, "polopt", low=1, help="how many are made of a task whose problems have no end; prompts of a round"
        )
        epochs: int = param(1, "assumed", low=1, help="passes over the pairs of a round of --data sampled")

        loss: ClassVar[str] = "ipo-sum"  # h is the sum over tokens

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.data == "recorded":
                self.refuse("epochs", because="on recorded pairs, which are gone through until the budget is spent")

        @property
        def learns_from_samples(self) -> bool:  # type: ignore[override]
            return self.data == "sampled"

    slug = "copg"
    probes = {"data": {"epochs": 1}}
    headline = ("reward", "preferred", "margin", "pair_loss")
    trains_on = "pairs of answers with rewards"
    metrics = {
        "pair_loss": "squared difference of the regularized rewards / (4 beta) | falls, towards 0 where pi* can be met",
        "preferred": "share of pairs whose answer of higher reward has the higher implicit reward | towards 1",
        "margin": "mean difference of the implicit rewards beta h | towards `gap`",
        "gap": "mean difference of the rewards",
        "pull": "`gap` / beta, the nats between the log ratios that the rewards ask for | 1 to 10",
        "reward": "of the answers of the batch | rises with --data sampled",
        "chosen_log_ratio": "log pi - log pi_ref of the answers of higher reward",
        "rejected_log_ratio": "the same of the others",
        "chosen_log_prob": "log pi of the answers of higher reward, summed over tokens",
        "eval/kl": "KL(pi || pi_ref) in nats, of fresh samples",
        "eval/objective": "reward - beta KL, of fresh samples: what is maximized | rises",
    }
    presets = {
        "tldr": {"beta": 0.03, "batch_size": 32, "lr": 1e-6},
        "on-policy": {"data": "sampled", "pairs": 64, "batch_size": 64},
        "small": {"lr": 1e-4, "batch_size": 32, "data": "sampled", "pairs": 128, "policy.max_tokens": 32},
    }
    limits = (
        Limit(
            base="dpo",
            task="addition",
            at={"beta": 4.0},
            apart={"beta": 2.0},
            base_at={"loss": "ipo-sum", "beta": 2.0},
            because="right and wrong answers are worth 1 and 0, and (1 - 4 m)^2 / 16 is (1/4 - m)^2",
            collects="each",
        ),
        Limit(
            base="rec",
            at={"data": "sampled", "beta": 1e-9, "pairs": 4, "batch_size": 4},
            apart={"beta": 0.5},
            base_at={
                "surrogate": "reinforce",
                "restraint": "none",
                "baseline.baseline": "leave-one-out",
                "aggregate": "sum",
                "sync_interval": 1,
                "samples_per_prompt": 2,
            },
            because="on pairs of the policy with next to no regularization it is RLOO with two samples, up to rounding",
            tolerance=1e-6,
            collects="each",
        ),
    )
    smoke = Smoke(
        "vowels",
        6,
        {
            "model": "tiny",
            "data": "sampled",
            "batch_size": 4,
            "pairs": 8,
            "epochs": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 64, "score_truncated": True},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        if config.data == "recorded":
            return {}
        updates = updates_per_round(config.pairs, config.batch_size, config.epochs)
        return {"completions per round": 2 * config.pairs, "optimizer steps per round": updates} | {
            "rounds": -(-steps // updates)
        }

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        self.behavior_policy = config.policy.behavior(self.policy)
        if config.data == "sampled":
            groups = PromptGroups(task, config.pairs, 2, sampler=all_prompts(task), ledger=self.ledger)
            self.source = Rounds(
                groups, config.batch_size, config.epochs, prepare=self.sampled_pairs, generator=self.generator
            )

    def prepare(self) -> None:
        if self.config.data == "sampled":
            check_prompts(self.policy, self.task)
        else:
            super().prepare()

    @property
    def behavior(self) -> Actor:
        return self.behavior_policy

    def recorded_pairs(self, task: Any, count: int) -> Batch:
        """Pairs [B] with `reward` of both sides, the higher one first; `row_weight` is 0 where one is not known."""
        prompts, *answers = (list(column) for column in zip(*task.preferences(range(count))))
        reward, known = recorded_rewards(task, range(count), answers)
        swap = (reward[1] > reward[0]).tolist()
        ordered = [pair[::-1] if other else pair for *pair, other in zip(*answers, swap)]
        batch = pairs(self.policy, prompts, *(list(side) for side in zip(*ordered)))
        for side, value in zip(SIDES, reward.sort(0, descending=True).values):
            batch[side, "reward"] = value.to(batch.device)
        batch["row_weight"] = known.all(0).to(reward).to(batch.device)
        return batch

    def sampled_pairs(self, batch: Batch) -> Batch:
        """The same of completions [2 B], two adjacent ones to each prompt."""
        reward, first = batch["reward"].unflatten(0, (-1, 2)), torch.arange(0, len(batch), 2, device=batch.device)
        swap = (reward[:, 1] > reward[:, 0]).long()
        rows = {side: batch[first + place].select(*ROW, "reward") for side, place in zip(SIDES, (swap, 1 - swap))}
        known = ~batch["failed"].unflatten(0, (-1, 2)).any(1)
        return TensorDict({**rows, "row_weight": known.to(reward.dtype)}, batch_size=[len(first)], device=batch.device)

    def loss_of_pairs(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        gap = batch["chosen", "reward"] - batch["rejected", "reward"]
        return copg(gap, chosen - rejected, self.config.beta, batch["weight"])

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        high, low = (weighted_mean(batch[side, "reward"], batch["weight"]) for side in SIDES)
        gap = high - low
        return loss, metrics | {"reward": (high + low) / 2, "gap": gap, "pull": gap / self.config.beta}

    def evaluate(self, task: Any, episodes: int = 64, *, greedy: bool = True, **how: Any) -> dict[str, float]:
        scores = super().evaluate(task, episodes, greedy=greedy, **how)
        return scores | self.evaluate_objective(task, episodes) if task.scores else scores

    @torch.no_grad()
    def evaluate_objective(self, task: Any, prompts: int) -> dict[str, float]:
        """`kl` and `objective` of one sampled answer to each of `prompts` problems, of which none has failed."""
        with paired():
            batch = PromptGroups(task, prompts, 1, starts=range(prompts)).next(self.policy)
        log_ratio = (self.policy.log_prob(batch) - self.reference_policy.log_prob(batch)).sum(1)
        value = regularized(batch["reward"], log_ratio, self.config.beta)
        scored = ~batch["failed"]
        return {"kl": log_ratio[scored].mean().item(), "objective": value[scored].mean().item()}

    def evaluate_data(self, task: Any, count: int) -> dict[str, float]:
        return super().evaluate_data(task, count) if self.config.data == "recorded" else {}

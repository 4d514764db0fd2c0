"""REINFORCE: whole episodes, each decision credited with what was earned after it.

Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992; credit from
the decision on (GPOMDP): Baxter and Bartlett 2001, arXiv 1106.0665; baselines from the other episodes: Kool et al.
2019, "Buy 4 REINFORCE samples, get a baseline for free!".

R episodes are played with the policy, used for one step, and thrown away; there is no critic. With rewards r_h of an
episode, its decisions t and the discount gamma:

    credit_t    = sum_{h >= t} gamma^(h - t) r_h          "reward-to-go"
                  sum_{h >= t} gamma^h r_h                "gpomdp", the gradient of the discounted return itself
                  sum_h gamma^h r_h                       "return", as in 1992: the same gradient with more noise
    baseline_t  = mean of credit_t over the other episodes that reached step t       "leave-one-out"
                  mean of credit_t over all of them                                  "time-mean"
    advantage_t = credit_t - baseline_t
    loss          1/R sum over episodes, sum_t -advantage_t log pi(a_t|s_t) - entropy_coefficient H(pi(.|s_t))

The baseline of the others does not depend on the episode, so the gradient stays unbiased; the mean of all makes it
1 - 1/R times as long where every episode is equally long. An episode that is alone at its step has no baseline.

Departs from the paper in: an episode that the clock cuts counts as if it had ended; Adam unless `--optimizer sgd`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Method, Smoke
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, decision_mean, weigh
from polopt.data.episodes import Episodes
from polopt.losses.estimator import policy_gradient, ratio, token_weights
from polopt.networks import Network
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Scores
from polopt.tasks.base import Task
from polopt.values import GroupBaseline
from polopt.values.returns import recursion, standardize

BASELINES = {
    "none": GroupBaseline(baseline="none"),
    "time-mean": GroupBaseline(baseline="mean"),
    "leave-one-out": GroupBaseline(baseline="leave-one-out"),
}


def reward_to_go(reward: Tensor, discount: float, mask: Tensor) -> Tensor:
    """sum_{h >= t} discount^(h - t) reward_h [R, T]; 0 where the mask is False."""
    return recursion(reward, torch.full_like(reward, discount), mask)


def gpomdp(reward: Tensor, discount: float, mask: Tensor) -> Tensor:
    """sum_{h >= t} discount^h reward_h [R, T]; 0 where the mask is False."""
    step = torch.arange(reward.shape[-1], device=reward.device)
    return reward_to_go(reward * discount**step, 1.0, mask)


def whole_return(reward: Tensor, discount: float, mask: Tensor) -> Tensor:
    """sum_h discount^h reward_h [R, T], the same for all decisions; 0 where the mask is False."""
    return torch.where(mask, gpomdp(reward, discount, mask)[..., :1], 0.0)


CREDITS = {"reward-to-go": reward_to_go, "gpomdp": gpomdp, "return": whole_return}


def over_baseline(credit: Tensor, mask: Tensor, baseline: str) -> Tensor:
    """credit - baseline [R, T]: of every step, over the episodes that reached it."""
    step = torch.arange(credit.shape[-1], device=credit.device).expand_as(credit)
    return BASELINES[baseline].advantage(credit, step, mask)


class Reinforce(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        episodes: int = param(16, "assumed", low=1, help="episodes per update, of all copies of the task together")
        discount: float = param(0.99, "assumed", low=0, high=1)
        credit: str = param("reward-to-go", "arXiv 1106.0665", choices=tuple(CREDITS), help="of a decision")
        baseline: str = param("leave-one-out", "Kool et al. 2019", choices=tuple(BASELINES))
        standardize: bool = param(False, "assumed", help="divide advantages by their deviation, and center them")
        average_over: str = param(
            "episodes",
            "Williams 1992",
            choices=("episodes", "decisions"),
            help="of what the loss is a mean: of sums over episodes, or of decisions",
        )
        entropy_coefficient: float = param(0.0, "assumed", low=0)
        lr: float = param(3e-3, "assumed", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "assumed")
        optimizer: str = param("adam", "assumed", choices=("adam", "sgd"))
        max_grad_norm: float | None = param(None, "assumed", above=0)
        network: Network = param(Network((64, 64), "tanh"), "assumed")
        policy: AnyPolicy = param(Auto(), "polopt")

    slug = "reinforce"
    requires = (Scores,)
    headline: ClassVar[tuple[str, ...]] = ("entropy",)
    trains_on = "tasks with episodes that end"
    metrics = {
        "policy_loss": "minus advantage times log pi | its level means nothing",
        "entropy": "of the policy, in nats | falls slowly",
    }
    credits: ClassVar[Mapping[str, Callable[[Tensor, float, Tensor], Tensor]]] = CREDITS
    default_steps = 200_000
    no_limit = "the family begins here; tests compare its gradient with the exact one, over all paths of a small MDP"
    smoke = Smoke("CartPole-v1", 200, {"envs": 2, "episodes": 4, "network.sizes": (16,)})

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network)
        self.source = Episodes(task, config.episodes, ledger=self.ledger)
        self.optimizer = self.make_optimizer(
            self.policy,
            lr=config.lr,
            schedule=config.lr_schedule,
            max_grad_norm=config.max_grad_norm,
            kind=config.optimizer,
        )

    @property
    def trained(self) -> Any:
        """The policy that scores and is trained; `policy` may be made of it."""
        return self.policy

    @property
    def entropy_coefficient(self) -> float | Tensor:
        """Of this update."""
        return self.config.entropy_coefficient

    def rewards(self, batch: Batch) -> Tensor:
        """What decisions are credited with, [R, T]; for methods that learn from another reward than the task's."""
        return batch["reward"]

    @torch.no_grad()
    def evaluate_episodes(self, batch: Batch) -> Batch:
        """Adds `returns`, `advantage`, `weight` and `share`, the weight of a decision where all are alike, [R, T]."""
        config, batch = self.config, weigh(batch)
        mask, batch["share"] = batch["mask"], batch["weight"]
        if config.average_over == "episodes":
            batch["weight"] = token_weights(mask, "sum")
        batch["returns"] = self.credits[config.credit](self.rewards(batch), config.discount, mask)
        batch["advantage"] = over_baseline(batch["returns"], mask, config.baseline)
        if config.standardize:
            batch["advantage"] = standardize(batch["advantage"], mask)
        return batch

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob, entropy = self.trained.score(batch)
        loss = policy_gradient(log_prob, ratio(log_prob, "current"), batch["advantage"], batch["weight"])
        bonus = decision_mean(entropy, batch["weight"])
        metrics = {"policy_loss": loss, "entropy": decision_mean(entropy, batch["share"])}
        return loss - self.entropy_coefficient * bonus, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.policy_loss, self.evaluate_episodes(batch))

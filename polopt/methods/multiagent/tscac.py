"""Two-stage constrained actor-critic (TSCAC): one response is maximized near policies that serve the others.

Cai et al., "Two-Stage Constrained Actor-Critic for Short Video Recommendation", 2023, arXiv 2302.01680.

A recommender wants watch time, which every item brings, and not fewer likes, shares and comments, which are rare: in
one sum of rewards the frequent response drowns the rare ones. So each rare response first gets a critic and an actor of
its own, and then the actor of the main response is kept near all of these, with one number to choose and no costs to
estimate.

Of a logged decision (s, a, r, s') of responses r_i, 1 the main one, k others, with the logging policy b:

    targets     y_i = r_i + discount_i (1 - terminated) V'_i(s'),   A_i = y_i - V_i(s)
    critics     E[ rho_i (V_i(s) - y_i)^2 / 2 ],   rho_i = min(pi_i(a|s) / b(a|s), ratio_clip), constant
    stage 1     -E[ rho_i A_i log pi_i(a|s) + entropy_coefficient H(pi_i(.|s)) + cloning log pi_i(a|s) ],   i = 2..1+k
    stage 2     -E[ w log pi_1(a|s) + cloning log pi_1(a|s) ],   w = g e, constant
                g = min(prod_i (pi_i(a|s) / b(a|s))^(1/k), ratio_clip),   e = exp(A_1 / restraint) over its batch mean
    log         -E[ log b(a|s) ] in stage 1, where b is not recorded
    targets     V'_i <- tau V_i + (1 - tau) V'_i

Stage 2 projects onto pi_1 what solves max E[A_1] under bounds on KL(pi_1 || pi_i), all with one multiplier,
`restraint` / k: the geometric mean of the pi_i, times exp(A_1 / restraint). A large `restraint` imitates that mean,
a small one is greedy. The policies of stage 1 are frozen then; the entropy keeps them wide, as sharp ones that
disagree have no actions in common.

Differs from A2C with several critics in the second stage. One response without others would be advantage-weighted
regression.

Departs from the paper in: all rho_i and the clip of g at 10 are assumed. The released code knows no b (`--behavior
unknown`: rho_i = 1, and g is the product itself), has Q in place of V, trains one policy for all the others, weighs by
exp(A_1 / restraint) over its batch sum, beside which its cloning of 0.01 is the most of the loss, and does not subtract
V in stage 1. Its other form, deterministic policies with a Gaussian kernel, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polopt.bases.method import Smoke
from polopt.bases.offline import Offline
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError, nearest
from polopt.evaluation.ope import BEHAVIOR
from polopt.losses.estimator import policy_gradient, ratio
from polopt.losses.regression import imitation, regression
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Density
from polopt.tasks.base import Task
from polopt.values.targets import td_target


def likelihood_ratio(log_prob: Tensor, behavior: Tensor | None, clip: float) -> Tensor:
    """rho: how much likelier [k, ...] than the log's policy, whose log-probability is `behavior` [...], at most `clip`;
    1 where that is None. Constant."""
    found = ratio(log_prob, "current") if behavior is None else ratio(log_prob, behavior.expand_as(log_prob))
    return found.clamp_max(clip)


def guidance(log_prob: Tensor, behavior: Tensor | None, clip: float) -> Tensor:
    """g [...]: the geometric mean of policies whose log-probabilities are `log_prob` [k, ...], over that of the log's
    policy, at most `clip`. Constant."""
    return ratio(log_prob.mean(0), "one" if behavior is None else behavior).clamp_max(clip)


def greed(advantage: Tensor, restraint: float, weight: Tensor) -> Tensor:
    """e [..., B]: exp(advantage / restraint), over its mean by `weight` [..., B] over the last dimension. Constant."""
    exponent = advantage.detach() / restraint
    grown = (exponent - exponent.amax(-1, keepdim=True)).exp()
    return grown / (weight * grown).sum(-1, keepdim=True)


class TSCAC(Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        main: str = param("", "polopt", help="the objective of the task that is maximized; by default its first")
        stage_updates: int = param(300_000, "official code", low=1, unit="updates", help="of the first stage")
        discount: float = param(0.99, "official code", low=0, high=1, help="of the main response")
        side_discount: float = param(
            0.99, "official code", low=0, high=1, help="of the others; 0 in the paper's live system"
        )
        restraint: float = param(1.0, "official code: 1 / kappa", above=0, help="Lambda, in units of the main reward")
        ratio_clip: float = param(10.0, "assumed", above=0, help="largest ratio to the policy of the log")
        behavior: str = param(
            "cloned",
            "official code",
            choices=("cloned", "recorded", "unknown"),
            help="the probability of the log: of a clone that learns beside stage 1, of the dataset, or not used",
        )
        entropy_coefficient: float = param(0.01, "assumed", low=0, help="in the first stage")
        cloning: float = param(0.01, "official code", low=0, help="weight of imitating the log, in both stages")
        tau: float = param(0.001, "official code", above=0, high=1, help="share of the critics in the targets")
        lr: float = param(1e-4, "official code", above=0, help="of policies")
        critic_lr: float = param(1e-3, "official code", above=0)
        critic_decay: float = param(
            1e-2, "official code", low=0, help="of the critics' weights, a part of the gradient"
        )
        batch_size: int = param(512, "official code", low=1)
        network: Network = param(Network((32, 32), "relu"), "official code")
        policy: AnyPolicy = param(Auto(), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("rewards", because="on a method of several objectives, which are not scaled")
            self.refuse("offline_updates", because="on a method that never goes online")

    slug = "tscac"
    requires = (Density,)
    objectives = "several"
    saved = ("updates",)
    headline = ("entropy", "effective", "value_loss")
    trains_on = "recorded data with several objectives"
    metrics = {
        "value_loss": "half the squared error of the stage's critics, weighted by the ratios, summed over them",
        "entropy": "of the policies that the stage trains, in nats, their mean | near 0 in stage 1: they will have no "
        "actions in common",
        "ratio": "mean ratio of these policies to that of the log | near 1",
        "effective": "(sum w)^2 over sum w^2, as a share of the batch, in stage 2 | a few percent: raise `restraint`",
        "log_loss": "-log b of the log's actions, in stage 1 | falls, then settles at their entropy",
    }
    default_steps = 800_000
    no_limit = "without side objectives it would be advantage-weighted regression, which is not in the catalogue"
    probes = {
        "main": {"main": "response-2"},
        "ratio_clip": {"ratio_clip": 0.9},
        "behavior": {"behavior": "unknown"},
    }
    smoke = Smoke(
        "sessions",
        24,
        {
            "dataset": "random",
            "random_episodes": 3,
            "batch_size": 32,
            "network.sizes": (16,),
            "stage_updates": 12,
            "tau": 0.1,
        },
    )

    def build(self, task: Task) -> None:
        config, names = self.config, self.spec.objectives
        if len(names) < 2:
            raise UsageError(f"tscac keeps side objectives up, and {self.spec.name} has only '{names[0]}'")
        if config.main and config.main not in names:
            raise UsageError(f"{self.spec.name} has no objective '{config.main}'{nearest(config.main, names)}")
        main = names.index(config.main) if config.main else 0
        self.main, self.others = [main], [index for index in range(len(names)) if index != main]
        self.policy = self.make_policy(config.policy, network=config.network)
        if self.policy.recurrent:
            raise UsageError("tscac draws single decisions, which a recurrent policy cannot learn from")
        self.experts: Any = nn.ModuleList(self.another_policy() for _ in self.others)
        self.critic, self.side_critic = self.make_critic(1), self.make_critic(len(self.others))
        self.target_critic, self.side_target = frozen_copy(self.critic), frozen_copy(self.side_critic)
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr)
        self.expert_optimizer = self.make_optimizer(self.experts, lr=config.lr)
        options: Any = {"lr": config.critic_lr, "weight_decay": config.critic_decay}
        self.critic_optimizer = self.make_optimizer(self.critic, **options)
        self.side_optimizer = self.make_optimizer(self.side_critic, **options)
        if config.behavior == "cloned":
            self.log_policy = self.another_policy()
            self.log_optimizer = self.make_optimizer(self.log_policy, lr=config.critic_lr)
        self.updates = 0

    def another_policy(self) -> Any:
        return self.config.policy.build(self.spec, self.config.network)

    def make_critic(self, members: int) -> Any:
        """V of so many responses, each with a network of its own: obs [B, ...] -> [members, B, 1]."""
        return self.config.network.build(self.spec.obs, 1, ensemble=members, head_gain=1.0)

    def examine(self, data: Batch) -> None:
        if self.config.behavior == "recorded" and BEHAVIOR not in data.keys():
            raise UsageError(
                f"--behavior recorded needs the densities of the recorded actions, {BEHAVIOR}, which these data lack: "
                "'polopt eval RUN --record FILE --sample' writes them"
            )

    def log_prob_of_log(self, batch: Batch) -> Tensor | None:
        """log b(a|s) [B]; None where it is not used."""
        if self.config.behavior == "unknown":
            return None
        return batch[BEHAVIOR] if self.config.behavior == "recorded" else self.log_policy.log_prob(batch)

    @torch.no_grad()
    def judge(
        self, batch: Batch, policies: Sequence[Any], which: list[int], critic: Any, target_critic: Any, discount: float
    ) -> Batch:
        """A copy with `target`, `advantage` and `rho` [B, k] of some responses, for the policy of each."""
        rewards = batch["rewards"][..., which].movedim(-1, 0)
        value, next_value = critic(batch["obs"]).squeeze(-1), target_critic(batch["next_obs"]).squeeze(-1)
        target = td_target(rewards, discount, batch["terminated"].expand_as(rewards), next_value)
        log_prob = torch.stack([policy.log_prob(batch) for policy in policies])
        rho = likelihood_ratio(log_prob, self.log_prob_of_log(batch), self.config.ratio_clip)
        found = {"target": target, "advantage": target - value, "rho": rho}
        return batch.clone(False).update({name: each.movedim(0, -1) for name, each in found.items()})

    def value_loss(self, batch: Batch, critic: Any) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"] * batch["rho"].movedim(-1, 0)
        loss = regression(critic(batch["obs"]).squeeze(-1), batch["target"].movedim(-1, 0), weight)
        return loss, {"value_loss": loss}

    def expert_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        loss: Any = 0.0
        entropy: Any = 0.0
        for index, expert in enumerate(self.experts):
            log_prob, spread = expert.score(batch)
            gain = policy_gradient(log_prob, batch["rho"][:, index], batch["advantage"][:, index], weight)
            loss = loss + gain + config.cloning * imitation(-log_prob, weight)
            entropy = entropy + weighted_mean(spread, weight)
        mean = weighted_mean(batch["rho"].mean(-1), weight)
        metrics = {"entropy": entropy / len(self.experts), "ratio": mean}
        return loss - config.entropy_coefficient * entropy, metrics

    def log_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = imitation(-self.log_policy.log_prob(batch), batch["weight"])
        return loss, {"log_loss": loss}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        log_prob, entropy = self.policy.score(batch)
        loss = imitation(-log_prob, weight, batch["importance"]) + self.config.cloning * imitation(-log_prob, weight)
        return loss, {"entropy": weighted_mean(entropy, weight), "ratio": weighted_mean(batch["rho"][:, 0], weight)}

    def train_experts(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 1: the other responses, each for itself."""
        config = self.config
        batch = self.judge(
            batch, list(self.experts), self.others, self.side_critic, self.side_target, config.side_discount
        )
        metrics = self.side_optimizer.minimize(self.value_loss, batch, critic=self.side_critic)
        metrics |= self.expert_optimizer.minimize(self.expert_loss, batch)
        polyak_update(self.side_target, self.side_critic, config.tau)
        return metrics | (self.log_optimizer.minimize(self.log_loss, batch) if config.behavior == "cloned" else {})

    def train_policy(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 2: the main response, near the policies of stage 1."""
        config = self.config
        batch = self.judge(batch, [self.policy], self.main, self.critic, self.target_critic, config.discount)
        with torch.no_grad():
            log_prob = torch.stack([expert.log_prob(batch) for expert in self.experts])
            guided = guidance(log_prob, self.log_prob_of_log(batch), config.ratio_clip)
            batch["importance"] = guided * greed(batch["advantage"][:, 0], config.restraint, batch["weight"])
            share = batch["importance"].sum().square() / batch["importance"].square().sum() / len(guided)
        metrics = self.critic_optimizer.minimize(self.value_loss, batch, critic=self.critic)
        metrics |= self.policy_optimizer.minimize(self.policy_loss, batch)
        polyak_update(self.target_critic, self.critic, config.tau)
        return metrics | {"effective": share}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        first = self.updates < self.config.stage_updates
        self.updates += 1
        return (self.train_experts if first else self.train_policy)(weigh(batch))

"""Diffusion Q-Learning: offline reinforcement learning with a policy that is as expressive as the data ask for.

Wang, Hunt, Zhou, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning", 2022, arXiv
2208.06193.

The policy is a chain of K denoising steps. Imitating the data by denoising keeps its samples near the actions of the
data, of which there may be several modes; at the same time it ascends a critic, by the gradient through its samples,
so through the whole chain. The critics are two, trained by Q-learning with actions of a slow copy of the policy.

With a batch (s, a, r, s') of the dataset, critics Q_i, target critics Q_targ and the target policy pi_targ:

    target      y = reward + discount (1 - terminated) min_i max_n Q_targ_i(s', a'_n),   a'_n ~ pi_targ(.|s'),
                n = 1 .. `backup_samples`
    critic      sum_i E[ (Q_i(s, a) - y)^2 ]
    policy      imitation_loss(s, a) - eta E[ Q_j(s, a0) ] / E[ |Q_k(s, a)| ],   a0 = rsample(s)
                j, k two members drawn at random in each update, the denominator constant
    targets     Q_targ <- tau Q + (1 - tau) Q_targ;   pi_targ likewise with `policy_tau`, on every `policy_every`-th
                update, not before `policy_start`
    act         one of `candidates` samples, by softmax of min_i Q_targ_i, also where it is evaluated

Differs from TD3 with behavioral cloning, its base, in the policy and in how it imitates: the denoising loss. With
eta = 0 the policy is cloned (bc.py).

Departs from the paper in: any policy that can imitate and whose samples pass gradients; |Q| is that of the data's
actions, as in its text, where the released code takes the policy's; learning rates are constant, where the code's
cosine has a period 50 times its run, which ends at 0.999 of the first rate.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.bases.offline import Offline
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.losses.pathwise import pathwise
from polopt.losses.regression import imitation, regression
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Diffusion
from polopt.policies.base import Imitates, Reparameterized, require, with_noise
from polopt.policies.wrappers import BestOf
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.targets import td_target

CLONING = {"dataset": "random", "eta": 0.0, "lr": 1e-3, "max_grad_norm": None, "candidates": 1}
ANTMAZE = {"eta": 2.0, "max_grad_norm": 2.0, "backup_samples": 10, "rewards": "antmaze"}


class DQL(Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        discount: float = param(0.99, "official code", low=0, high=1)
        eta: float = param(1.0, "official code", low=0, help="weight of Q beside imitation, in units of E|Q|; 0 clones")
        backup_samples: int = param(
            1,
            "official code",
            low=1,
            help="actions in the next state, of which each critic takes the best (10 for antmaze)",
        )
        tau: float = param(0.005, "official code", above=0, high=1, help="share of the critics in their targets")
        policy_tau: float = param(0.005, "official code", above=0, high=1, help="share of the policy in its target")
        policy_every: int = param(5, "official code", low=1, unit="updates", help="between changes of that target")
        policy_start: int = param(1_000, "official code", low=0, unit="updates", help="before the first of them")
        candidates: int = param(50, "official code", low=1, help="samples of which one acts; 1: a sample acts")
        lr: float = param(3e-4, "official code", above=0, help="of the policy")
        critic_lr: float = param(3e-4, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code", help="of both")
        max_grad_norm: float | None = param(1.0, "official code", above=0, help="of both; tuned per task there")
        critics: int = param(2, "official code", low=2, help="members of the critic ensemble")
        network: Network = param(Network((256, 256, 256), "mish"), "official code", help="of policy and critics")
        policy: AnyPolicy = param(Diffusion(steps=5, schedule="vp", min_std=0.0), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.candidates > 1:
                self.refuse("policy.greedy", because="among candidates, which are samples")

    slug = "dql"
    learns = "actor"
    saved = ("updates",)
    requires = (Reparameterized, Imitates)
    headline = ("imitation_loss", "policy_q", "q", "critic_loss")
    trains_on = "recorded data, box actions"
    metrics = {
        "imitation_loss": "error of the predicted noise or velocity | falls, then settles",
        "policy_q": "mean Q of the policy's samples, of the critic that it ascends in this update | above `q` without "
        "running away from it",
        "policy_loss": "imitation minus eta times `policy_q` in units of its size | its level means nothing",
        "q": "mean Q at the data's actions | grows to the scale of the return",
        "critic_loss": "squared error, summed over critics",
    }
    presets = {
        "halfcheetah": {"max_grad_norm": 9.0},
        "hopper": {"max_grad_norm": 9.0},
        "walker2d": {"max_grad_norm": 1.0},
        "antmaze": ANTMAZE,
        "kitchen": {"eta": 0.005, "max_grad_norm": 10.0},
    }
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            "bc",
            at=CLONING | {"policy": "diffusion"},
            apart={"eta": 1.0},
            because="without Q the policy only imitates",
            base_at={"policy": "diffusion", "network.activation": "mish"},
            task="Pendulum-v1",
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        24,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 32,
            "network.sizes": (16,),
            "policy_every": 2,
            "policy_start": 4,
            "candidates": 3,
            "backup_samples": 2,
            "offline_updates": 16,
            "replay_size": 1_000,
        },
    )

    def build(self, task: Task) -> None:
        config = self.config
        self.actor: Any = self.make_policy(config.policy, network=config.network)
        self.target_actor: Any = frozen_copy(self.actor)
        self.critic = self.part("critic", QEnsemble, self.spec, config.network, members=config.critics)
        self.target_critic = frozen_copy(self.critic)
        self.policy = self.actor
        if config.candidates > 1:
            self.policy = BestOf(self.actor, self.target_critic, config.candidates, how="softmax")
        common = {"schedule": config.lr_schedule, "max_grad_norm": config.max_grad_norm}
        self.policy_optimizer = self.make_optimizer(self.actor, lr=config.lr, **common)
        self.critic_optimizer = self.make_optimizer(self.critic, lr=config.critic_lr, **common)
        self.updates = 0

    def check_policy(self) -> None:
        require(self.actor, *self.requires, by=self.slug)

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """One-step target [B]; time limits are bootstrapped through."""
        action, _ = self.target_actor.rsample(batch["next_obs"], self.config.backup_samples)
        q = self.target_critic(batch["next_obs"], action)  # [E, n, B]
        return td_target(batch["reward"], self.config.discount, batch["terminated"], q.amax(1).amin(0))

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        q = self.critic(batch["obs"], batch["action"])
        loss = 2.0 * regression(q, batch["target"], batch["weight"])
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    @torch.no_grad()
    def chosen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The member [B] that the policy ascends in this update, and 1 / E|Q| [B] of another: equal in all rows."""
        one, other = torch.randperm(self.config.critics, generator=self.generator)[:2].tolist()
        q = self.critic(batch["obs"], batch["action"])[other]
        scale = 1.0 / weighted_mean(q.abs(), batch["weight"]).clamp_min(torch.finfo(q.dtype).eps)
        return torch.full_like(q, one, dtype=torch.int64), scale.expand_as(q)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        imitation_loss = imitation(self.actor.imitation_loss(batch, batch.get("noise", None)), weight)
        action, _ = self.actor.rsample(batch["obs"])
        q = self.critic(batch["obs"], action).gather(0, batch["member"].unsqueeze(0)).squeeze(0)
        loss = imitation_loss + self.config.eta * pathwise(q, None, 0.0, weight * batch["scale"])
        return loss, {"policy_loss": loss, "imitation_loss": imitation_loss, "policy_q": weighted_mean(q, weight)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        batch = with_noise(self.actor, weigh(batch))
        batch["target"] = self.target(batch)
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch)
        batch["member"], batch["scale"] = self.chosen(batch)
        metrics |= self.policy_optimizer.minimize(self.policy_loss, batch)
        if self.updates % config.policy_every == 0 and self.updates >= config.policy_start:
            polyak_update(self.target_actor, self.actor, config.policy_tau)
        polyak_update(self.target_critic, self.critic, config.tau)
        self.updates += 1
        return metrics

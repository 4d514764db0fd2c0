"""Soft Actor-Critic with automatic temperature.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, arXiv 1812.05905.

The return plus `temperature` times the entropy of the policy is maximized off-policy: two soft Q critics are regressed
on one soft target, the policy follows the pathwise gradient through their minimum, and the temperature is the dual
variable of the constraint "expected entropy >= target_entropy", which makes the scale of the reward irrelevant.

With replay batch (s, a, r, s'), next action a' ~ pi(.|s') of the CURRENT policy, target critics Q_targ:

    target      y = reward + discount (1 - terminated) (min_i Q_targ_i(s', a') - temperature log pi(a'|s'))
    critic      sum_i E[ (Q_i(s, a) - y)^2 / 2 ]
    policy      E[ temperature log pi(a|s) - min_i Q_i(s, a) ],   a = rsample(s), gradient through a
    temperature E[ temperature (entropy - target_entropy) ],      entropy = -log pi(a|s), constant
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

Differs from its base, the first SAC (arXiv 1801.01290), in having no value network and a learned temperature
(`--entropy fixed` keeps it constant, `--reward-scale` is that paper's knob: 5 there, 20 for Humanoid).

Departs from the paper in: densities and the target entropy are in the units in which the policy acts, [-1, 1], whatever
the bounds of the action space. The authors' softlearning has averaged the two critics in the policy loss since its
TensorFlow 2 release (March 2020), where the paper and the code before take the minimum: `--policy-critic mean`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Smoke
from polopt.bases.off_policy import OffPolicy
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.scoring import SCORES
from polopt.losses.pathwise import pathwise
from polopt.losses.regression import regression
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.optim import frozen_copy, polyak_update, whole
from polopt.policies import AnyPolicy, SquashedGaussian
from polopt.policies.base import Density, Reparameterized
from polopt.regularizers import Fixed, Learned
from polopt.regularizers.entropy import EntropyTemperature
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.targets import reduce_members, soft_value, td_target


class SAC(OffPolicy):
    @dataclass(frozen=True)
    class Config(OffPolicy.Config):
        discount: float = param(0.99, "table 1", low=0, high=1)
        tau: float = param(0.005, "table 1", above=0, high=1, help="share of the critics in the targets, per update")
        lr: float = param(3e-4, "table 1", above=0, help="of policy and critics")
        batch_size: int = param(256, "table 1", low=1)
        replay_size: int = param(1_000_000, "table 1", low=1, unit="transitions")
        warmup: int = param(
            10_000, "official code", low=1, unit="env_steps", help="uniform random actions at the start"
        )
        steps_per_update: int = param(1, "table 1", low=1, unit="env_steps", help="collected between updates")
        updates_per_step: int = param(1, "table 1", low=1, help="gradient steps per environment step")
        critics: int = param(2, "section 5", low=1, help="members of the critic ensemble")
        policy_critic: str = param("min", "equation 7", choices=("min", "mean"), help="reduction in the policy loss")
        reward_scale: float = param(1.0, "official code", above=0, help="multiplies the rewards")
        n_step: int = param(1, "polopt", low=1, help="steps of reward before bootstrapping")
        entropy: Learned | Fixed = param(Learned(), "section 5")
        network: Network = param(Network(sizes=(256, 256), activation="relu"), "table 1")
        policy: AnyPolicy = param(SquashedGaussian(), "appendix C")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.critics == 1:
                self.refuse("policy_critic", because="with one critic")

    slug = "sac"
    unread = SCORES
    requires: ClassVar[tuple[type, ...]] = (Reparameterized, Density)
    headline = ("entropy", "entropy_temperature", "q", "critic_loss")
    trains_on = "box actions"
    metrics = {
        "q": "mean action value of the batch, over critics | grows to the scale of the return; far above: "
        "overestimation",
        "critic_loss": "half the squared error, summed over critics | may grow with the returns",
        "policy_loss": "temperature log pi - min Q | falls as values rise; its level means nothing",
        "entropy": "-log pi of fresh samples, in nats, in the policy's units [-1, 1] | settles at `target_entropy`, "
        "minus the number of action coordinates",
        "entropy_temperature": "the learned weight of the entropy | falls, then settles; towards 0: nothing left to "
        "explore",
    }
    default_steps = 1_000_000
    presets = {"pendulum": {"warmup": 1_000, "network.sizes": (64, 64)}}
    no_limit = "its base, the first SAC with a value network, is not in the catalogue"
    smoke = Smoke("Pendulum-v1", 96, {"warmup": 64, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000})

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network)
        self.critic = self.part("critic", self.make_critic)
        self.target_critic = frozen_copy(self.critic)
        self.temperature = self.make_temperature()
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr)
        self.critic_optimizer = self.make_optimizer(self.critic, lr=config.lr)
        if self.temperature.learned:
            self.temperature_optimizer = self.make_optimizer(self.temperature, lr=config.entropy.lr or config.lr)
        self.source = self.make_source(task)

    def make_critic(self) -> QEnsemble:
        return QEnsemble(self.spec, self.config.network, members=self.config.critics)

    def make_temperature(self) -> EntropyTemperature:
        return self.config.entropy.build(self.spec)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        target = self.target(batch)
        q = self.critic(batch["obs"], batch["action"])
        loss = regression(q, target, batch["weight"])
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Soft one-step target [B]; time limits are bootstrapped through."""
        next_action, next_log_prob = self.next_action(batch["next_obs"])
        next_q = reduce_members(self.target_values(batch["next_obs"], next_action), "min")
        return self.soft_target(batch, next_q, next_log_prob)

    def soft_target(self, batch: Batch, next_q: Tensor, next_log_prob: Tensor | None) -> Tensor:
        """Of values [B] of the next actions and their log-densities [B]; None: the entropy does not count."""
        next_value = next_q if next_log_prob is None else soft_value(next_q, next_log_prob, self.temperature.value)
        return td_target(self.config.reward_scale * batch["reward"], batch["discount"], batch["terminated"], next_value)

    def next_action(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """What the policy would do [B, A], and its log-density [B]."""
        return self.policy.rsample(obs)

    def target_values(self, obs: Obs, action: Tensor) -> Tensor:
        """What targets are made of, per critic: [E, B]."""
        return self.target_critic(obs, action)

    def action_values(self, obs: Obs, action: Tensor) -> Tensor:
        """What the policy ascends, per critic: [E, B]."""
        return self.critic(obs, action)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        action, log_prob = self.policy.rsample(batch["obs"])
        q = reduce_members(self.action_values(batch["obs"], action), self.config.policy_critic)
        loss = pathwise(q, log_prob, self.temperature.value, batch["weight"])
        return loss, {"policy_loss": loss, "entropy": weighted_mean(-log_prob, batch["weight"])}

    @whole
    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = weigh(batch)
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch) | self.improve(batch)
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics | {"entropy_temperature": self.temperature.value}

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the policy, then one of the temperature."""
        metrics = self.policy_optimizer.minimize(self.policy_loss, batch)
        if self.temperature.learned:
            self.temperature_optimizer.step(self.temperature.loss(metrics["entropy"]))
        return metrics

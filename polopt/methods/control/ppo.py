"""Proximal Policy Optimization, with the details that carry it, for policies with and without memory.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv 1707.06347; GAE: arXiv 1506.02438; practice:
"The 37 Implementation Details of PPO" (Huang et al., 2022), legged_gym (arXiv 2109.11978, `--preset legged`).

A window of experience is collected, and used for several epochs of minibatch steps on a surrogate whose clipping takes
away the incentive to move the ratio far from 1.

    delta_t     = reward_t + discount (1 - terminated_t) V(s_{t+1}) - V(s_t)      s_{t+1} the true successor: at a
    advantage_t = delta_t + discount gae_lambda (1 - done_t) advantage_{t+1}      time limit the final observation
    returns_t   = advantage_t + V(s_t)
    ratio       = pi(a|s) / pi_old(a|s)
    policy      E[ max(-ratio advantage, -clip(ratio, 1 - eps, 1 + eps) advantage) ]      advantage standardized
    value       1/2 E[ max((V - returns)^2, (V_old + clip(V - V_old, +-value_clip) - returns)^2) ]
    loss        policy + value_coefficient value - entropy_coefficient entropy

The policy term is computed as the unified estimator (`losses/estimator.py`): its gradient, not its value, is that of
the max. `--surrogate` takes other named variants, `--kl-penalty kl-penalty` the paper's penalty beta KL(old || new).

Departs from the paper in: the defaults are those of the 37 details for classic control, the presets carry the others;
policy and critic have separate networks also on images, and the preset for Procgen keeps the convolutions of Atari.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, decision_mean, weigh, weighted_mean
from polopt.data.minibatches import minibatches
from polopt.data.rollouts import Rollouts
from polopt.losses import Surrogate
from polopt.losses.regression import value_loss
from polopt.losses.surrogate import surrogate_loss
from polopt.methods.control.ppo_settings import PPOSettings
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.optim import frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Density, Scores, require
from polopt.policies.wrappers import Valued
from polopt.regularizers import AdaptiveKL, KLPenalty
from polopt.tasks.base import Task
from polopt.values.critics import StateValue
from polopt.values.returns import explained_variance, gae, standardize
from polopt.values.reward_normalizer import RewardNormalizer


class PPO(PPOSettings, Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(4, "37 details: classic control", low=1)
        window: int = param(128, "37 details: classic control", low=1, help="steps of every copy per update")
        epochs: int = param(4, "37 details: classic control", low=1)
        minibatches: int = param(4, "37 details: classic control", low=1, help="minibatches per epoch")
        discount: float = param(0.99, "table 3", low=0, high=1)
        gae_lambda: float = param(0.95, "table 3", low=0, high=1)
        surrogate: Surrogate = param(Surrogate.named["ppo"], "equation 7")
        value_clip: float | None = param(0.2, "37 details: detail 9", above=0, help="none: plain squared error")
        clip_schedule: Constant | Linear = param(Constant(), "OpenAI baselines", help="factor on the clip ranges")
        value_coefficient: float = param(0.5, "37 details: detail 11", low=0)
        entropy_coefficient: float = param(0.01, "table 5", low=0)
        advantage_over: str = param(
            "minibatch", "37 details: detail 7", choices=("minibatch", "batch", "none"), help="standardize over"
        )
        lr: float = param(2.5e-4, "37 details: classic control", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Linear(), "37 details: detail 4")
        adaptive_lr: AdaptiveKL | None = param(None, "arXiv 2109.11978", help="learning rate from KL(old || new)")
        kl_penalty: KLPenalty | None = param(None, "section 4", help="adds coefficient * KL(old || new)")
        target_kl: float | None = param(None, "Spinning Up", above=0, help="epochs end at an approx_kl 1.5 times this")
        adam_eps: float = param(1e-5, "37 details: detail 3", above=0)
        max_grad_norm: float | None = param(0.5, "37 details: detail 10", above=0)
        normalize_obs: bool = param(False, "37 details: MuJoCo", help="running mean and std, clipped at 10")
        normalize_reward: bool = param(False, "37 details: MuJoCo", help="divide by the running std of returns")
        network: Network = param(Network((64, 64), "tanh", init="orthogonal", head_gain=0.01), "37 details: detail 2")
        critic_network: Network | None = param(None, "polopt", help="none: the same as the policy's")
        policy: AnyPolicy = param(Auto(), "section 6.1")
        inert = {"surrogate.level": "a row is one decision, unless a policy is recurrent or decides in a chain"}

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.value_clip is None and self.surrogate.clip_range == (0.0, float("inf")):
                self.refuse("clip_schedule", because="where nothing is clipped")
            self.refuse("critic_network.head_gain", because="on a critic, whose last layer has scale 1")

    slug = "ppo"
    requires = (Scores,)
    outputs: int | None = None  # values of one observation, one for each objective; None: one value, of the reward
    # What advantages are made of, once for a window: a step on single decisions reads none of it.
    of_windows = ("reward", "terminated", "truncated", "first", "final_obs")

    def build(self, task: Task) -> None:
        config = self.config
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        own, network = getattr(self.policy, "normalizer", None), config.critic_network or config.network
        self.critic = self.part("critic", StateValue, self.spec, network, normalizer=own, outputs=self.outputs)
        self.reward_normalizer = (
            RewardNormalizer(task.num, config.discount, objectives=self.outputs) if config.normalize_reward else None
        )
        self.source = Rollouts(task, config.window, self.ledger)
        self.recurrent = self.policy.recurrent or self.critic.recurrent
        self.recurrent_behavior = Valued(self.policy, self.critic) if self.recurrent else None
        self.adaptive_lr = config.adaptive_lr.build(config.lr) if config.adaptive_lr else None
        self.kl_penalty = config.kl_penalty.build() if config.kl_penalty else None
        self.old_policy = frozen_copy(self.policy) if self.adaptive_lr or self.kl_penalty else None
        self.make_optimizers()

    def check_policy(self) -> None:
        super().check_policy()
        if self.old_policy is not None:
            require(self.policy, Density, by=f"{self.slug} with an exact KL divergence")

    def make_optimizers(self) -> None:
        config = self.config
        common = {"lr": config.lr, "schedule": config.lr_schedule, "eps": config.adam_eps}
        self.optimizer = self.make_optimizer(self.policy, self.critic, max_grad_norm=config.max_grad_norm, **common)

    @property
    def behavior(self) -> Any:
        return self.recurrent_behavior or self.policy

    @torch.no_grad()
    def evaluate_window(self, batch: Batch) -> Batch:
        """Adds `value`, `advantage`, `returns` [N, T], computed once with the critic that starts the update."""
        batch = self.estimated(batch)
        if self.config.advantage_over == "batch":
            batch["advantage"] = standardize(batch["advantage"], batch["weight"])
        return batch

    def estimated(self, batch: Batch) -> Batch:
        """The same, with advantages as they are."""
        batch = weigh(batch)
        reward, ends = batch["reward"], (batch["terminated"], batch["truncated"])
        if self.reward_normalizer is not None:
            reward = self.reward_normalizer(reward, *ends, batch.get("mask", None))
        batch["value"], next_value = self.critic.values(batch)
        batch["advantage"], batch["returns"] = gae(
            reward, batch["value"], next_value, *ends, self.config.discount, self.config.gae_lambda
        )
        return batch

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.policy_terms(batch, *self.policy.score(batch))

    def policy_terms(self, batch: Batch, log_prob: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss, with the log-probabilities and entropies that the policy gives for the batch."""
        config, weight = self.config, batch["weight"]
        scale = config.clip_schedule(self.progress)
        loss, metrics = surrogate_loss(
            config.surrogate, log_prob, batch["log_prob"], batch["advantage"], weight, clip_scale=scale
        )
        entropy = decision_mean(entropy, weight)
        if config.entropy_coefficient:  # without it there is nothing to go back through
            loss = loss - config.entropy_coefficient * entropy
        if self.kl_penalty is not None:
            loss = loss + self.kl_penalty.value * self.kl_from_old(batch)
        return loss, metrics | {"entropy": entropy}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        clip = self.config.value_clip and self.config.value_clip * self.config.clip_schedule(self.progress)
        value = self.critic.value(batch)
        loss = value_loss(value, batch["returns"], batch["weight"], old_value=batch["value"], clip=clip)
        return loss, {"value_loss": loss}

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy_loss, metrics = self.policy_loss(batch)
        value_loss, value_metrics = self.value_loss(batch)
        return policy_loss + self.config.value_coefficient * value_loss, metrics | value_metrics

    def kl_from_old(self, batch: Batch) -> Tensor:
        """Exact KL(old || new), averaged over the batch."""
        old: Any = self.old_policy  # there is one when something asks for it
        return weighted_mean(old.kl(batch, self.policy), batch["weight"])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.evaluate_window(batch)
        if self.old_policy is not None:
            polyak_update(self.old_policy, self.policy, 1.0)
        metrics = self.improve(batch)
        explained = self.critic_fit(batch)
        self.policy.update_normalizer(batch)
        return metrics | {"explained_variance": explained}

    def critic_fit(self, batch: Batch) -> Tensor:
        """The explained variance of the critic that started the update."""
        return explained_variance(batch["value"], batch["returns"], batch["weight"])

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        """All optimizer steps on one evaluated window; returns the mean of their metrics."""
        config = self.config
        steps = []
        for minibatch in self.minibatches(batch):
            if self.adaptive_lr is not None:
                with torch.no_grad():
                    self.optimizer.lr = self.adaptive_lr.update(self.kl_from_old(minibatch))
            steps.append(self.step(minibatch))
            if config.target_kl is not None and steps[-1]["approx_kl"] > 1.5 * config.target_kl:
                break  # the one look at a number
        if self.kl_penalty is not None:
            with torch.no_grad():
                self.kl_penalty.update(self.kl_from_old(batch))
        return average(steps)

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        """What is learned of one minibatch."""
        return self.optimizer.minimize(self.total_loss, minibatch)

    def size_of_minibatches(self, decisions: int) -> int:
        """Decisions in one gradient step, where an update has so many."""
        return -(-decisions // self.config.minibatches)

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        """The minibatches of one update, each with weights that sum to 1 and advantages standardized."""
        for _ in range(self.config.epochs):
            yield from self.one_pass(batch)

    def one_pass(self, batch: Batch) -> Iterator[Batch]:
        """The minibatches of one epoch, in a new order."""
        size = self.size_of_minibatches(batch.batch_size.numel())
        columns = ("advantage",) if self.config.advantage_over == "minibatch" else ()
        batch = batch if self.recurrent else batch.exclude(*self.of_windows)
        return minibatches(batch, size, 1, self.generator, self.recurrent, columns)

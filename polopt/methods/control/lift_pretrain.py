"""The first stage of LIFT: SAC in many simulators at once.

Huang et al., "Towards Bridging the Gap between Large-Scale Pretraining and Efficient Finetuning for Humanoid Control",
2026, arXiv 2601.21363. Held by lift.py, and what its last stage is made of; no entry of its own.

Signs and sizes of all terms are those of SAC. `order` "release" takes every loss of an update at the weights from
before it, and the mean over critics in place of the sum:

    entropy      H = -log pi(a|s), of a draw of its own, constant
    temperature  temperature (H - target),  target = -entropy_share A;  here the other losses see what it became
    critic       mean_i E[ keep (Q_i(s, a) - y)^2 / 2 ],  keep = 1, or 0 where a time limit cut (`truncated` "skip")
    policy       E[ temperature log pi(a|s) - min_i Q_i(s, a) ]
    densities    in units of the task: log pi = log pi of [-1, 1] - sum_j log scale_j,  scale_j half a joint's range

Departs from the paper in: critics bootstrap at a time limit, whose true successor is known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.replay_source import ReplaySource
from polopt.losses.regression import regression
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer
from polopt.optim import Optimizer, polyak_update, whole
from polopt.policies import AnyPolicy, SquashedGaussian
from polopt.policies.base import Actor
from polopt.regularizers import Fixed, Learned
from polopt.regularizers.entropy import EntropyTemperature
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble


def make_actor(spec: Spec, config: ParallelSAC.Config) -> Actor:
    """The policy, which sees the entries `sees` of an observation. Raises UsageError for entries that it lacks."""
    seen = spec
    if config.sees:
        parts = spec.obs.spaces if isinstance(spec.obs, spaces.Dict) else {}
        for name in config.sees:
            if name not in parts:
                raise UsageError(f"the policy cannot see '{name}', which observations of {spec.name} do not have")
        seen = replace(spec, obs=spaces.Dict({name: parts[name] for name in config.sees}))
    normalizer = Normalizer(spec.obs) if config.normalize_obs else None
    return config.policy.build(seen, config.network, normalizer=normalizer)


def make_critic(spec: Spec, config: ParallelSAC.Config, policy: Any) -> QEnsemble:
    """Critics, which see all of an observation, as the policy's normalizer scales it."""
    normalizer = getattr(policy, "normalizer", None)
    return QEnsemble(spec, config.critic_network, members=config.critics, normalizer=normalizer)


class ParallelSAC(SAC):
    """SAC in many rows at once: some gradient steps on large batches after each step of all of them."""

    @dataclass(frozen=True)
    class Config(SAC.Config):
        discount: float = param(0.987, "official code", low=0, high=1)
        tau: float = param(
            0.024, "official code", above=0, high=1, help="share of the critics in the targets, per update"
        )
        lr: float = param(1.03e-4, "official code", above=0, help="of the policy")
        critic_lr: float = param(1.0e-4, "official code", above=0)
        weight_decay: float = param(1e-4, "official code", low=0, help="of AdamW, for all that is learned")
        batch_size: int = param(1024, "official code", low=1)
        warmup: int = param(8_192, "official code", low=1, unit="env_steps", help="of the first policy, at the start")
        updates_per_step: int = param(9, "official code", low=1, help="gradient steps per step of all rows together")
        order: str = param(
            "release",
            "official code",
            choices=("release", "sac"),
            help="release: all losses at the weights before the update, critics averaged; sac: as SAC has it",
        )
        truncated: str = param(
            "bootstrap",
            "polopt",
            choices=("bootstrap", "skip"),
            help="critics at a time limit; the official code skips",
        )
        entropy: Learned | Fixed = param(Learned(initial=0.035, lr=1e-2), "official code")
        entropy_share: float = param(
            0.5, "official code", low=0, help="target entropy: minus this times the action coordinates"
        )
        density: str = param(
            "task", "official code", choices=("task", "policy"), help="units of actions in which entropy is measured"
        )
        normalize_obs: bool = param(True, "official code", help="by the observations of all stages so far")
        sees: tuple[str, ...] = param(
            (), "official code", help="entries of a Dict observation that the policy sees, critics all; (): the same"
        )
        network: Network = param(Network((512, 256, 128), "silu"), "official code", help="of the policy")
        critic_network: Network = param(Network((1024, 512, 256), "silu"), "official code")
        policy: AnyPolicy = param(SquashedGaussian(log_std_low=-5.0), "official code")

        meaning = {"entropy.target_entropy": "none: minus `entropy_share` times the number of action coordinates"}

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("critic_network.head_gain", because="on a critic, whose last layer has scale 1")
            if isinstance(self.entropy, Fixed) or self.entropy.target_entropy is not None:
                self.refuse("entropy_share", because="where the entropy has no target, or another one")

    entry = False
    early: ClassVar[bool] = True  # whether the temperature moves before the other losses see it
    metrics_of = (SAC,)

    def build(self, task: Task) -> None:
        super().build(task)
        self.critic_optimizer.lr = self.config.critic_lr
        box: Any = self.spec.action
        wide = self.config.density == "task" and self.policy.unit
        self.log_scale = float(np.log((box.high - box.low) / 2).sum()) if wide else 0.0

    def make_policy(self, config: Any, **options: Any) -> Actor:
        return self.part("policy", make_actor, self.spec, self.config)

    def make_optimizer(self, *modules: Any, **options: Any) -> Optimizer:
        return super().make_optimizer(*modules, kind="adamw", weight_decay=self.config.weight_decay, **options)

    def make_critic(self) -> QEnsemble:
        return make_critic(self.spec, self.config, self.policy)

    def make_temperature(self) -> EntropyTemperature:
        entropy = self.config.entropy
        if isinstance(entropy, Learned) and entropy.target_entropy is None:
            entropy = replace(entropy, target_entropy=-self.config.entropy_share * self.spec.action_dim)
        return entropy.build(self.spec)

    def make_source(self, task: Task) -> ReplaySource:
        source = super().make_source(task)
        source.warmup_actor, source.store = None, self.seen
        source.ratio /= task.num
        return source

    def seen(self, window: Batch) -> Batch:
        """What is stored of a window, which the normalizer takes in."""
        self.policy.update_normalizer(window)
        return window

    def next_action(self, obs: Obs) -> tuple[Tensor, Tensor]:
        action, log_prob = super().next_action(obs)
        return action, log_prob - self.log_scale

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        return loss, metrics | {"entropy": metrics["entropy"] + self.log_scale * batch["weight"].sum()}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        target = batch["target"] if "target" in batch.keys() else self.target(batch)
        q = self.critic(batch["obs"], batch["action"])
        kept = weight * batch["truncated"].logical_not() if config.truncated == "skip" else weight
        loss = regression(q, target, kept) / (len(q) if config.order == "release" else 1)
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), weight)}

    @torch.no_grad()
    def measured_entropy(self, batch: Batch) -> Tensor:
        """Of a draw of its own, 0-d."""
        return weighted_mean(-self.next_action(batch["obs"])[1], batch["weight"])

    def tune(self, entropy: Tensor) -> None:
        """One step of the temperature."""
        if self.temperature.learned:
            self.temperature_optimizer.step(self.temperature.loss(entropy))

    @whole
    def update(self, batch: Batch) -> dict[str, Tensor]:
        if self.config.order == "sac":
            return super().update(batch)
        batch = weigh(batch)
        entropy = self.measured_entropy(batch)
        if self.early:
            self.tune(entropy)
        batch["target"] = self.target(batch)  # of the policy before its step, which uses the critics before theirs
        metrics = self.policy_optimizer.minimize(self.policy_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        if not self.early:
            self.tune(entropy)
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics | {"entropy_temperature": self.temperature.value}

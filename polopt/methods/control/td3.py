"""Twin Delayed Deep Deterministic policy gradient (TD3).

Fujimoto, van Hoof, Meger, "Addressing Function Approximation Error in Actor-Critic Methods", 2018, arXiv 1802.09477.

A deterministic policy that ascends its critic soon finds where the critic is wrong, and acts there. Three remedies:
targets take the smaller of two critics, the policy and all targets move less often than the critics, and targets are
averaged over actions near the target policy's.

With a replay batch (s, a, r, s'), target critics Q_targ and target policy pi_targ:

    smooth      a' = clip(pi_targ(s') + clip(noise, -target_noise_clip, target_noise_clip), -1, 1),
                noise ~ N(0, target_noise^2)
    target      y = reward + discount (1 - terminated) min_i Q_targ_i(s', a')
    critic      sum_i E[ (Q_i(s, a) - y)^2 ]
    policy      -E[ Q_1(s, pi(s)) ], gradient through the action, in every `delay`-th update
    targets     Q_targ <- tau Q + (1 - tau) Q_targ, pi_targ likewise, in the same updates
    act         clip(pi(s) + N(0, exploration_noise^2), -1, 1); uniform random actions during `warmup`

The critics and their target are `polopt.values.clipped`. All noise is in the units in which the policy acts, [-1, 1],
whatever the bounds of the action space.

Differs from DDPG, its base, in the three remedies: with `--critics 1 --target-noise 0 --delay 1` it is DDPG, with
noise that has no memory.

Departs from the paper in: the defaults, which are those of the authors' code since 2020 (networks, rates, batches; the
paper's are `--preset paper`); any policy whose samples pass gradients.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Method, Smoke, Study
from polopt.bases.off_policy import OffPolicy
from polopt.config import param
from polopt.core.batch import Batch, weigh
from polopt.core.errors import UsageError
from polopt.losses.pathwise import pathwise
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.optim import frozen_copy, polyak_update, whole
from polopt.policies import AnyPolicy, Deterministic
from polopt.policies.base import Reparameterized
from polopt.policies.wrappers import Noisy
from polopt.tasks.base import Task
from polopt.values.clipped import ClippedQ, smoothed
from polopt.values.critics import QEnsemble


class TwinDelayed(Method):
    """What learns from a batch, wherever that comes from: also recorded data (`td3_bc.py`)."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        discount: float = param(0.99, "official code", low=0, high=1)
        tau: float = param(0.005, "official code", above=0, high=1, help="share of critics and policy in their targets")
        lr: float = param(3e-4, "official code", above=0, help="of policy and critics")
        critics: int = param(2, "section 4.2", low=1, help="members of the critic ensemble")
        delay: int = param(2, "official code", low=1, unit="updates", help="of the critics per step of all else")
        target_noise: float = param(0.2, "official code", low=0, help="deviation of what is added to target actions")
        target_noise_clip: float = param(0.5, "official code", above=0, help="largest size of it")
        exploration_noise: float = param(0.1, "official code", low=0, help="deviation of what is added when acting")
        network: Network = param(Network((256, 256), "relu"), "official code")
        critic_network: Network | None = param(None, "official code", help="none: the same as the policy's")
        policy: AnyPolicy = param(Deterministic(), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.target_noise == 0:
                self.refuse("target_noise_clip", because="without target_noise")
            self.refuse("critic_network.head_gain", because="on a critic, whose last layer has scale 1")

    entry = False
    saved = ("updates",)
    requires: ClassVar[tuple[type, ...]] = (Reparameterized,)
    headline: ClassVar[tuple[str, ...]] = ("q", "critic_loss", "policy_loss")
    metrics = {
        "q": "mean action value of the batch, over critics | grows to the scale of the return; far above: "
        "overestimation",
        "critic_loss": "squared error, summed over critics | may grow with the returns",
        "policy_loss": "minus Q_1 of the policy's actions, in every `delay`-th update | falls as values rise; its "
        "level means nothing",
    }

    def build_learner(self, normalizer: Normalizer | None = None) -> None:
        """Policy, critics, the slow copies of both, and optimizers. Raises UsageError for a recurrent policy."""
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        if self.policy.recurrent:
            raise UsageError(f"{self.slug} draws single decisions, which a recurrent policy cannot learn from")
        self.target_policy = frozen_copy(self.policy)
        self.clipped = ClippedQ(self.part("critic", self.make_critic), discount=config.discount, tau=config.tau)
        self.explorer = Noisy(self.policy, config.exploration_noise)
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr)
        self.critic_optimizer = self.make_optimizer(self.clipped.critic, lr=config.lr)
        self.updates = 0

    def make_critic(self) -> QEnsemble:
        config, normalizer = self.config, getattr(self.policy, "normalizer", None)
        network = config.critic_network or config.network
        return QEnsemble(self.spec, network, members=config.critics, normalizer=normalizer)

    @property
    def behavior(self) -> Any:
        return self.explorer

    @torch.no_grad()
    def next_action(self, batch: Batch) -> Tensor:
        """a' [B, A]: of the target policy, smoothed."""
        config = self.config
        action, _ = self.target_policy.rsample(batch["next_obs"])
        return smoothed(action, config.target_noise, config.target_noise_clip, unit=self.policy.unit)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.clipped.critic_loss(batch)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        action, _ = self.policy.rsample(batch["obs"])
        loss = pathwise(self.clipped.first(batch["obs"], action), None, 0.0, batch["weight"])
        return loss, {"policy_loss": loss}

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the policy."""
        return self.policy_optimizer.minimize(self.policy_loss, batch)

    def evaluate_batch(self, batch: Batch) -> Batch:
        """Adds weights and targets: their noise is drawn before the batch may be split."""
        batch = weigh(batch)
        batch["next_action"] = self.next_action(batch)
        batch["target"] = self.clipped.target(batch, batch["next_action"])
        return batch

    def fit(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics."""
        return self.critic_optimizer.minimize(self.critic_loss, batch)

    @whole
    def step(self, batch: Batch, improving: bool) -> dict[str, Tensor]:
        """One step of the critics and, where `improving`, one of all else."""
        batch = self.evaluate_batch(batch)
        metrics = self.fit(batch)
        if improving:
            metrics |= self.improve(batch)
            self.clipped.follow()
            polyak_update(self.target_policy, self.policy, self.config.tau)
        return metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.updates += 1
        return self.step(batch, self.updates % self.config.delay == 0)


class TD3(TwinDelayed, OffPolicy):
    @dataclass(frozen=True)
    class Config(TwinDelayed.Config):
        batch_size: int = param(256, "official code", low=1)
        replay_size: int = param(1_000_000, "official code", low=1, unit="transitions")
        warmup: int = param(
            25_000, "official code", low=1, unit="env_steps", help="uniform random actions at the start"
        )
        steps_per_update: int = param(1, "official code", low=1, unit="env_steps", help="collected between updates")
        updates_per_step: int = param(1, "official code", low=1, help="gradient steps per environment step")
        n_step: int = param(1, "polopt", low=1, help="steps of reward before bootstrapping")

    slug = "td3"
    trains_on = "box actions"
    default_steps = 1_000_000
    presets = {
        "mujoco": {"warmup": 25_000},
        "paper": {"lr": 1e-3, "batch_size": 100, "warmup": 10_000, "network.sizes": (400, 300)},
        "paper-short": {"lr": 1e-3, "batch_size": 100, "warmup": 1_000, "network.sizes": (400, 300)},
        "stable-baselines3": {"lr": 1e-3, "warmup": 10_000, "network.sizes": (400, 300)},
        "pendulum": {"lr": 1e-3, "warmup": 1_000, "network.sizes": (64, 64)},
    }
    studies = {
        "mujoco": Study("HalfCheetah-v5", 1_000_000),
        "paper": Study("HalfCheetah-v5", 1_000_000),
        "paper-short": Study("Hopper-v5", 1_000_000),
        "stable-baselines3": Study("HalfCheetah-v5", 1_000_000),
    }
    no_limit = "its base, DDPG, is a setting of it and not in the catalogue"
    smoke = Smoke("Pendulum-v1", 96, {"warmup": 64, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000})

    def build(self, task: Task) -> None:
        self.build_learner()
        self.source = self.make_source(task)

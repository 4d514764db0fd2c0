"""TD3+BC: offline reinforcement learning by TD3 and one term more.

Fujimoto, Gu, "A Minimalist Approach to Offline Reinforcement Learning", 2021, arXiv 2106.06860.

The policy ascends its critic, as in TD3, and is drawn to the actions of the data, where the critic can be trusted. The
critic's values are divided by their mean size, so one weight serves rewards of any scale; observations are standardized
with the mean and the deviation of the dataset.

With a batch (s, a, r, s') of the dataset, critics and targets as in TD3 (../control/td3.py), and

    scale       lambda = alpha / E[ |Q_1(s, pi(s))| ], a constant
    policy      -lambda E[ Q_1(s, pi(s)) ] + E[ imitation_loss(s, a) ], in every `delay`-th update

where imitation_loss is (pi(s) - a)^2, its mean over the coordinates of the action. For policy and critics observations
become (s - mean) / (std + 0.001). With `--offline-updates N` the same losses go on online.

Differs from TD3, its base, in the second term, in lambda and in the dataset. With alpha 0 the policy is cloned (bc.py).

Departs from the paper in: any policy that can imitate and whose samples pass gradients, each imitating by its own loss.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.bases.offline import Offline
from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.losses.pathwise import pathwise
from polopt.losses.regression import imitation
from polopt.methods.control.td3 import TwinDelayed
from polopt.networks.normalizer import Normalizer
from polopt.policies.base import Imitates, Reparameterized, with_noise
from polopt.tasks.base import Task


class TD3BC(TwinDelayed, Offline):
    @dataclass(frozen=True)
    class Config(TwinDelayed.Config, Offline.Config):
        alpha: float = param(
            2.5, "section 5", low=0, help="weight of Q beside imitation, in units of its mean size; 0 clones"
        )
        normalize_obs: bool = param(True, "section 5", help="with the mean and deviation of the dataset")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.offline_updates is None:
                self.refuse("exploration_noise", because="without offline_updates: it never acts to learn")

    slug = "td3-bc"
    requires = (Reparameterized, Imitates)
    headline: ClassVar[tuple[str, ...]] = ("imitation_loss", "policy_q", "q", "critic_loss")
    trains_on = "recorded data, box actions, then the task itself if wanted"
    metrics = {
        "q": "mean Q at the data's actions, over critics | grows to the scale of the return",
        "policy_q": "mean Q_1 of the policy's actions, in every `delay`-th update | above `q` without running away "
        "from it: else a smaller alpha",
        "imitation_loss": "squared error of the policy's actions, over coordinates, in every `delay`-th update | "
        "falls, then settles",
        "policy_loss": "imitation minus lambda Q_1, in every `delay`-th update | its level means nothing",
    }
    presets = {name: {"alpha": 2.5} for name in ("halfcheetah", "hopper", "walker2d")}
    studies = {name: Study(f"mujoco/{name}/medium-v0", 1_000_000) for name in presets}
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            "bc",
            at={"dataset": "random", "alpha": 0.0, "delay": 1, "normalize_obs": False, "lr": 1e-3},
            apart={"alpha": 2.5},
            because="without Q the policy only imitates",
            base_at={"policy": "deterministic"},
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
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )

    def build(self, task: Task) -> None:
        normalizer = Normalizer(self.spec.obs, clip=math.inf, epsilon=0.0, floor=1e-3)
        self.build_learner(normalizer if self.config.normalize_obs else None)

    @torch.no_grad()
    def scale(self, batch: Batch) -> Tensor:
        """lambda of a whole batch, 0-d: for losses that see it in pieces."""
        action, _ = self.policy.rsample(batch["obs"])
        return self.scale_of(self.clipped.first(batch["obs"], action), batch["weight"])

    def scale_of(self, q: Tensor, weight: Tensor) -> Tensor:
        """alpha / E|q|, 0-d and without gradient, of values [B]."""
        size = weighted_mean(q.detach().abs(), weight)
        return self.config.alpha / size.clamp_min(torch.finfo(size.dtype).eps)

    def attractor(self, batch: Batch, action: Tensor) -> tuple[Batch, Tensor | None, dict[str, Tensor]]:
        """What the policy is drawn to where it does `action` [B, A]: a batch of decisions to imitate, how strongly in
        each row [B] (None: all alike), and metrics. For methods that are drawn elsewhere."""
        return batch, None, {}

    def policy_loss(self, batch: Batch, scale: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        action, _ = self.policy.rsample(batch["obs"])
        q = self.clipped.first(batch["obs"], action)
        scale = self.scale_of(q, weight) if scale is None else scale
        imitated, strength, metrics = self.attractor(batch, action)
        error = self.policy.imitation_loss(imitated, batch.get("noise", None))
        imitation_loss = imitation(error, weight, strength)
        loss = scale * pathwise(q, None, 0.0, weight) + imitation_loss
        metrics |= {"policy_loss": loss, "imitation_loss": imitation_loss, "policy_q": weighted_mean(q, weight)}
        return loss, metrics

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the policy, towards what has value and towards the attractor."""
        batch = with_noise(self.policy, batch)
        shared = {} if self.config.micro_batch is None else {"scale": self.scale(batch)}
        return self.policy_optimizer.minimize(self.policy_loss, batch, **shared)

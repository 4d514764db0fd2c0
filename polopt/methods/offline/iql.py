"""Implicit Q-Learning: offline reinforcement learning that never asks about an action outside the dataset.

Kostrikov, Nair, Levine, "Offline Reinforcement Learning with Implicit Q-Learning", 2021, arXiv 2110.06169.

The maximum over actions in Q-learning is replaced by an upper expectile over the actions that the data have in a
state; Q itself is backed up through V(s') by ordinary least squares, which averages over luck in the transitions. The
policy is extracted by advantage-weighted cloning and never feeds back into the values.

With a batch (s, a, r, s') of the dataset, target critics Q_targ, u = min_i Q_targ_i(s, a) - V(s):

    value       E[ |expectile - 1(u < 0)| u^2 ]                                              equation 5
    critic      sum_i E[ (r + discount (1 - terminated) V(s') - Q_i(s, a))^2 / 2 ]           equation 6
    policy      -E[ min(exp(advantage_temperature u), weight_clip) log pi(a|s) ]             equation 7
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

The first two are `polopt.values.in_sample`. With expectile 0.5 this is one step of policy improvement over the
behavior; as it goes to 1, in-support Q-learning. With `--offline-updates N` the same losses go on online.

Differs from behavioral cloning (bc.py) in the weight of each decision.

Departs from the paper in: any policy that can imitate, also diffusion and flow (weighted by the same factor) and, with
`--policy auto`, discrete actions; half the squared error in the critic; critics whose last layer has gain 1; online
rewards are scaled as those of the dataset, where the released code scales the dataset's alone.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.bases.offline import Offline
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.losses.regression import imitation
from polopt.networks import Network
from polopt.optim import whole
from polopt.policies import AnyPolicy, Gaussian
from polopt.policies.base import Imitates, with_noise
from polopt.tasks.base import Task
from polopt.values.in_sample import InSample


def advantage_weight(advantage: Tensor, temperature: float, clip: float) -> Tensor:
    """min(exp(temperature * advantage), clip), shaped like `advantage` and without gradient."""
    return (temperature * advantage.detach()).exp().clamp_max(clip)


def weighted_cloning(
    policy: Any, batch: Batch, advantage: Tensor, temperature: float, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Equation 7, with `advantage` [B] of the batch's decisions; and what describes it."""
    factor, weight = advantage_weight(advantage, temperature, clip), batch["weight"]
    loss = imitation(policy.imitation_loss(batch, batch.get("noise", None)), weight, factor)
    return loss, {
        "policy_loss": loss,
        "advantage": weighted_mean(advantage, weight),
        "advantage_weight": weighted_mean(factor, weight),
        "clip_fraction": weighted_mean((factor >= clip).to(factor.dtype), weight),
    }


class IQL(Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        discount: float = param(0.99, "appendix B", low=0, high=1)
        expectile: float = param(0.7, "appendix B", above=0, below=1, help="0.5: mean over the data's actions; 1: best")
        advantage_temperature: float = param(
            3.0, "appendix B", low=0, unit="1 / return", help="the paper's beta, an inverse temperature; 0 clones"
        )
        weight_clip: float = param(100.0, "official code", above=0, help="largest weight of a decision")
        tau: float = param(0.005, "appendix B", above=0, high=1, help="share of the critics in the targets, per update")
        lr: float = param(3e-4, "appendix B", above=0, help="of policy, critics and value")
        policy_lr_schedule: Constant | Linear | Cosine = param(Cosine(), "appendix B", help="constant for fine-tuning")
        policy_dropout: float = param(0.0, "appendix B", low=0, below=1, help="in the policy's network")
        critics: int = param(2, "appendix B", low=1, help="members of the critic ensemble")
        network: Network = param(
            Network((256, 256), "relu", init="orthogonal", head_gain=2**0.5), "official code", help="of all three"
        )
        policy: AnyPolicy = param(Gaussian(mean="tanh", log_std_low=-5.0, log_std_high=2.0), "official code")

    slug = "iql"
    requires = (Imitates,)
    headline = ("value", "advantage", "policy_loss", "critic_loss")
    trains_on = "recorded data, then the task itself if wanted"
    metrics = {
        "value": "mean of V over the batch | grows to the scale of the (scaled) return",
        "q": "mean of Q at the data's actions, over critics | near `value`; V is above the mean of Q where `expectile` "
        "is above 0.5",
        "value_loss": "expectile loss of V | falls, then settles",
        "critic_loss": "half the squared error of Q, summed over critics | falls, then settles",
        "advantage": "mean of min Q - V | slightly below 0 with an expectile above 0.5",
        "advantage_weight": "mean of min(exp(beta advantage), clip) | of the order of 1; near 0 or at the clip: scale "
        "the rewards (`--rewards`)",
        "clip_fraction": "share of decisions whose weight is clipped | small",
        "policy_loss": "weighted -log pi of the data's actions",
    }
    presets = {
        "locomotion": {"expectile": 0.7, "advantage_temperature": 3.0, "rewards": "return-range"},
        "antmaze": {"expectile": 0.9, "advantage_temperature": 10.0, "rewards": "minus-one"},
        "kitchen": {"expectile": 0.7, "advantage_temperature": 0.5, "policy_dropout": 0.1},
        "adroit": {"expectile": 0.7, "advantage_temperature": 0.5, "policy_dropout": 0.1},
    }
    limits = (
        Limit(
            "bc",
            at={
                "dataset": "random",
                "advantage_temperature": 0.0,
                "policy": "auto",
                "lr": 1e-3,
                "policy_lr_schedule": "constant",
            },
            apart={"advantage_temperature": 1.0},
            because="with temperature 0 every decision has weight 1",
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
            "rewards": "return-range",
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )

    def build(self, task: Task) -> None:
        config = self.config
        if config.network.recurrent != "none":
            raise UsageError("iql draws single decisions, which a recurrent network cannot learn from")
        network = replace(config.network, dropout=config.policy_dropout or config.network.dropout)
        self.policy = self.make_policy(config.policy, network=network)
        self.in_sample = InSample(
            self.spec,
            config.network,
            expectile=config.expectile,
            discount=config.discount,
            tau=config.tau,
            members=config.critics,
        )
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr, schedule=config.policy_lr_schedule)
        self.value_optimizer = self.make_optimizer(self.in_sample.value, lr=config.lr)
        self.critic_optimizer = self.make_optimizer(self.in_sample.critic, lr=config.lr)

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.in_sample.value_loss(batch)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.in_sample.critic_loss(batch)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        advantage = self.in_sample.advantage(batch)
        return weighted_cloning(self.policy, batch, advantage, config.advantage_temperature, config.weight_clip)

    @whole
    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = with_noise(self.policy, weigh(batch))
        batch["target_q"] = self.in_sample.q(batch)
        metrics = self.value_optimizer.minimize(self.value_loss, batch)
        metrics |= self.policy_optimizer.minimize(self.policy_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        self.in_sample.follow()
        return metrics

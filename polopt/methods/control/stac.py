"""Stochastic Actor-Critic (STAC).

Ozalp, "Stochastic Actor-Critic: Mitigating Overestimation via Temporal Aleatoric Uncertainty", 2026; official code
ugurcanozalp/rl-warehouse, official runs ugurcanozalp/stochastic-actor-critic.

ONE critic says a Gaussian N(mean, std) of the target of the next step. The target holds no sampled return and no std of
the target critic's own, so std is how much a single step is uncertain (reward, next state, next action), not how much
the return is, and not what networks disagree about. Pessimism, `pessimism` (beta) standard deviations, is in the target
AND in what the policy ascends. In a world that is random this makes the policy averse to risk, at the price of return.

With replay batch (s, a, r, s'), a' ~ pi(.|s') of the current policy, target critic (mean_targ', std_targ') at (s', a'):

    target      y = r + discount (1 - terminated) (mean_targ' - beta std_targ' - temperature log pi(a'|s'))
    critic      E[ ((y - mean(s, a)) / std(s, a))^2 / 2 + log std(s, a) ],   std = softplus(max(raw, -5))
    policy      E[ temperature log pi(a|s) - (mean(s, a) - beta std(s, a)) ],   a = rsample(s)
    temperature temperature <- temperature exp(lr temperature (target_entropy - entropy))
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

The gradient of the critic goes into both heads as it is. The temperature's step is one of plain gradient descent on
its logarithm (`--temperature-step adam` is SAC's). Hidden layers are Linear, Dropout, LayerNorm, ReLU; dropout
(`critic_dropout`, `policy_dropout`) is on wherever something is learned, targets included, and while experience is
collected, and off in evaluations.

Differs from SAC in: the critic and its loss, and pessimism in place of the smaller of two critics.
Also in the paper: two such critics whose smaller mean counts (ESTAC: `--critics 2 --pessimism 0`).

Departs from the paper in: the policy's standard deviation is an exponential, as in SAC, and not a softplus; the first
actions are uniform, and not the tanh of normal ones; evaluations take the tanh of the mean, and not the mean of ten
samples.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polopt.config import param
from polopt.core.batch import Batch, same_shape, weighted_mean
from polopt.core.errors import UsageError
from polopt.methods.control.sac import SAC
from polopt.methods.control.stac_settings import STACSettings
from polopt.networks import Network
from polopt.networks.dropping import drop_before_normalization, dropping
from polopt.networks.encoders import Obs
from polopt.networks.layers import MLP
from polopt.regularizers import Fixed, Learned
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble

LEAST_STD = math.log1p(math.exp(-5.0))
"""The softplus of -5."""


def gaussian_nll(target: Tensor, mean: Tensor, std: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * -log N(target; mean, std), without log(2 pi) / 2; `mean` and `std` are [E, B] and are summed over
    E, `target` and `weight` [B]. The gradient goes into both moments and not into the target."""
    same_shape(target=target, weight=weight, mean_of_a_member=mean[0], std_of_a_member=std[0])
    return (weight * (0.5 * ((target.detach() - mean) / std).square() + std.log())).sum()


class STAC(STACSettings, SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        pessimism: float = param(0.25, "official runs: Ant-v4", low=0, help="beta: so many standard deviations")
        std: float | None = param(None, "polopt", above=0, help="the critic's, held at this in place of learned")
        critics: int = param(1, "section 4", low=1, help="members of the critic ensemble")
        critic_dropout: float = param(0.0, "official code", low=0, below=1, help="before each layer normalization")
        policy_dropout: float = param(0.0, "official code", low=0, below=1, help="before each layer normalization")
        temperature_step: str = param(
            "sgd", "official code", choices=("sgd", "adam"), help="how the logarithm of the temperature moves"
        )
        entropy: Learned | Fixed = param(Learned(initial=0.2), "official code")
        network: Network = param(Network(sizes=(256, 256), activation="relu", normalization="layer"), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if isinstance(self.entropy, Fixed):
                self.refuse("temperature_step", because="with a fixed temperature")
            if self.network.dropout:
                raise UsageError("stac has dropout before the normalization: critic_dropout and policy_dropout")

    slug = "stac"

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        if config.policy_dropout:
            drop_before_normalization(self.policy.net, config.policy_dropout)
        if self.temperature.learned and config.temperature_step == "sgd":
            lr = config.entropy.lr or config.lr
            self.temperature_optimizer = self.make_optimizer(self.temperature, lr=lr, kind="sgd")

    def make_critic(self) -> QEnsemble:
        config = self.config
        head = "gaussian" if config.std is None else "scalar"
        critic = QEnsemble(self.spec, config.network, members=config.critics, head=head)
        trunk = critic.network.trunk
        if head == "gaussian" and isinstance(trunk, MLP):
            last: Any = trunk.head
            with torch.no_grad():
                last.bias[..., 1] = 0.0
        if config.critic_dropout:
            drop_before_normalization(critic.network, config.critic_dropout)
        return critic

    def moments(self, critic: nn.Module, obs: Obs, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a critic, each [E, B]."""
        if self.config.std is not None:
            mean = critic(obs, action)
            return mean, torch.full_like(mean, self.config.std)
        mean, std = critic(obs, action)
        return mean, std.clamp(min=LEAST_STD)

    def pessimistic(self, critic: nn.Module, obs: Obs, action: Tensor) -> Tensor:
        """mean - beta std, [E, B]."""
        mean, std = self.moments(critic, obs, action)
        return mean - self.config.pessimism * std

    def target_values(self, obs: Obs, action: Tensor) -> Tensor:
        return self.pessimistic(self.target_critic, obs, action)

    def action_values(self, obs: Obs, action: Tensor) -> Tensor:
        return self.pessimistic(self.critic, obs, action)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        target = self.target(batch)
        mean, std = self.moments(self.critic, batch["obs"], batch["action"])
        loss = gaussian_nll(target, mean, std, batch["weight"])
        q, spread = (weighted_mean(value.mean(0), batch["weight"]) for value in (mean, std))
        return loss, {"critic_loss": loss, "q": q, "std": spread}

    def collect(self) -> Batch:
        with dropping(self.policy):
            return super().collect()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        with dropping(self.policy, self.critic, self.target_critic):
            return super().update(batch)

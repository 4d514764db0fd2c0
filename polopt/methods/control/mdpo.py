"""Mirror Descent Policy Optimization, on-policy (`mdpo`) and off-policy (`mdpo-off`).

Tomar, Shani, Efroni and Ghavamzadeh, "Mirror Descent Policy Optimization", 2020, arXiv 2005.09814.

Iteration k is a step of mirror descent: the linearized return minus a divergence from the policy pi_k with which the
iteration started is maximized, and that only roughly, by m gradient steps with pi_k frozen.

    proximal    pi_{k+1} ~ argmax_pi  E_{s ~ rho_k}[ E_{a ~ pi}[A_k(s, a)] - KL(pi || pi_k) / t_k ]     NEW first
    solution    pi_k exp(t_k A_k) / Z, which m = `inner_steps` gradient steps or `refresh` environment steps approach
    t_k         max(1 - k / K, 1 / K) / `proximity` in iteration k of K;  max(...) is `step_size`, pi_k `old_policy`

On-policy, with the whole window in every inner step and nothing clipped; the critic learns by itself afterwards. At
pi = pi_k the divergence has no gradient: a single inner step is the plain policy gradient, whatever t_k.

    policy      E[ -ratio advantage ] + KL(pi || pi_k) / t_k,   ratio = pi(a|s) / pi_k(a|s),   KL in closed form
    `tsallis_q` q: for KL, E[ ratio (log_{2-q} pi - log_{2-q} pi_k) ] with log_p(x) = (x^(1-p) - 1) / (1 - p)
    value       `value_coefficient` times PPO's clipped loss, `epochs` passes of `minibatches`

Off-policy, with lambda the `entropy` temperature, c = `proximity` = 1 / t_k constant, a = rsample(s):

    policy      E[ c log pi(a|s) + (lambda - c) log pi_k(a|s) - Q_1(s, a) ]       gradient through a in all three
    critic      sum_i E[ (Q_i(s, a) - y)^2 / 2 ],   y = reward + discount (1 - terminated) V_targ(s')
    value       E[ (V(s) - min_i Q_i(s, a) + lambda log pi(a|s))^2 / 2 ],   through V alone

Differs from PPO in: full-batch steps on KL(new || old) in place of the clip; policy and critic have optimizers apart.
Differs from SAC in: the term of pi_k, which c = lambda takes away, and the value network (`--no-value-network`).

Departs from the paper in: off-policy, actions that explore are sampled (the released code acts on the mean) and critics
move before the policy, as in SAC. The ratio stands in the Tsallis term: the released code leaves it out, and then
actions of pi_k estimate -KL(pi_k || pi), which pushes away. Q_1 alone in the policy loss is the released code's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, weighted_mean
from polopt.losses import Surrogate
from polopt.losses.pathwise import pathwise
from polopt.losses.regression import regression
from polopt.methods.control.mdpo_settings import MDPOSettings, OffPolicyMDPOSettings
from polopt.methods.control.ppo import PPO
from polopt.methods.control.sac import SAC
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.base import Density
from polopt.regularizers import Fixed, Learned
from polopt.regularizers.proximity import exact_proximity, reparameterized_proximity, sampled_proximity
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble, StateValue
from polopt.values.targets import reduce_members, soft_value


class MDPO(MDPOSettings, PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(1, "official code", low=1)
        window: int = param(2048, "official code", low=1, help="steps of every environment copy per iteration")
        inner_steps: int = param(10, "official code", low=1, help="m, full-batch gradient steps per iteration")
        proximity: float = param(1.0, "official code", low=0, help="1 / t at the start; 0: no divergence")
        step_schedule: Constant | Linear | Cosine = param(Linear(), "official code", help="of t, at least 1 / K")
        tsallis_q: float = param(1.0, "official code", low=1, high=2, help="1: KL(new || old) in closed form")
        epochs: int = param(5, "official code", low=1, help="passes of the critic over the window")
        minibatches: int = param(16, "official code: 128 of 2048", low=1, help="minibatches of the critic per pass")
        surrogate: Surrogate = param(Surrogate(keep="all"), "official code", help="no ratio is clipped")
        value_coefficient: float = param(2.0, "official code", low=0, help="on the critic's own loss (2: no half)")
        entropy_coefficient: float = param(0.0, "official code", low=0)
        advantage_over: str = param("batch", "official code", choices=("batch", "none"), help="standardize over")
        lr: float = param(3e-4, "official code", above=0, help="of policy and critic, each with its own Adam")
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        normalize_obs: bool = param(True, "official code", help="running mean and std, clipped at 10")
        normalize_reward: bool = param(True, "official code", help="divide by the running std of returns")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.proximity == 0:
                self.refuse("step_schedule", "tsallis_q", because="at proximity 0, without a divergence")

    slug = "mdpo"
    saved = ("iterations",)
    requires = (Density,)

    def build(self, task: Task) -> None:
        super().build(task)
        self.iterations = 0  # k
        self.old_policy = frozen_copy(self.policy)

    def make_optimizers(self) -> None:
        config = self.config
        common = {"lr": config.lr, "schedule": config.lr_schedule, "eps": config.adam_eps}
        self.optimizer = self.make_optimizer(self.policy, max_grad_norm=config.max_grad_norm, **common)
        self.value_optimizer = self.make_optimizer(self.critic, **common)

    @property
    def step_size(self) -> float:
        """t_k in units of 1 / proximity. K, the number of iterations in the budget, is k / progress."""
        least = self.progress / self.iterations if self.iterations else 1.0
        return max(self.config.step_schedule(self.progress), least)

    def divergence(self, batch: Batch) -> Tensor:
        """From the old policy, averaged over the batch; the new policy comes first."""
        if self.config.tsallis_q == 1:
            return exact_proximity(self.policy, self.old_policy, batch)
        return sampled_proximity(self.policy.log_prob(batch), batch["log_prob"], batch["weight"], self.config.tsallis_q)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        divergence = self.divergence(batch)
        return loss + self.config.proximity / self.step_size * divergence, metrics | {"divergence": divergence}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().value_loss(batch)
        return self.config.value_coefficient * loss, metrics

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the inner steps: the critic has its own."""
        return self.policy_loss(batch)

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        """The whole batch in every inner step."""
        return repeat(batch if self.policy.recurrent else batch.reshape(-1), self.config.inner_steps)

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().improve(batch) | {"step_size": batch["weight"].new_tensor(self.step_size)}
        parts = super().minibatches(batch)
        values = average([self.value_optimizer.minimize(self.value_loss, part) for part in parts])
        self.iterations += 1
        return metrics | values


class OffPolicyMDPO(OffPolicyMDPOSettings, SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        proximity: float = param(1.0, "official code", low=0, help="c = 1 / t, weight of KL(new || old)")
        refresh: int = param(1000, "official code", low=1, unit="env_steps", help="m, steps between copies to pi_k")
        value_network: bool = param(True, "official code", help="bootstrap from V; no: from the critics, as in SAC")
        moment_penalty: float = param(1e-3, "official code", low=0, help="on mean^2 + log_std^2 of the Gaussian")
        policy_critic: str = param("first", "official code", choices=("first", "min", "mean"), help="in its loss")
        entropy: Learned | Fixed = param(Fixed(0.2), "official code", help="lambda")

    slug = "mdpo-off"
    saved = ("refreshes",)
    critic: Any  # the Q functions and, as their attribute `state_value`, V: one optimizer and one target for both
    target_critic: Any

    def build(self, task: Task) -> None:
        super().build(task)
        self.refreshes = 0
        self.old_policy = frozen_copy(self.policy)

    def make_critic(self) -> QEnsemble:
        critic = super().make_critic()
        if self.config.value_network:
            critic.state_value = StateValue(self.spec, self.config.network)
        return critic

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        if not self.config.value_network:
            return super().target(batch)
        next_value = self.target_critic.state_value(batch["next_obs"])
        return self.soft_target(batch, next_value, None)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().critic_loss(batch)
        if not self.config.value_network:
            return loss, metrics
        with torch.no_grad():
            action, log_prob = self.policy.rsample(batch["obs"])
            q = reduce_members(self.critic(batch["obs"], action), "min")
            target = soft_value(q, log_prob, self.temperature.value)
        value_loss = regression(self.critic.state_value(batch["obs"]), target, batch["weight"])
        return loss + value_loss, metrics | {"value_loss": value_loss}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight, temperature = self.config, batch["weight"], self.temperature.value
        own = self.policy.decide(batch)
        log_prob, old_log_prob = own["log_prob"], self.old_policy.log_prob(own)
        q = self.action_values(batch["obs"], own["action"])
        q = q[0] if config.policy_critic == "first" else reduce_members(q, config.policy_critic)
        # lambda log pi - Q + (c - lambda) (log pi - log pi_k) = c log pi + (lambda - c) log pi_k - Q
        divergence = reparameterized_proximity(log_prob, old_log_prob, weight)
        loss = pathwise(q, log_prob, temperature, weight) + (config.proximity - temperature) * divergence
        if config.moment_penalty > 0:
            mean, log_std = self.policy.moments(batch)
            loss = loss + config.moment_penalty * weighted_mean((mean.square() + log_std.square()).mean(-1), weight)
        return loss, {"policy_loss": loss, "entropy": weighted_mean(-log_prob, weight), "divergence": divergence}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        refreshes = self.ledger.env_steps // self.config.refresh
        if refreshes > self.refreshes:
            self.refreshes = refreshes
            polyak_update(self.old_policy, self.policy, 1.0)
        return metrics

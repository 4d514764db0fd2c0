"""Mirror Descent Policy Optimization, on-policy (`mdpo`) and off-policy (`mdpo-off`).

Tomar, Shani, Efroni and Ghavamzadeh, "Mirror Descent Policy Optimization", 2020, arXiv 2005.09814.

Each iteration k is a step of mirror descent: maximize the linearized return minus a divergence from the policy pi_k that
the iteration started with. This proximal problem is solved only roughly, by m gradient steps with pi_k frozen.

    proximal    pi_{k+1} ~ argmax_pi  E_{s ~ rho_k}[ E_{a ~ pi}[A_k(s, a)] - KL(pi || pi_k) / t_k ]     NEW first
    solved by   pi_k exp(t_k A_k) / Z, which m = `inner_steps` (on) or `refresh` (off) steps approach
    t_k         `step_size` = max(1 - k / K, 1 / K) / `proximity` in iteration k of K
    pi_k        `old_policy`

On-policy, on the whole window in each of the `inner_steps`, nothing clipped; then the critic, by itself:

    policy      E[ -ratio advantage ] + KL(pi || pi_k) / t_k,   ratio = pi(a|s) / pi_k(a|s);  KL in closed form
    `tsallis_q` q: KL becomes E[ ratio (log_{2-q} pi - log_{2-q} pi_k) ], log_p(x) = (x^(1-p) - 1) / (1 - p)
    value       `value_coefficient` times PPO's clipped loss, `epochs` times over `minibatches`

At pi = pi_k the divergence has no gradient: one inner step is the plain policy gradient, whatever t_k is.

Off-policy, lambda = `entropy` temperature and c = `proximity` = 1 / t_k constant, a = rsample(s):

    policy      E[ c log pi(a|s) + (lambda - c) log pi_k(a|s) - Q_1(s, a) ]       gradient through a in all three
    critic      y = reward + discount (1 - terminated) V_targ(s'),    sum_i E[ (Q_i(s, a) - y)^2 / 2 ]
    value       E[ (V(s) - min_i Q_i(s, a) + lambda log pi(a|s))^2 / 2 ],   y and V's target constant

Differs from PPO in: many full-batch steps against KL(new || old) in place of the clip, and a separate critic optimizer.
Differs from SAC in: the term of the old policy (c = lambda is SAC), and the value network (`--no-value-network`).

Departs from the paper in: actions that explore off-policy are sampled (the released code acts on the mean), and the
critics move before the policy, as in SAC. The ratio stands in the Tsallis term, without which sampled actions of pi_k
estimate -KL(pi_k || pi) and push away; the released code leaves it out. The value targets take the minimum of the two
critics and the policy only the first one, as in the released code: `--policy-critic min` takes it in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, weighted_mean
from polopt.losses import Surrogate
from polopt.losses.pathwise import pathwise
from polopt.losses.regression import regression
from polopt.method import Limit, Smoke
from polopt.methods.control.ppo import PPO
from polopt.methods.control.sac import SAC
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.base import Density, Reparameterized
from polopt.regularizers import Fixed, Learned
from polopt.regularizers.proximity import exact_proximity, reparameterized_proximity, sampled_proximity
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble, StateValue
from polopt.values.targets import reduce_members, soft_value, td_target

PLAIN_PPO = {"minibatches": 1, "max_grad_norm": None, "entropy_coefficient": 0.0}  # one step per epoch, nothing clipped
AS_PLAIN_PPO = PLAIN_PPO | {
    "value_coefficient": 0.5,
    "lr": 2.5e-4,
    "lr_schedule": "linear",
    "normalize_obs": False,
    "normalize_reward": False,
}


class MDPO(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(1, "official code", low=1)
        window: int = param(2048, "official code", low=1, help="steps of every environment copy per iteration")
        inner_steps: int = param(10, "official code", low=1, help="m, full-batch gradient steps per iteration")
        proximity: float = param(1.0, "official code", low=0, help="1 / t at the start; 0: no divergence")
        step_schedule: Constant | Linear | Cosine = param(Linear(), "section 5.1", help="factor on t, at least 1 / K")
        tsallis_q: float = param(1.0, "section 5.3", low=1, high=2, help="1: KL(new || old) in closed form")
        epochs: int = param(5, "official code", low=1, help="passes of the critic over the window")
        minibatches: int = param(16, "official code: 128 of 2048", low=1, help="minibatches of the critic per pass")
        surrogate: Surrogate = param(Surrogate(keep="all"), "section 5.1", help="no ratio is clipped")
        value_coefficient: float = param(2.0, "official code", low=0, help="on the critic's own loss (2: no half)")
        entropy_coefficient: float = param(0.0, "official code", low=0)
        advantage_over: str = param("batch", "official code", choices=("batch", "none"), help="standardize over")
        lr: float = param(3e-4, "official code", above=0, help="of policy and critic, each with its own Adam")
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        max_grad_norm: float | None = param(0.5, "official code", above=0, help="of the policy; the critic has none")
        normalize_obs: bool = param(True, "official code", help="running mean and std, clipped at 10")
        normalize_reward: bool = param(True, "official code", help="divide by the running std of returns")

    slug = "mdpo"
    requires = (Density,)
    headline = ("entropy", "proximity", "step_size", "explained_variance")
    default_steps = 1_000_000
    presets = {
        "classic": {"window": 512, "lr": 1e-3, "minibatches": 4, "normalize_obs": False, "normalize_reward": False}
    }
    limits = (
        Limit(
            base="ppo",
            at=AS_PLAIN_PPO | {"inner_steps": 1, "epochs": 1},
            apart={"inner_steps": 2},
            because="the first inner step has no divergence yet: it is the plain policy gradient, as PPO's first step is; "
            "equal up to rounding, since PPO shuffles the rows and the softmax divergence is 0 up to rounding",
            base_at=PLAIN_PPO | {"epochs": 1},
            tolerance=1e-10,
        ),
        Limit(
            base="ppo",
            at=AS_PLAIN_PPO | {"inner_steps": 3, "epochs": 3, "proximity": 0.0},
            apart={"proximity": 1.0},
            because="without the divergence, m inner steps are m full-batch epochs of PPO without clipping; equal up to "
            "rounding, since PPO shuffles the rows",
            base_at=PLAIN_PPO | {"epochs": 3, "surrogate.keep": "all"},
            tolerance=1e-10,
        ),
    )
    smoke = Smoke(
        "CartPole-v1",
        192,
        {"envs": 2, "window": 32, "inner_steps": 3, "minibatches": 2, "epochs": 2, "network.sizes": (16,)},
    )
    saved = ("iterations",)

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
        """Mirror-descent step size t_k, in units of 1 / proximity; K is the number of iterations in the budget."""
        one_of_all = self.progress / self.iterations if self.iterations else 1.0  # 1 / K
        return max(self.config.step_schedule(self.progress), one_of_all)

    def proximity(self, batch: Batch) -> Tensor:
        """Divergence of the policy from the old one, averaged over the batch; the new policy comes first."""
        if self.config.tsallis_q == 1:
            return exact_proximity(self.policy, self.old_policy, batch)
        log_prob = self.policy.log_prob(batch)
        return sampled_proximity(log_prob, batch["log_prob"], batch["weight"], self.config.tsallis_q)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        proximity = self.proximity(batch)
        return loss + self.config.proximity / self.step_size * proximity, metrics | {"proximity": proximity}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().value_loss(batch)
        return self.config.value_coefficient * loss, metrics

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the inner steps: the critic has steps of its own."""
        return self.policy_loss(batch)

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().improve(batch) | {"step_size": batch["weight"].new_tensor(self.step_size)}
        parts = super().minibatches(batch)
        values = [self.value_optimizer.minimize(self.value_loss, part) for part in parts]
        self.iterations += 1
        return metrics | average(values)

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        """The whole batch, once per inner step."""
        return repeat(batch if self.policy.recurrent else batch.reshape(-1), self.config.inner_steps)


class SoftCritics(QEnsemble):
    """Action values Q_i, and beside them the state value V that they bootstrap from."""

    def __init__(self, spec, network, members) -> None:
        super().__init__(spec, network, members=members)
        self.state_value = StateValue(spec, network)


class OffPolicyMDPO(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        proximity: float = param(1.0, "official code", low=0, help="c = 1 / t, weight of KL(new || old)")
        refresh: int = param(1000, "official code", low=1, unit="env_steps", help="m, steps between copies to pi_k")
        value_network: bool = param(True, "official code", help="bootstrap from V; no: from the critics, as SAC does")
        moment_penalty: float = param(1e-3, "official code", low=0, help="on mean^2 and log_std^2 of the Gaussian")
        policy_critic: str = param(
            "first", "official code", choices=("first", "min", "mean"), help="reduction in the policy loss"
        )
        entropy: Learned | Fixed = param(Fixed(0.2), "official code", help="lambda")

    slug = "mdpo-off"
    requires = (Reparameterized, Density)
    headline = ("entropy", "proximity", "q", "critic_loss")
    presets = {"pendulum": {"warmup": 1_000, "refresh": 200, "network.sizes": (64, 64)}}
    limits = (
        Limit(
            base="sac",
            at={
                "proximity": 1.0,
                "entropy": "fixed",
                "entropy.value": 1.0,
                "value_network": False,
                "moment_penalty": 0.0,
                "policy_critic": "min",
            },
            apart={"proximity": 0.5},
            because="at c = lambda the old policy has no weight, and what is left is SAC at that temperature",
            base_at={"entropy": "fixed", "entropy.value": 1.0},
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        96,
        {"warmup": 64, "refresh": 16, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000},
    )
    saved = ("refreshes",)

    def build(self, task: Task) -> None:
        super().build(task)
        self.old_policy = frozen_copy(self.policy)
        self.refreshes = 0

    def make_critic(self) -> QEnsemble:
        if not self.config.value_network:
            return super().make_critic()
        return SoftCritics(self.spec, self.config.network, self.config.critics)

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        if not self.config.value_network:
            return super().target(batch)
        next_value = self.target_critic.state_value(batch["next_obs"])
        return td_target(self.config.reward_scale * batch["reward"], batch["discount"], batch["terminated"], next_value)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().critic_loss(batch)
        if self.config.value_network:
            value_loss, value_metrics = self.value_loss(batch)
            loss, metrics = loss + value_loss, metrics | value_metrics
        return loss, metrics

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            action, log_prob = self.policy.rsample(batch["obs"])
            q = reduce_members(self.critic(batch["obs"], action), "min")
            target = soft_value(q, log_prob, self.temperature.value)
        loss = regression(self.critic.state_value(batch["obs"]), target, batch["weight"])
        return loss, {"value_loss": loss}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        action, log_prob = self.policy.rsample(batch["obs"])
        old_log_prob = self.old_policy.log_prob(batch.select("obs").set("action", action))
        q = self.critic(batch["obs"], action)
        q = q[0] if config.policy_critic == "first" else reduce_members(q, config.policy_critic)
        proximity = reparameterized_proximity(log_prob, old_log_prob, weight)
        # lambda log pi - Q + (c - lambda) (log pi - log pi_k) = c log pi + (lambda - c) log pi_k - Q
        loss = pathwise(q, log_prob, self.temperature.value, weight)
        loss = loss + (config.proximity - self.temperature.value) * proximity
        if config.moment_penalty:
            mean, log_std = self.policy.moments(batch)
            moments = (mean.square() + log_std.square()).mean(-1)
            loss = loss + config.moment_penalty * weighted_mean(moments, weight)
        metrics = {"policy_loss": loss, "entropy": weighted_mean(-log_prob, weight), "proximity": proximity}
        return loss, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        if self.ledger.env_steps // self.config.refresh > self.refreshes:
            self.refreshes = self.ledger.env_steps // self.config.refresh
            polyak_update(self.old_policy, self.policy, 1.0)
        return metrics

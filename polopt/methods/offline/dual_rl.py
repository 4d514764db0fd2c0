"""f-DVL: values from the dual of a divergence between visits, for recorded data with rewards.

Sikchi, Zheng, Zhang, Niekum, "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning", 2023,
arXiv 2302.08560.

Reinforcement learning that stays near the visits of the data is a linear program; its dual is a problem of V alone.
XQL is the dual of the reverse KL, whose exponential loss takes outliers for values; f-DVL (`dual-rl`) takes the
conjugate of another divergence. With target critics Q', x = min_i Q'_i(s, a) - V(s), over the data's actions and
`random_actions` uniform ones beside each:

    value       E[ implicit_maximum(x, divergence, strength) ],   or "rkl": E[ gumbel(x, value_temperature) ]
    critic      sum_i E[ huber(r + discount (1 - terminated) V(s') - Q_i(s, a)) ]
    policy      -E[ min(exp(advantage_temperature x), weight_clip) log pi(a|s) ],   of the data's actions
    targets     Q' <- tau Q + (1 - tau) Q'

(`polopt.values.implicit_losses`). The paper's method for imitation is ReCOIL (recoil.py).

Differs from IQL (iql.py) in the loss of V, in Huber's loss of Q, and in V's own network.

Departs from the paper in: any policy that can imitate, which may go on online. The released code has dropout in V for
antmaze, but never in training mode, so there is none here.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polopt.bases.offline import Offline
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.losses.regression import regression
from polopt.methods.offline.dual_rl_settings import DualRLSettings
from polopt.methods.offline.iql import weighted_cloning
from polopt.networks import Network
from polopt.policies import AnyPolicy, Gaussian
from polopt.policies.base import Imitates, with_noise
from polopt.policies.wrappers import Uniform
from polopt.tasks.base import Task
from polopt.values.critics import StateValue
from polopt.values.implicit_losses import MAXIMA, gumbel, gumbel_peak, implicit_maximum
from polopt.values.in_sample import InSample
from polopt.values.targets import reduce_members, td_target

MLP = Network((256, 256), "relu", init="orthogonal", head_gain=2**0.5)


class Dual(Offline):
    """What f-DVL and ReCOIL have: critics, V, and a policy cloned by advantage."""

    @dataclass(frozen=True)
    class Config(Offline.Config):
        batch_size: int = param(1024, "official code", low=1)
        discount: float = param(0.99, "official code", low=0, below=1)
        value_temperature: float = param(1.0, "official code", above=0, help="of V's soft maximum")
        value_clip: float | None = param(7.0, "official code", above=0, help="largest exponent in V's loss")
        advantage_temperature: float = param(3.0, "official code", low=0, unit="1 / return", help="inverse; 0 clones")
        weight_clip: float = param(100.0, "official code", above=0, help="largest weight of a decision")
        tau: float = param(0.005, "official code", above=0, high=1, help="share of the critics in the targets")
        lr: float = param(3e-4, "official code", above=0, help="of policy, critics and value")
        policy_lr_schedule: Constant | Linear | Cosine = param(Cosine(), "official code")
        policy_dropout: float = param(0.0, "official code", low=0, below=1, help="in the policy's network")
        critics: int = param(2, "official code", low=1, help="members of the critic ensemble")
        network: Network = param(MLP, "official code", help="of policy and critics")
        value_network: Network = param(MLP, "official code", help="of V")
        policy: AnyPolicy = param(Gaussian(mean="tanh", log_std_low=-5.0, log_std_high=2.0), "official code")

    entry = False
    slug = "dual"
    requires = (Imitates,)

    def build(self, task: Task) -> None:
        config = self.config
        if any(network.recurrent != "none" for network in (config.network, config.value_network)):
            raise UsageError(f"{self.slug} draws single decisions, which a recurrent network cannot learn from")
        network = replace(config.network, dropout=config.policy_dropout or config.network.dropout)
        self.policy = self.make_policy(config.policy, network=network)
        self.in_sample = InSample(
            self.spec,
            config.network,
            discount=config.discount,
            tau=config.tau,
            members=config.critics,
            value=StateValue(self.spec, config.value_network),
        )
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr, schedule=config.policy_lr_schedule)
        self.value_optimizer = self.make_optimizer(self.in_sample.value, lr=config.lr)
        self.critic_optimizer = self.make_optimizer(self.in_sample.critic, lr=config.lr)

    @torch.no_grad()
    def peak(self, residual: Tensor) -> Tensor:
        """What `gumbel` is scaled by, for residuals [...] of a whole batch."""
        return gumbel_peak(residual, self.config.value_temperature, self.config.value_clip)

    def gumbel(self, residual: Tensor, peak: Tensor) -> Tensor:
        return gumbel(residual, self.config.value_temperature, peak, self.config.value_clip)

    def cloning(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, advantage = self.config, self.in_sample.advantage(batch)
        return weighted_cloning(self.policy, batch, advantage, config.advantage_temperature, config.weight_clip)


class DualRL(DualRLSettings, Dual):
    @dataclass(frozen=True)
    class Config(Dual.Config):
        divergence: str = param("chi2", "official code", choices=(*MAXIMA, "rkl"), help="rkl: XQL")
        strength: float = param(1.0, "official code", above=0.5, high=1, help="of the maximum; at 1 V never falls")
        random_actions: int = param(1, "official code", low=0, help="uniform actions beside each in V's loss")
        value_updates: int = param(1, "official code", low=1, help="steps of V for each of policy and critics")
        huber: float = param(20.0, "official code", above=0, help="error of Q beyond which its loss is linear")
        value_network: Network = param(replace(MLP, normalization="layer"), "official code", help="of V")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.divergence == "rkl":
                self.refuse("strength", because="on the divergence rkl, which has value_temperature")
            else:
                self.refuse("value_temperature", "value_clip", because=f"on the divergence {self.divergence}")

    slug = "dual-rl"

    def build(self, task: Task) -> None:
        super().build(task)
        self.uniform = Uniform(self.spec)

    @torch.no_grad()
    def with_candidates(self, batch: Batch) -> Batch:
        """A shallow copy with `candidate_q` [B, 1 + random_actions], min_i Q'_i of the data's action, which is
        `target_q` [B] too, and of random ones."""
        batch, obs = batch.clone(False), batch["obs"]
        batch["target_q"] = self.in_sample.q(batch)
        found = [batch["target_q"]]
        for _ in range(self.config.random_actions):
            action = self.policy.own_action(self.uniform.act(obs)[0]["action"])
            found.append(reduce_members(self.in_sample.target_critic(obs, action), "min"))
        batch["candidate_q"] = torch.stack(found, -1)
        return batch

    def residual(self, batch: Batch) -> Tensor:
        """x [B, 1 + random_actions]."""
        return batch["candidate_q"] - self.in_sample.value(batch["obs"]).unsqueeze(-1)

    def value_loss(self, batch: Batch, peak: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """`peak`: that of the whole batch, for the divergence rkl."""
        config, residual = self.config, self.residual(batch)
        if config.divergence == "rkl":
            each = self.gumbel(residual, self.peak(residual) if peak is None else peak)
        else:
            each = implicit_maximum(residual, config.divergence, config.strength)
        loss = weighted_mean(each.mean(-1), batch["weight"])
        value = batch["target_q"] - residual[:, 0]
        return loss, {"value_loss": loss, "value": weighted_mean(value, batch["weight"])}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.cloning(batch)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            next_value = self.in_sample.value(batch["next_obs"])
            target = td_target(batch["reward"], self.config.discount, batch["terminated"], next_value)
        q = self.in_sample.critic(batch["obs"], batch["action"])
        loss = regression(q, target, batch["weight"], self.config.huber)
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.with_candidates(with_noise(self.policy, weigh(batch)))
        metrics: dict[str, Tensor] = {}
        for _ in range(self.config.value_updates):
            shared = {"peak": self.peak(self.residual(batch))} if self.config.divergence == "rkl" else {}
            metrics |= self.value_optimizer.minimize(self.value_loss, batch, **shared)
        metrics |= self.policy_optimizer.minimize(self.policy_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        self.in_sample.follow()
        return metrics

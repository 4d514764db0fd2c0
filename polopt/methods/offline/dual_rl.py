"""f-DVL and ReCOIL: values from the dual of a divergence between visits, for rewards and for imitation.

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

(`polopt.values.implicit_losses`). ReCOIL (`recoil`) imitates an expert with offline data of any origin, without
rewards, discriminator or density ratio: visits of the policy mixed with the data are matched to visits of the expert
mixed with the data. On the expert Q is raised to the largest return there can be, elsewhere it is consistent with the
least reward:

    value       as "rkl" above, of the offline rows, scaled by the largest x of both
    critic      sum_i ( E_expert[ (Q_i - G)^2 ] + E_offline[ (Q_i - y)^2 ] ) / 2,   G = reward_gap / (1 - discount)
                y = -reward_gap + discount V(s'),   after a terminal decision -reward_gap - discount G
    policy      as above, of the offline rows
    reward      min_i Q_i(s, a) - discount (1 - terminated) V(s'), which is recovered and not learned from

Differs from IQL (iql.py) in the loss of V, in Huber's loss of Q, and in V's own network.

Departs from the paper in: any policy that can imitate; both may go on online, where ReCOIL adds what it does to the
offline data. The released code has dropout in V for antmaze, but never in training mode, so there is none here.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polopt.bases.offline import Offline, recorded_data
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, replaced, sides_of, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.demonstrations import Samples
from polopt.data.mixing import Paired
from polopt.losses.regression import regression
from polopt.methods.offline.dual_rl_settings import DualRLSettings, ReCOILSettings
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
    """What both have: critics, V, and a policy cloned by advantage."""

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


class ReCOIL(ReCOILSettings, Dual):
    """Batches have the sides `offline` and `expert`."""

    @dataclass(frozen=True)
    class Config(Dual.Config):
        demonstrations: str = param("", "polopt", help="the expert's: a dataset, a file of --record, or random")
        reward_gap: float = param(2.0, "official code", above=0, help="between reward (of the expert) and none")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("rewards", because="where no rewards are seen")

    slug = "recoil"
    no_limit = (
        "at advantage-temperature 0 it clones its offline rows as bc does, which is tested, but its batches have two "
        "sides, which bc does not read"
    )

    def prepare(self) -> None:
        super().prepare()
        config = self.config
        if not config.demonstrations:
            raise UsageError("recoil learns from an expert beside its dataset: name a dataset with --demonstrations")
        data = recorded_data(config.demonstrations, self.task, random_episodes=config.random_episodes)
        assert data is not None
        data = data.clone(False).set("action", self.policy.own_action(data["action"]))
        generator = torch.Generator().manual_seed(int(self.generator.initial_seed()) + 1)
        self.source = Paired(offline=self.source, expert=Samples(data, config.batch_size, generator))

    def collect(self) -> Batch:
        batch = self.source.next(self.behavior)
        if not self.policy.unit:
            return batch
        sides = {name: side.clone(False) for name, side in sides_of(batch).items()}
        for side in sides.values():
            side["action"] = side["action"].clamp(-1.0, 1.0)
        return replaced(batch, sides)

    @property
    def highest(self) -> float:
        """G, the value of being rewarded for ever; -G that of never again."""
        return self.config.reward_gap / (1 - self.config.discount)

    @torch.no_grad()
    def recovered_reward(self, batch: Batch) -> Tensor:
        """What Q and V say that the decisions [B] are rewarded with."""
        q = reduce_members(self.in_sample.critic(batch["obs"], batch["action"]), "min")
        zero, next_value = torch.zeros_like(q), self.in_sample.value(batch["next_obs"])
        return q - td_target(zero, self.config.discount, batch["terminated"], next_value)

    def value_loss(self, batch: Batch, peak: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """`peak`: that of both sides of the whole batch."""
        side = batch["offline"]
        value = self.in_sample.value(side["obs"])
        peak = self.both_peaks(batch) if peak is None else peak
        loss = weighted_mean(self.gumbel(side["target_q"] - value, peak), side["weight"])
        return loss, {"value_loss": loss, "value": weighted_mean(value, side["weight"])}

    def both_peaks(self, batch: Batch) -> Tensor:
        return torch.stack([self.peak(self.in_sample.advantage(side)) for side in sides_of(batch).values()]).max()

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.cloning(batch["offline"])

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, offline, expert = self.config, batch["offline"], batch["expert"]
        with torch.no_grad():
            next_value = self.in_sample.value(offline["next_obs"])
            lasting = torch.where(offline["terminated"], -self.highest, next_value)
            target = config.discount * lasting - config.reward_gap
        q, high = (self.in_sample.critic(side["obs"], side["action"]) for side in (offline, expert))
        loss = regression(q, target, offline["weight"])
        loss = loss + regression(high, torch.full_like(high[0], self.highest), expert["weight"])
        found = {"expert_q": weighted_mean(high.mean(0), expert["weight"])}
        found["offline_q"] = weighted_mean(q.mean(0), offline["weight"])
        for name, side in (("expert_reward", expert), ("offline_reward", offline)):
            found[name] = weighted_mean(self.recovered_reward(side), side["weight"])
        return loss, {"critic_loss": loss, **found}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        sides: dict[str, Any] = sides_of(weigh(batch))
        sides["offline"] = with_noise(self.policy, sides["offline"])
        for side in sides.values():
            side["target_q"] = self.in_sample.q(side)
        batch = replaced(batch, sides)
        metrics = self.value_optimizer.minimize(self.value_loss, batch, peak=self.both_peaks(batch))
        metrics |= self.policy_optimizer.minimize(self.policy_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        self.in_sample.follow()
        return metrics

"""ReCOIL: imitation of an expert beside recorded data of any origin, as the dual of a divergence between visits.

Sikchi, Zheng, Zhang, Niekum, "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning", 2023,
arXiv 2302.08560.

There are no rewards, no discriminator and no density ratio: visits of the policy mixed with the data are matched to
visits of the expert mixed with the data. On the expert Q is raised to the largest return there can be, elsewhere it is
consistent with the least reward. With target critics Q', and x = min_i Q'_i(s, a) - V(s) of the data's actions:

    value       E_offline[ gumbel(x, value_temperature) ],   scaled by the largest x of both
    critic      sum_i ( E_expert[ (Q_i - G)^2 ] + E_offline[ (Q_i - y)^2 ] ) / 2,   G = reward_gap / (1 - discount)
                y = -reward_gap + discount V(s'),   after a terminal decision -reward_gap - discount G
    policy      -E_offline[ min(exp(advantage_temperature x), weight_clip) log pi(a|s) ]
    targets     Q' <- tau Q + (1 - tau) Q'
    reward      min_i Q_i(s, a) - discount (1 - terminated) V(s'), which is recovered and not learned from

Differs from f-DVL (dual_rl.py) in what Q is regressed on, and in the reverse KL as the only divergence.

Departs from the paper in: any policy that can imitate; it may go on online, where what it does joins the offline data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.offline import recorded_data
from polopt.config import param
from polopt.core.batch import Batch, replaced, sides_of, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.demonstrations import Samples
from polopt.data.mixing import Paired
from polopt.losses.regression import regression
from polopt.methods.offline.dual_rl import Dual
from polopt.methods.offline.dual_rl_settings import ReCOILSettings
from polopt.policies.base import with_noise
from polopt.values.targets import reduce_members, td_target


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

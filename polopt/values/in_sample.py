"""Values of the best actions in a dataset, learned without asking about any other action.

Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", 2021, arXiv 2110.06169, equations 5 and 6:
the half of that method that other methods build on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch, same_shape, weighted_mean
from polopt.core.spec import Spec
from polopt.losses.regression import expectile, regression
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.optim import frozen_copy, polyak_update
from polopt.values import Histogram
from polopt.values.critics import StateValue
from polopt.values.histogram import HistogramQ, make_q
from polopt.values.targets import reduce_members, td_target


def expectile_value_loss(value: Tensor, q: Tensor, weight: Tensor, tau: float) -> Tensor:
    """Sum of weight * |tau - 1(u < 0)| u^2 with u = q - value, equation 5; no gradient goes into `q`.

    All are [...]; raises ValueError when shapes differ. tau 0.5 regresses on the mean over the data's actions; as tau
    goes to 1 the value goes to the maximum over the actions that the data have there.
    """
    same_shape(value=value, q=q, weight=weight)
    return (weight * expectile(q.detach() - value, tau)).sum()


class InSample(nn.Module):
    """V by an expectile over the data's actions, Q by ordinary least squares on r + discount V(s'), equations 5 and 6.

    The expectile stands on Q - V, never on the target of Q: that would take luck in the transitions for skill. V has no
    target copy, and is regressed on the minimum of the target critics.

    Keys read: obs, action (as the policy acts), reward, next_obs, terminated, weight, and target_q if present. Each
    optimizer belongs to the method; the order of an update is value, (policy,) critic, `follow`. `value` is a V to
    train in place of one of its own; `normalizer` is that of the observations, shared by Q and its target.
    """

    def __init__(
        self,
        spec: Spec,
        network: Network,
        *,
        expectile: float = 0.7,
        discount: float = 0.99,
        tau: float = 0.005,
        members: int = 2,
        histogram: Histogram | None = None,
        value: StateValue | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        self.expectile, self.discount, self.tau = expectile, discount, tau
        self.critic = make_q(spec, network, members, histogram, normalizer)
        self.target_critic = frozen_copy(self.critic)
        self.value = value or StateValue(spec, network, normalizer=normalizer)

    @torch.no_grad()
    def q(self, batch: Batch) -> Tensor:
        """Minimum of the target critics [B] at the data's actions, detached. They stand still during an update, so a
        method may write it to `batch["target_q"]` once; it is read from there."""
        if "target_q" in batch.keys():
            return batch["target_q"]
        return reduce_members(self.target_critic(batch["obs"], batch["action"]), "min")

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 5."""
        value = self.value(batch["obs"])
        loss = expectile_value_loss(value, self.q(batch), batch["weight"], self.expectile)
        return loss, {"value_loss": loss, "value": weighted_mean(value, batch["weight"])}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 6, summed over the critics, with the present V (time limits are bootstrapped through); with values
        that are histograms the cross-entropy in place of the square."""
        with torch.no_grad():
            next_value = self.value(batch["next_obs"])
            target = td_target(batch["reward"], self.discount, batch["terminated"], next_value)
        if isinstance(self.critic, HistogramQ):
            logits = self.critic.logits(batch["obs"], batch["action"])
            q, loss = self.critic.mean(logits), self.critic.cross_entropy(logits, target, batch["weight"])
        else:
            q = self.critic(batch["obs"], batch["action"])
            loss = regression(q, target, batch["weight"])
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    @torch.no_grad()
    def advantage(self, batch: Batch) -> Tensor:
        """min Q_target(s, a) - V(s) [B], detached."""
        return self.q(batch) - self.value(batch["obs"])

    def follow(self) -> None:
        """Moves the target critics towards the critics."""
        polyak_update(self.target_critic, self.critic, self.tau)

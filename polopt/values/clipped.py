"""Critics that are trained on pessimistic values of actions that a policy takes next: clipped double Q-learning.

Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", 2018, arXiv 1802.09477: the half of
TD3 that other methods build on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch, weighted_mean
from polopt.core.errors import UsageError
from polopt.losses.regression import regression
from polopt.networks.encoders import Obs
from polopt.optim import frozen_copy, polyak_update
from polopt.values.critics import QEnsemble
from polopt.values.targets import reduce_members, soft_value, td_target


def smoothed(action: Tensor, std: float, clip: float, *, unit: bool = True) -> Tensor:
    """action + clamp(std * noise, -clip, clip) [..., A], and within [-1, 1] where the policy acts there (`unit`).

    Target policy smoothing, arXiv 1802.09477, equation 14: what is near an action is worth about as much. `std` and
    `clip` are in the units of the action; the noise is standard normal, and none is drawn for a `std` of 0.
    """
    if std > 0.0:
        action = action + (std * torch.randn_like(action)).clamp(-clip, clip)
    return action.clamp(-1.0, 1.0) if unit else action


class ClippedQ(nn.Module):
    """An ensemble of critics, its slow copy, and the loss of the one on the pessimistic target of the other.

        target        reward + discount (1 - terminated) reduce_i Q_targ_i(s', a')
        critic_loss   sum_i E[ (Q_i(s, a) - target)^2 ]

    `reduce` is "min", "random-2" (the minimum of two members, one pair a batch) or "mean". a' is what the method says:
    a target policy's action, smoothed (`smoothed`), the present policy's, a chunk. Keys read: obs, action (as the
    policy acts), reward, next_obs, terminated, weight; `discount` [B] of the batch, of several steps that a replay has
    summed, stands before the number. `target` may draw, so a method writes it into the batch before `critic_loss`,
    which reads it there, may be split. The order of an update is target, critic, (policy,) `follow`; the optimizer
    belongs to the method.

    Raises UsageError for an unknown `reduce`, and for "random-2" of fewer than two members.
    """

    def __init__(self, critic: QEnsemble, *, discount: float = 0.99, tau: float = 0.005, reduce: str = "min") -> None:
        super().__init__()
        if reduce not in ("min", "random-2", "mean"):
            raise UsageError(f"critics are reduced by min, random-2 or mean, not '{reduce}'")
        if reduce == "random-2" and critic.members < 2:
            raise UsageError("random-2 takes two critics, and there is one")
        self.discount, self.tau, self.reduce = discount, tau, reduce
        self.critic = critic
        self.target_critic = frozen_copy(critic)

    @torch.no_grad()
    def target(
        self,
        batch: Batch,
        next_action: Tensor,
        next_log_prob: Tensor | None = None,
        temperature: float | Tensor = 0.0,
    ) -> Tensor:
        """What the critics are regressed on [B], detached; time limits are bootstrapped through.

        With `next_log_prob` [B] of `next_action` [B, A], the soft value of it: minus temperature times that.
        """
        value = reduce_members(self.target_critic(batch["next_obs"], next_action), self.reduce)
        if next_log_prob is not None:
            value = soft_value(value, next_log_prob, temperature)
        return td_target(batch["reward"], batch.get("discount", self.discount), batch["terminated"], value)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error against `batch["target"]` [B], summed over the critics (not half of it)."""
        q = self.critic(batch["obs"], batch["action"])
        loss = 2.0 * regression(q, batch["target"], batch["weight"])
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    def first(self, obs: Obs, action: Tensor) -> Tensor:
        """Q of the first critic [...], at the cost of one: what deterministic policies ascend."""
        return self.critic(obs, action, members=1).squeeze(0)

    def follow(self) -> None:
        """Moves the target critics towards the critics."""
        polyak_update(self.target_critic, self.critic, self.tau)

"""Pessimism about actions that the data do not have: conservative Q-learning, and its calibrated form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch, same_shape, weighted_mean
from polopt.core.spec import Spec
from polopt.losses.regression import regression
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.values import Conservative
from polopt.values.histogram import HistogramQ, make_q
from polopt.values.targets import reduce_members, td_target


def conservative_gap(
    q: Tensor,
    policy_q: Tensor,
    random_q: Tensor | None = None,
    *,
    returns: Tensor | None = None,
    calibrate_random: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    """T (logsumexp_k Q(s, a_k) / T - log K) - Q(s, a), [E, B]: what is added to a critic's loss, times a coefficient.

    Kumar et al. 2020 (arXiv 2006.04779, equation 4); with `returns` calibrated: the values of the policy's actions
    count as at least the return of the data, so that they are not pushed below it (Nakamoto et al. 2023, arXiv
    2303.05479, equation 5.2). The mean over K in place of the sum makes the gap 0 where all values are equal; as in
    the code of PA-RL (arXiv 2412.06685) the action of the data is one of the K.

    Args:
        q: values of the actions in the data, [E, B], of E critics.
        policy_q: values of actions of the policy in the same states, [E, K1, B].
        random_q: values of uniform random actions, [E, K2, B].
        returns: Monte Carlo returns of the data, [B]; None for the uncalibrated form.
        calibrate_random: also bound the values of the random actions.
        temperature: T; the smaller, the more the largest value counts.

    Raises ValueError when shapes do not fit.
    """
    same_shape(q=q, policy_q=policy_q[:, 0])
    if returns is not None:
        same_shape(q=q[0], returns=returns)
        policy_q = torch.maximum(policy_q, returns)
    parts = [q.unsqueeze(1), policy_q]
    if random_q is not None:
        same_shape(q=q, random_q=random_q[:, 0])
        parts.append(torch.maximum(random_q, returns) if returns is not None and calibrate_random else random_q)
    values = torch.cat(parts, 1)
    pooled = temperature * ((values / temperature).logsumexp(1) - math.log(values.shape[1]))
    return pooled - q


class ConservativeQ(nn.Module):
    """An ensemble of Q functions with one-step targets and a conservative term in its loss.

    `options` say how strong the term is and which actions are in it. The method gives the actions: `columns` writes
    what the loss reads besides obs, action (as the policy acts), reward, next_obs, terminated, weight and returns.
    """

    def __init__(
        self, spec: Spec, network: Network, options: Conservative, *, discount: float, tau: float, members: int
    ) -> None:
        super().__init__()
        self.options, self.discount, self.tau = options, discount, tau
        self.critic = make_q(spec, network, members, options.histogram)
        self.target_critic = frozen_copy(self.critic)

    @torch.no_grad()
    def columns(
        self, batch: Batch, best: Tensor, policy: Tensor, random: Tensor, generator: torch.Generator | None = None
    ) -> Batch:
        """A copy with `target` [B] = reward + discount (1 - terminated) min of two members of the target critic, drawn
        with `generator`, at the action `best` [B, A] of the next state; and with `policy_action` and `random_action`
        [B, K, A] of the conservative term, from `policy` and `random` [K, B, A]."""
        batch = batch.clone(False)
        next_q = reduce_members(self.target_critic(batch["next_obs"], best), "random-2", generator)
        batch["target"] = td_target(batch["reward"], self.discount, batch["terminated"], next_q)
        batch["policy_action"], batch["random_action"] = policy.transpose(0, 1), random.transpose(0, 1)
        return batch

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_i E[ (Q_i - target)^2 + coefficient gap_i ] / 2, with histograms the cross-entropy in place of the square
        and no 1/2; all kinds of action pass the critic together."""
        options, weight = self.options, batch["weight"]
        kinds = [batch["action"].unsqueeze(1)]
        kinds += [batch[key] for key in ("policy_action", "random_action") if options.coefficient > 0]
        actions = torch.cat(kinds, 1).transpose(0, 1)
        if isinstance(self.critic, HistogramQ):
            logits = self.critic.logits(batch["obs"], actions)
            values, factor = self.critic.mean(logits), options.coefficient
            loss = self.critic.cross_entropy(logits[:, 0], batch["target"], weight)
        else:
            values, factor = self.critic(batch["obs"], actions), 0.5 * options.coefficient
            loss = regression(values[:, 0], batch["target"], weight)
        q = values[:, 0]
        metrics = {"q": weighted_mean(q.mean(0), weight)}
        if options.coefficient > 0:
            policy_q, random_q = values[:, 1:].split([kind.shape[1] for kind in kinds[1:]], 1)
            gap = conservative_gap(
                q,
                policy_q,
                random_q,
                returns=batch["returns"] if options.calibrate else None,
                calibrate_random=options.calibrate_random,
                temperature=options.temperature,
            )
            loss = loss + factor * (weight * gap).sum()
            metrics["conservative_gap"] = weighted_mean(gap.mean(0), weight)
        return loss, {"critic_loss": loss, **metrics}

    def follow(self) -> None:
        """Moves the target critics towards the critics."""
        polyak_update(self.target_critic, self.critic, self.tau)

"""The learner of C-MORL (`c_morl.py`): PPO on a weighted sum of objectives, while some of them must not fall.

Liu et al., "Efficient Discovery of Pareto Front for Multi-Objective Reinforcement Learning", ICLR 2025,
arXiv 2410.02236. Held by c_morl.py; no entry of its own.

    advantage   sum_j w_j A_j
    barrier     - sum_{j != i} pressure_j E[ratio A_j],   pressure_j = reach / (t max(slack_j, 0.002 |G_j|))
    slack_j     G_j + reach E[(ratio - 1) A_j] - threshold_j, of the whole minibatch

Differs from PPO in: a value for each objective, and the barrier.

Departs from the paper in: what the barrier says of an objective; see `c_morl.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polopt.config import param
from polopt.core.batch import Batch, decision_sum, same_shape, weigh
from polopt.losses.regression import value_loss
from polopt.methods.control.ppo import PPO
from polopt.tasks.base import Task
from polopt.values.returns import explained_variance, gae, standardize

STEEPEST = 0.002
"""The slack, as a fraction of |G_j|, below which the barrier goes on as a straight line."""


class Goal(nn.Module):
    """What an `ObjectivePPO` is after, all [m]: `weights` of its advantages; `margin`, 1 - beta of the objectives that
    must not fall and 0 of the others; and `start`, the returns G that it began with, once they are `known`."""

    weights: Tensor
    margin: Tensor
    start: Tensor
    known: Tensor

    def __init__(self, objectives: int) -> None:
        super().__init__()
        for name in ("weights", "margin", "start"):
            self.register_buffer(name, torch.zeros(objectives))
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    def set(self, weights: Any, margin: Any) -> None:
        self.weights.copy_(torch.as_tensor(weights))
        self.margin.copy_(torch.as_tensor(margin))
        self.known.fill_(False)

    def see(self, returns: Tensor) -> None:
        """The mean returns [m] of a window; the first ones are those that it began with."""
        self.start.copy_(torch.where(self.known, self.start, returns))
        self.known.fill_(True)

    @property
    def threshold(self) -> Tensor:
        return self.start - self.margin * self.start.abs()


def reach(batch: Batch, discount: float) -> Tensor:
    """What one advantage in every decision of an episode adds up to at its start, discounted; 0-d. An episode has as
    many decisions as there are in the window for each end; without an end there is no last one."""
    decisions = (batch["weight"] > 0).sum()
    length = decisions / (batch["terminated"] | batch["truncated"]).sum()
    if discount == 1.0:
        return torch.minimum(length, decisions)
    return (1.0 - discount**length) / (1.0 - discount)


def mean_of(weight: Tensor, values: Tensor) -> Tensor:
    """The weighted sum [m] of values [..., m] with weights [...]."""
    same_shape(weight=weight, rows_of_values=values[..., 0])
    return torch.tensordot(weight, values, weight.dim())


class ObjectivePPO(PPO):
    """PPO on `goal`. `guarded`: those of its objectives that have a margin stay above their thresholds."""

    @dataclass(frozen=True)
    class Config(PPO.Config):
        beta: float = param(0.9, "official code", above=0, below=1, help="of an objective that an extension must keep")
        barrier: str = param(
            "advantage", "polopt", choices=("advantage", "released"), help="what the barrier says of J_j"
        )
        barrier_t: float = param(
            20.0, "official code", above=0, help="more: the barrier is steeper, nearer the threshold"
        )

    entry = False
    objectives = "several"
    saved = ("guarded",)

    def build(self, task: Task) -> None:
        self.outputs = len(self.spec.objectives)
        self.goal = Goal(self.outputs)
        self.guarded = False
        super().build(task)

    @torch.no_grad()
    def evaluate_window(self, batch: Batch) -> Batch:
        """Adds `value` and `returns` [N, T, m] in the critic's units, `advantages` [N, T, m] in those of the rewards,
        and `advantage` [N, T]. Notes what the barrier needs of the whole window."""
        config, batch = self.config, weigh(batch)
        rewards, ends = batch["rewards"].movedim(-1, 0), (batch["terminated"], batch["truncated"])
        unit = torch.ones_like(self.goal.weights)
        if self.reward_normalizer is not None:
            rewards = self.reward_normalizer(rewards, *ends, batch.get("mask", None))
            unit = self.reward_normalizer.std.to(unit)
        value, next_value = self.critic.values(batch)
        advantage, returns = gae(rewards, value, next_value, *ends, config.discount, config.gae_lambda)
        batch["value"], batch["returns"] = value.movedim(0, -1), returns.movedim(0, -1)
        batch["advantages"] = unit * advantage.movedim(0, -1)
        batch["advantage"] = batch["advantages"] @ self.goal.weights
        if config.advantage_over == "batch":
            batch["advantage"] = standardize(batch["advantage"], batch["weight"])
        self.returns = unit * mean_of(batch["weight"], batch["returns"])
        self.reach = reach(batch, config.discount)
        self.goal.see(self.returns)
        return batch

    def critic_fit(self, batch: Batch) -> Tensor:
        value, returns = batch["value"].movedim(-1, 0), batch["returns"].movedim(-1, 0)
        return explained_variance(value, returns, batch["weight"]).mean()

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of all objectives, in the mean."""
        clip = self.config.value_clip and self.config.value_clip * self.config.clip_schedule(self.progress)
        value = self.critic.value(batch).movedim(0, -1)
        weight = (batch["weight"] / value.shape[-1]).unsqueeze(-1).expand_as(value)
        loss = value_loss(value, batch["returns"], weight, old_value=batch["value"], clip=clip)
        return loss, {"value_loss": loss}

    def policy_loss(self, batch: Batch, shared: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob, entropy = self.policy.score(batch)
        loss, metrics = self.policy_terms(batch, log_prob, entropy)
        if shared is None:
            return loss, metrics
        return loss + self.barrier(batch, self.ratio(batch, log_prob), shared), metrics

    def total_loss(self, batch: Batch, shared: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        policy_loss, metrics = self.policy_loss(batch, shared)
        value_loss, value_metrics = self.value_loss(batch)
        return policy_loss + self.config.value_coefficient * value_loss, metrics | value_metrics

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        if not self.guarded:
            return super().step(minibatch)
        shared = self.barrier_state(minibatch)
        return self.optimizer.minimize(self.total_loss, minibatch, shared=shared) | {"slack": shared["slack"]}

    def ratio(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """pi(action|obs) / pi_old(action|obs) of every decision, shaped like the batch."""
        return decision_sum(log_prob - batch["log_prob"], batch["weight"]).exp()

    @torch.no_grad()
    def barrier_state(self, batch: Batch) -> dict[str, Tensor]:
        """What all pieces of a minibatch share: `pressure` [m], with which the barrier pushes; `returns` [m], the mean
        in the critic's units; and `slack`, the least J_j - threshold_j as a fraction of the margin."""
        goal, weight = self.goal, batch["weight"]
        change = self.ratio(batch, self.policy.log_prob(batch)) - 1.0
        gain = mean_of(weight * change, batch["advantages"])
        slack = self.returns + self.reach * gain - goal.threshold
        kept, size = goal.margin > 0, goal.start.abs().clamp_min(1e-6)
        pressure = self.reach / (self.config.barrier_t * torch.maximum(slack, STEEPEST * size))
        return {
            "pressure": torch.where(kept, pressure, 0.0),
            "returns": mean_of(weight, batch["returns"]),
            "slack": torch.where(kept, slack / (goal.margin * size), torch.inf).amin(),
        }

    def barrier(self, batch: Batch, ratio: Tensor, shared: dict[str, Tensor]) -> Tensor:
        """The barrier's part of the loss; of the default one only its gradient means something."""
        config, weight = self.config, batch["weight"]
        if config.barrier == "advantage":
            return -(weight * ratio * (batch["advantages"] @ shared["pressure"])).sum()
        low, high = config.surrogate.clip_range
        above = (ratio.clamp(low, high) - config.beta).unsqueeze(-1) * shared["returns"]
        return -(weight * above.clamp_min(0.001).log().mean(-1)).sum() / config.barrier_t

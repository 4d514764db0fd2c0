"""Models of the world: what a decision leads to, and imagined episodes.

    y = (s' - s, r)            what is predicted, each coordinate standardized by the data, as the inputs (s, a) are
    gaussian     mean over rows and coordinates of (y - mean)^2 / variance + log variance
                 + bound_coefficient sum(log_var_high - log_var_low)          log variances are softly bounded by both
    mean         mean over rows and coordinates of (y - mean)^2
    both         + binary cross-entropy of "it terminates here" + sum over layers of decay |W|^2 / 2

Chua et al. 2018, "Deep Reinforcement Learning in a Handful of Trials", arXiv 1805.12114 (ensembles, bounds); Janner et
al. 2019, arXiv 1906.08253 (elites, held-out rows). Beyond these, what is predicted is standardized too, every member
has bounds of its own, and ends are learned where no function says them. All members are computed at once.

Actions are as the policy acts. A lagged model is `frozen_copy(model)` with `polyak_update`; it shares the scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch, same_shape
from polopt.core.spec import Spec
from polopt.models.ensemble import Ensemble
from polopt.models.inputs import Scale, Vector, action_features, factor_counts
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.networks.layers import MLP, EnsembleLinear

if TYPE_CHECKING:
    from polopt.policies.base import Actor

Ends = Callable[[Tensor, Tensor, Tensor], Tensor]
"""obs, action, next_obs [B, ...] -> bool [B]: whether a task's episode terminates there."""


class Forecast(NamedTuple):
    """Of every member: mean and std [E, ..., D] of (s' or s' - s, reward) in the data's units, and the logit [E, ...]
    of termination, None where a function says it."""

    mean: Tensor
    std: Tensor
    end: Tensor | None


class Step(NamedTuple):
    """What follows, [B, ...]: the next observation, the reward, and bool whether the episode terminates."""

    next_obs: Obs
    reward: Tensor
    terminated: Tensor


class Dynamics(nn.Module):
    """What a decision leads to, by `config.members` models with layers of their own.

    Args:
        spec: observations are a Box of real numbers or a Dict of such, actions a Box or discrete.
        ends: says where episodes terminate; without it the members learn it.
        delta: predict the change of the observation; False predicts the next one itself.
        terminal_successors: False does not learn the observation after a terminating decision, whose reward and end
            are learned all the same: where it means nothing (a latent of what is no more).
        log_var: bounds of the log variance of standardized coordinates; learned ones begin there.
        bound_coefficient: how strongly the bounds are drawn together; None keeps them fixed.

    Attributes: `elites` int64 [config.elites], the members that act; the first ones until something chooses.

    Raises UsageError for other spaces.
    """

    elites: Tensor

    def __init__(
        self,
        spec: Spec,
        config: Ensemble,
        *,
        ends: Ends | None = None,
        delta: bool = True,
        terminal_successors: bool = True,
        log_var: tuple[float, float] = (-10.0, 0.5),
        bound_coefficient: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.config, self.members = config, config.members
        self.vector = Vector(spec)
        self.size = self.vector.size
        self.counts, self.factors = factor_counts(spec), isinstance(spec.action, spaces.MultiDiscrete)
        self.ends, self.delta, self.terminal_successors = ends, delta, terminal_successors
        self.gaussian = config.head == "gaussian"
        self.targets = self.size + 1
        inputs, outputs = self.size + (sum(self.counts) or spec.action_dim), self.targets * (1 + self.gaussian)
        self.net = trunk(config.network, inputs, outputs + (ends is None), config.members)
        decay, self.linear = config.weight_decay, [m for m in self.net.layers if isinstance(m, EnsembleLinear)]
        self.decay = decay * len(self.linear) if len(decay) == 1 else decay
        self.input_scale, self.target_scale = Scale(inputs), Scale(self.targets)
        self.bound_coefficient = bound_coefficient if self.gaussian else None
        bounds = torch.tensor(log_var).reshape(2, 1, 1, 1).repeat(1, config.members, 1, self.targets)
        if self.bound_coefficient is None:
            self.register_buffer("log_var_low", bounds[0])
            self.register_buffer("log_var_high", bounds[1])
        else:
            self.log_var_low, self.log_var_high = nn.Parameter(bounds[0]), nn.Parameter(bounds[1])
        self.register_buffer("elites", torch.arange(config.elites))

    # Rows

    def inputs(self, obs: Obs, action: Tensor) -> Tensor:
        """(s, a) [..., inputs], not yet standardized."""
        flat = self.vector(obs)
        return torch.cat([flat, action_features(action, self.counts, self.factors).to(flat.dtype)], -1)

    def answers(self, batch: Batch) -> Tensor:
        """(s' - s or s', r) [..., D] of recorded decisions: `obs`, `next_obs`, `reward`."""
        after = self.vector(batch["next_obs"])
        after = after - self.vector(batch["obs"]) if self.delta else after
        return torch.cat([after, batch["reward"].unsqueeze(-1)], -1)

    def fit_scales(self, batch: Batch) -> None:
        """Standardizes by recorded decisions [B] from here on."""
        self.input_scale.fit(self.inputs(batch["obs"], batch["action"]))
        self.target_scale.fit(self.answers(batch))

    # Learning

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on rows with `weight` [B], which all members see, summed over members: (loss, metrics)."""
        weight = batch["weight"]
        errors = self.row_losses(batch)
        same_shape(weight=weight, error_of_a_member=errors[0])
        loss = (weight * errors).sum()
        return loss + self.restraint().sum(), {"model_loss": loss.detach() / self.members}

    def row_losses(self, rows: Batch, *, apart: bool = False) -> Tensor:
        """The loss [E, B] of each row, without restraint. `apart`: the rows are [E, B], those of each member."""
        outputs = self._outputs(self.inputs(rows["obs"], rows["action"]), apart)
        mean, log_var, end = self._split(outputs)
        errors = (mean - self.target_scale(self.answers(rows))).square()
        if log_var is not None:
            errors = errors * (-log_var).exp() + log_var
        if not self.terminal_successors:
            keep = torch.ones_like(errors)
            keep[..., : self.size] = rows["terminated"].logical_not().unsqueeze(-1).to(keep.dtype)
            errors = errors * keep
        total = errors.mean(-1)
        if end is not None:
            total = total + _end_loss(end, rows["terminated"])
        return total

    def restraint(self) -> Tensor:
        """What draws weights and bounds together, [E]."""
        total = self.log_var_low.new_zeros(self.members)
        for decay, layer in zip(self.decay, self.linear, strict=True):
            total = total + 0.5 * decay * layer.weight.square().sum((1, 2))
        if self.bound_coefficient is not None:
            total = total + self.bound_coefficient * (self.log_var_high - self.log_var_low).sum((1, 2))
        return total

    @torch.no_grad()
    def errors(self, batch: Batch) -> Tensor:
        """The error [E] of each member on recorded decisions [B], by which members are judged: the squared
        error, a mean over rows and standardized coordinates, and the cross-entropy of ends that are learned."""
        mean, _, end = self._split(self._outputs(self.inputs(batch["obs"], batch["action"])))
        squared = (mean - self.target_scale(self.answers(batch))).square().mean((1, 2))
        return squared if end is None else squared + _end_loss(end, batch["terminated"]).mean(1)

    def choose(self, errors: Tensor) -> None:
        """Makes the members with the smallest errors [E] the elites."""
        self.elites.copy_(errors.argsort(stable=True)[: len(self.elites)])

    # Asking

    def forward(self, obs: Obs, action: Tensor) -> Forecast:
        """What each member says of `obs` [..., *shape] and `action` [...]; with head "mean" the std is 0."""
        mean, log_var, end = self._split(self._outputs(self.inputs(obs, action)))
        std = torch.zeros_like(mean) if log_var is None else (0.5 * log_var).exp() * self.target_scale.std.to(mean)
        return Forecast(self.target_scale.back(mean), std, end)

    @torch.no_grad()
    def step(self, obs: Obs, action: Tensor, *, noise: bool = True) -> Step:
        """One imagined step of rows [B, ...], each by an elite drawn at random, with its Gaussian noise; without noise
        by the mean of the elites. Draws from the global generator, so `paired` makes draws common. An end is where the
        logit of that elite, or the mean one, is above 0."""
        mean, std, end = self(obs, action)
        if noise:
            row = torch.arange(len(action), device=mean.device)
            member = self.elites[torch.randint(len(self.elites), row.shape, device=mean.device)]
            drawn = mean[member, row] + std[member, row] * torch.randn_like(std[0])
            logit = None if end is None else end[member, row]
        else:
            drawn, logit = mean[self.elites].mean(0), None if end is None else end[self.elites].mean(0)
        after = self.vector(obs) + drawn[..., :-1] if self.delta else drawn[..., :-1]
        next_obs = self.vector.back(after)
        ended = logit > 0 if logit is not None else self.ends(obs, action, next_obs)  # type: ignore[misc]
        return Step(next_obs, drawn[..., -1], ended)

    @torch.no_grad()
    def rollout(self, policy: Actor, start: Obs, horizon: int, *, greedy: bool = False, noise: bool = True) -> Batch:
        """Imagined decisions [B, horizon] of a policy from `start` [B, *shape].

        Keys: obs, next_obs, reward, terminated, action (as the policy acts, after what the environment's bounds make of
        it), whatever else the policy records, and mask, which is False behind an end; there rows stand still.
        """
        state, carry = self.vector(start), None
        alive = torch.ones(len(state), dtype=torch.bool, device=state.device)
        steps: list[dict[str, Any]] = []
        for _ in range(horizon):
            obs = self.vector.back(state)
            record, carry = policy.act(obs, carry, greedy=greedy)
            action = policy.own_action(policy.env_action(record["action"]))
            after = self.step(obs, action, noise=noise)
            next_state = torch.where(alive.unsqueeze(-1), self.vector(after.next_obs), state)
            reward = torch.where(alive, after.reward, 0.0)
            ended = after.terminated & alive
            told = {"obs": state, "next_obs": next_state, "reward": reward, "terminated": ended, "mask": alive}
            steps.append({**record, "action": action, **told})
            state, alive = next_state, alive & ~after.terminated
        columns = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
        columns |= {name: self.vector.back(columns[name]) for name in ("obs", "next_obs")}
        return TensorDict(columns, batch_size=[len(state), horizon])

    def _outputs(self, inputs: Tensor, apart: bool = False) -> Tensor:
        scaled = self.input_scale(inputs)
        return self.net.layers(scaled) if apart else self.net(scaled)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mean and log variance of the standardized answers [E, ..., D], and the logit of an end."""
        end = outputs[..., -1] if self.ends is None else None
        mean = outputs[..., : self.targets]
        if not self.gaussian:
            return mean, None, end
        raw = outputs[..., self.targets : 2 * self.targets]
        shape = (self.members, *[1] * (raw.dim() - 2), self.targets)
        low, high = self.log_var_low.reshape(shape), self.log_var_high.reshape(shape)
        log_var = high - functional.softplus(high - raw)
        return mean, low + functional.softplus(log_var - low), end


def trunk(network: Network, inputs: int, outputs: int, members: int) -> MLP:
    """The layers of an ensemble that reads vectors [E, B, inputs]."""
    space = spaces.Box(-np.inf, np.inf, (inputs,))
    found = network.build(space, outputs, ensemble=members, head_gain=1.0).trunk
    assert isinstance(found, MLP)
    return found


def _end_loss(logit: Tensor, terminated: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        logit, terminated.to(logit.dtype).expand_as(logit), reduction="none"
    )

"""Policies over finitely many actions, with masks of legal ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.scoring import scored
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import (
    Density,
    Enumerates,
    Imitates,
    NetworkActor,
    Record,
    legal_actions,
    legal_in,
    same_family,
)


def mask_logits(logits: Tensor, legal: Tensor | None) -> Tensor:
    """Sets logits [..., K] to -inf where `legal` [..., K] is False. Rows without any legal action (padding) keep all:
    they have no weight in a loss, and must not bring NaN into it."""
    if legal is None:
        return logits
    return torch.where(legal | ~legal.any(-1, keepdim=True), logits, float("-inf"))


def log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and log-probabilities [..., K] of masked logits; both are 0 where a logit is -inf."""
    log_prob = functional.log_softmax(logits, -1)
    legal = logits > float("-inf")
    return log_prob.exp(), torch.where(legal, log_prob, 0.0)


def log_prob_of(logits: Tensor, action: Tensor) -> Tensor:
    """Log-probability [...] of `action` [...]; -inf if it is illegal."""
    return functional.log_softmax(logits, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy [...] in nats."""
    probability, log_prob = log_probabilities(logits)
    return -(probability * log_prob).sum(-1)


def kl_between(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)) [...]; infinite where `other` forbids what `logits` allows."""
    log_prob = functional.log_softmax(logits, -1)
    legal = logits > float("-inf")
    gap = torch.where(legal, log_prob, 0.0) - torch.where(legal, functional.log_softmax(other, -1), 0.0)
    return (log_prob.exp() * gap).sum(-1)


def draw(logits: Tensor) -> Tensor:
    """A sample [...] from softmax(logits) [..., K], by the Gumbel maximum."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


class DiscreteActor(NetworkActor):
    """An actor with one network over a Discrete space: actions count from 0; `env_action` adds the `start` of it."""

    masks = True

    def __init__(self, spec: Spec, net: nn.Module) -> None:
        super().__init__(spec, net)
        assert isinstance(spec.action, spaces.Discrete)
        self.start = int(spec.action.start)

    def env_action(self, action: Tensor) -> Tensor:
        return action + self.start if self.start else action

    def own_action(self, action: Tensor) -> Tensor:
        return action - self.start if self.start else action


class CategoricalPolicy(DiscreteActor, Enumerates, Imitates):
    """softmax(network(obs)) over a Discrete action space; reads `obs`, `action` [...] int64 and `action_mask` [..., K].

    Without a mask all actions are legal. Entropy and divergence are exact. Records `action` and `log_prob`.
    """

    family = "categorical policy"

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        outputs, record, carry = self.step(obs, carry)
        logits = mask_logits(outputs, legal_actions(obs))
        action = logits.argmax(-1) if greedy else draw(logits)
        if scored():
            record["log_prob"] = log_prob_of(logits, action)
        return {"action": action, **record}, carry

    def logits(self, batch: Batch) -> Tensor:
        return mask_logits(self.outputs(batch), legal_in(batch))

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return log_probabilities(self.logits(batch))

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return log_prob_of(self.logits(batch), batch["action"])

    def entropy(self, batch: Batch) -> Tensor:
        return entropy_of(self.logits(batch))

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.logits(batch)
        return log_prob_of(logits, batch["action"]), entropy_of(logits)

    def kl(self, batch: Batch, other: Any) -> Tensor:
        same_family(self, other)
        return kl_between(self.logits(batch), other.logits(batch))

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Cross-entropy [...]: -log_prob of `batch["action"]`."""
        return -self.log_prob(batch)


class MultiDiscretePolicy(NetworkActor, Density, Imitates):
    """Independent categorical factors: reads `obs`, `action` [..., D] int64 and `action_mask` [..., sum(nvec)].

    Log-probability, entropy and divergence are sums over the factors. The joint actions are not enumerated.
    """

    family = "multi-discrete policy"
    masks = True
    places: Tensor
    exists: Tensor
    start: Tensor

    def __init__(self, spec: Spec, net: nn.Module) -> None:
        super().__init__(spec, net)
        assert isinstance(spec.action, spaces.MultiDiscrete)
        counts = spec.action.nvec.reshape(-1)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        columns = np.arange(counts.max())
        exists = columns < counts[:, None]
        places = np.where(exists, first[:, None] + columns, 0)
        start = np.broadcast_to(spec.action.start, spec.action.shape).reshape(-1)
        self.shape = spec.action.shape
        # Factors of unequal size lie in one table [D, max(nvec)], so that one softmax serves them all.
        self.register_buffer("places", torch.as_tensor(places), persistent=False)
        self.register_buffer("exists", torch.as_tensor(exists), persistent=False)
        self.register_buffer("start", torch.as_tensor(start.copy(), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        outputs, record, carry = self.step(obs, carry)
        logits = self.table(outputs, legal_actions(obs))
        action = logits.argmax(-1) if greedy else draw(logits)
        return {"action": action, "log_prob": log_prob_of(logits, action).sum(-1), **record}, carry

    def table(self, outputs: Tensor, legal: Tensor | None) -> Tensor:
        """[..., sum(nvec)] -> logits [..., D, max(nvec)], -inf where a value is illegal or does not exist."""
        exists = self.exists.expand(*outputs.shape[:-1], *self.exists.shape)
        allowed = exists if legal is None else exists & legal[..., self.places]
        padding = ~allowed.any(-1, keepdim=True)
        return torch.where(allowed | (padding & exists), outputs[..., self.places], float("-inf"))

    def factor_logits(self, batch: Batch) -> Tensor:
        """Logits [..., D, max(nvec)] of the factors, -inf where a value is illegal or does not exist."""
        return self.table(self.outputs(batch), legal_in(batch))

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return log_prob_of(self.factor_logits(batch), batch["action"]).sum(-1)

    def entropy(self, batch: Batch) -> Tensor:
        return entropy_of(self.factor_logits(batch)).sum(-1)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.factor_logits(batch)
        return log_prob_of(logits, batch["action"]).sum(-1), entropy_of(logits).sum(-1)

    def kl(self, batch: Batch, other: Any) -> Tensor:
        same_family(self, other)
        return kl_between(self.factor_logits(batch), other.factor_logits(batch)).sum(-1)

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Cross-entropy [...], summed over the factors."""
        return -self.log_prob(batch)

    def env_action(self, action: Tensor) -> Tensor:
        return (action + self.start).reshape(*action.shape[:-1], *self.shape)

    def own_action(self, action: Tensor) -> Tensor:
        return action.flatten(-len(self.shape)) - self.start

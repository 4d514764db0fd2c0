"""Policies that are a critic of finitely many actions: they take what it values most, or now and then anything."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.core.spec import Spec
from polopt.networks.encoders import Obs, first_leaf
from polopt.policies.base import Actor, Record, legal_actions
from polopt.policies.categorical import DiscreteActor, draw, mask_logits
from polopt.policies.wrappers import Wrapper, uniform_logits
from polopt.values.finite import FiniteQ


class BestAction(DiscreteActor):
    """Takes the allowed action of the largest value: of the mean over the members of its critic, which is `net`.

    It never samples; `EpsilonGreedy` explores. Allowed is what the `action_mask` of an observation does not forbid.
    """

    family = "greedy policy"
    net: FiniteQ

    def __init__(self, spec: Spec, critic: FiniteQ) -> None:
        super().__init__(spec, critic)

    def allowed(self, obs: Obs) -> Tensor | None:
        """Which actions [..., K] may be taken; None: all of them."""
        return legal_actions(obs)

    def values(self, obs: Obs) -> Tensor:
        """The mean over the members [..., K], -inf where an action is not allowed."""
        return mask_logits(self.net(obs).mean(0), self.allowed(obs))

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return {"action": self.values(obs).argmax(-1)}, {}


class EpsilonGreedy(Wrapper):
    """Takes a uniformly random legal action with probability `epsilon`, and else what `actor` does; greedy actions stay
    the actor's. The record loses `log_prob`."""

    def __init__(self, actor: Actor, epsilon: float) -> None:
        super().__init__(actor)
        self.epsilon = epsilon

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, carry = self.actor.act(obs, carry, greedy=greedy)
        record = {key: value for key, value in record.items() if key != "log_prob"}
        if not greedy:
            action, device = record["action"], first_leaf(obs).device
            (logits,) = uniform_logits(action.shape, [self.spec.num_actions], legal_actions(obs), device)
            explores = torch.rand(action.shape, device=device) < self.epsilon
            record["action"] = torch.where(explores, draw(logits), action)
        return record, carry

"""Experts for several models of the world, of which at every state the most pessimistic one that knows it acts.

Zouitine et al., "Solving robust MDPs as a sequence of static RL problems", 2024, arXiv 2410.06212.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.state import Stateful
from polopt.models.coverage import Coverage
from polopt.networks.encoders import Obs
from polopt.policies.base import Actor, Record
from polopt.policies.wrappers import Wrapper
from polopt.values.critics import QEnsemble


class Expert(nn.Module):
    """Who has learned to act in one model: an actor, its critics, and where it has been."""

    def __init__(self, actor: Actor, critic: QEnsemble, coverage: Coverage) -> None:
        super().__init__()
        self.actor, self.critic, self.coverage = actor, critic, coverage
        self.requires_grad_(False)


class Pessimist(Wrapper, Stateful):
    """The first `used` of its experts, of which at every observation only those have a say that cover it; the latest
    one where none does.

        value   expert argmin_j V_j(s), V_j(s) = min_k Q_jk(s, mu_j(s)), mu_j(s) the mode of its policy
        q-min   argmax_a min_jk Q_jk(s, a), over the mode and `samples` - 1 draws of each of the experts

    Before there is one it acts as `actor`. `make()` is an expert who has learned nothing: how a saved one begins.
    The record has `action` and, by "value", `chosen` [N], the number of the expert. Raises UsageError for recurrent
    actors, whose memory would be that of others.
    """

    saved = ("count", "used")

    def __init__(self, actor: Actor, make: Callable[[], Expert], rule: str = "value", samples: int = 8) -> None:
        super().__init__(actor)
        if actor.recurrent:
            raise UsageError("experts take turns at single observations: use a feed-forward network")
        self.rule, self.samples = rule, samples
        self._make = make
        self.count, self.used = 0, 0  # experts there are, and those that act
        self.experts = nn.ModuleList()

    def rebuilt(self) -> None:
        while len(self.experts) < self.count:
            self.experts.append(self._make())

    def keep(self, actor: Actor, critic: nn.Module, coverage: nn.Module) -> None:
        """Takes in an expert as it is now; all that there are act from here on."""
        expert = self._make()
        for mine, its in ((expert.actor, actor), (expert.critic, critic), (expert.coverage, coverage)):
            mine.load_state_dict(its.state_dict())
        self.experts.append(expert.to(device_of(actor)))
        self.count += 1
        self.used = self.count

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if not self.used:
            return self.actor.act(obs, carry, greedy=greedy)
        experts: list[Any] = [*self.experts][: self.used]
        covered = torch.stack([expert.coverage(obs) for expert in experts])  # [J, N]
        covered[-1] |= ~covered.any(0)
        modes = torch.stack([expert.actor.act(obs, greedy=True)[0]["action"] for expert in experts])  # [J, N, A]
        row = torch.arange(covered.shape[1], device=covered.device)
        if self.rule == "value":
            value = torch.stack([expert.critic(obs, mode).amin(0) for expert, mode in zip(experts, modes)])
            chosen = value.where(covered, torch.inf).argmin(0)
            action = modes
            if not greedy:
                action = torch.stack([expert.actor.act(obs)[0]["action"] for expert in experts])
            return {"action": action[chosen, row], "chosen": chosen}, {}
        draws = [expert.actor.act(obs)[0]["action"] for _ in range(self.samples - 1) for expert in experts]
        actions = torch.cat([modes, torch.stack(draws)]) if draws else modes  # [C, N, A]
        value = torch.stack([expert.critic(obs, actions).amin(0) for expert in experts])  # [J, C, N]
        best = value.where(covered.unsqueeze(1), torch.inf).amin(0).argmax(0)
        return {"action": actions[best, row]}, {}

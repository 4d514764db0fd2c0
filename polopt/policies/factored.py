"""A decision of several parts, each taken by an actor of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Actor, Record


def factors(space: spaces.Discrete | spaces.MultiDiscrete) -> list[int]:
    """The number of values of each part of a decision; a Discrete space has one part."""
    return [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec.reshape(-1)]


class Factored(Actor):
    """One actor without memory for each factor of a MultiDiscrete space, or one for a Discrete space.

    All see the same observation. Records what they record, with an axis [..., D] of factors behind: `action` and
    `log_prob`, which is that of each factor.
    """

    family = "team of actors"
    start: Tensor

    def __init__(self, spec: Spec, actors: Sequence[Actor]) -> None:
        super().__init__()
        assert isinstance(spec.action, (spaces.Discrete, spaces.MultiDiscrete))
        if len(actors) != len(factors(spec.action)):
            raise ValueError(f"{spec.action} needs {len(factors(spec.action))} actors, not {len(actors)}")
        self.spec = spec
        self.actors = nn.ModuleList(actors)
        shape = spec.action.shape or (1,)
        start = torch.as_tensor(spec.action.start).expand(shape).reshape(-1).long()
        self.register_buffer("start", start.clone(), persistent=False)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        records = [actor.act(obs, greedy=greedy)[0] for actor in self.actors]  # type: ignore[operator]
        return {name: torch.stack([record[name] for record in records], -1) for name in records[0]}, {}

    def env_action(self, action: Tensor) -> Tensor:
        shape = self.spec.action.shape or ()
        return (action + self.start).reshape(*action.shape[:-1], *shape)

    def own_action(self, action: Tensor) -> Tensor:
        shape = self.spec.action.shape or ()
        return action.reshape(*action.shape[: action.dim() - len(shape)], -1) - self.start

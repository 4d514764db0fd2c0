"""A policy of its own for every step of an episode of a known length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.networks.encoders import Obs, leading_shape
from polopt.policies.base import Actor, Record
from polopt.policies.wrappers import Wrapper


class ByStep(Wrapper):
    """Acts by `actors[h]` at step h of an episode, and by the last of them beyond. The record has "time" int64 [N], h.

    It promises nothing but to act: what is trained are the actors that it holds, each on the decisions of its step.
    """

    def __init__(self, actors: Sequence[Actor]) -> None:
        super().__init__(actors[0])
        self.actors = nn.ModuleList(actors)
        self.recurrent = True  # it remembers the time
        self.family = f"{actors[0].family} for every step"

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        rows = leading_shape(self.spec.obs, obs)[0]
        time = carry["time"] if carry else torch.zeros(rows, dtype=torch.int64, device=self.where)
        which = time.clamp(max=len(self.actors) - 1)
        steps = which.unique().tolist()
        records = [self._of(step)(obs, None, greedy=greedy)[0] for step in steps]  # of all rows, which are few steps
        record = dict(records[0])
        for step, other in zip(steps[1:], records[1:]):
            here = which == step
            record = {name: chosen(here, other[name], value) for name, value in record.items()}
        return record | {"time": which}, {"time": time + 1}

    def _of(self, step: int) -> Any:
        actor: Any = self.actors[step]
        return actor.act

    @property
    def where(self) -> torch.device:
        return next(self.parameters()).device

    def update_normalizer(self, batch: Batch) -> None:
        for actor in self.actors:
            actor.update_normalizer(batch)  # type: ignore[operator]


def chosen(here: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """`value` [N, ...] in the rows `here` [N], else `other`."""
    return torch.where(here.view(-1, *[1] * (value.dim() - 1)), value, other)

"""Rounds: experience is collected once, used for a while in minibatches, and then collected anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.core.modules import device_of
from polopt.data.base import Acts, Source, put
from polopt.data.components import Tally
from polopt.data.samplers import own_generator
from polopt.data.tokens import trim


class Rounds(Source):
    """Collects from `source` at the beginning of a round, and serves what `prepare` makes of it, rows [B] of any kind.

    A round is `epochs` passes over the rows, each in a new order, in minibatches of `batch_size`, the last of a pass as
    small as need be. `round` counts the rounds begun. `finished` is True where the next call collects, before the first
    round and after the last minibatch of each: then a method renews what holds for a round, such as a reference.

    Rows of tokens are trimmed to the longest of the minibatch, and batches are on the device of the actor. The rows of
    a round are state, so that a resumed run ends the round that it was in. Raises UsageError for sizes below 1, and
    RunError for a round without rows.
    """

    saved = ("round", "served")

    def __init__(
        self,
        source: Source,
        batch_size: int,
        epochs: int = 1,
        *,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
        generator: torch.Generator | None = None,
    ) -> None:
        if batch_size < 1 or epochs < 1:
            raise UsageError(f"a round has batches of at least 1 and at least 1 epoch, not {batch_size} and {epochs}")
        self.source = source
        self.batch_size = batch_size
        self.epochs = epochs
        self.prepare = prepare
        self.generator = own_generator(generator)
        self.round = 0
        self.served = 0  # minibatches of this round
        self._rows: Batch | None = None
        self._order = torch.empty(0, dtype=torch.int64)  # [epochs, B]

    @property
    def finished(self) -> bool:
        return self._rows is None

    def next(self, actor: Acts) -> Batch:
        if self._rows is None:
            self._rows = self.prepare(self.source.next(actor))
            if not len(self._rows):
                raise RunError(f"round {self.round + 1} has no rows to learn from")
            self.round, self.served = self.round + 1, 0
            orders = [torch.randperm(len(self._rows), generator=self.generator) for _ in range(self.epochs)]
            self._order = torch.stack(orders)
        rows = self._rows
        parts = updates_per_round(len(rows), self.batch_size)
        epoch, part = divmod(self.served, parts)
        chosen = self._order[epoch, part * self.batch_size : (part + 1) * self.batch_size]
        self.served += 1
        if self.served == parts * self.epochs:
            self._rows = None
        return put(trim(rows[chosen]), device_of(actor))

    def episodes(self) -> list[tuple[float, int]]:
        return self.source.episodes()

    def components(self) -> Tally:
        return self.source.components()

    def extra_state(self) -> dict[str, Any]:
        if self._rows is None:
            return {}
        rows = {f"rows/{path}": value for path, value in self._rows.flatten_keys("/").items()}
        return {"order": self._order, **rows}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._rows = None
        if state:
            self._order = state["order"].clone()
            rows = {path.removeprefix("rows/"): value for path, value in state.items() if path != "order"}
            self._rows = TensorDict(rows, batch_size=[self._order.shape[1]]).unflatten_keys("/")


def updates_per_round(rows: int, batch_size: int, epochs: int = 1) -> int:
    """Number of minibatches of a round."""
    return epochs * -(-rows // batch_size)

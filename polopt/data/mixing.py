"""Batches of several sources: concatenated, or side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from polopt.core.batch import Batch, align_left, flat, nested
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.base import Acts, Source, put
from polopt.data.components import Tally, added
from polopt.data.tokens import LEFT, widen


def cat_rows(batches: Sequence[Batch], defaults: Mapping[str, float] | None = None) -> Batch:
    """Concatenates batches along their first dimension; the result has the keys of all of them.

    Rows of tokens (batches with a completion) are padded with zeros and False to the longest: on the left in prompt and
    prompt_mask, on the right elsewhere. A key that a batch lacks gets its value in `defaults`; if it is per token, only
    where the `mask` of that batch is True. Raises UsageError, naming source and key, for a missing key without a
    default and for shapes that do not fit.
    """
    owner: dict[str, int] = {}
    for number, batch in enumerate(batches):
        for name in batch.keys():
            owner.setdefault(name, number)
    tokens = all("completion" in batch.keys() for batch in batches)
    joined: dict[str, Any] = {}
    for name, source in owner.items():
        values: list[Any] = []
        for number, batch in enumerate(batches):
            if name in batch.keys():
                values.append(batch[name])
            elif defaults is not None and name in defaults:
                values.append(_filled(batch, name, batches[source], defaults[name]))
            else:
                raise UsageError(f"source {number} gives no '{name}', which source {source} does")
        if isinstance(values[0], TensorDictBase):
            joined[name] = cat_rows(values)
            continue
        if tokens and values[0].dim() > 1:
            width = max(value.shape[1] for value in values)
            values = [widen(value, width, name in LEFT) for value in values]
        for number, value in enumerate(values):
            if value.shape[1:] != values[0].shape[1:]:
                raise UsageError(
                    f"source {number} gives '{name}' of shape {tuple(value.shape[1:])} per row, and source 0 of shape "
                    f"{tuple(values[0].shape[1:])}"
                )
        joined[name] = torch.cat(values)
    size = [sum(len(batch) for batch in batches), *batches[0].batch_size[1:]]
    return TensorDict(joined, batch_size=size, device=batches[0].device)


def _filled(batch: Batch, name: str, other: Batch, default: float) -> Tensor:
    """A column of `default` for `batch`, shaped like `name` of `other`."""
    like = other[name]
    if not isinstance(like, Tensor):
        raise UsageError(f"'{name}' is nested, so it has no default value")
    mask, theirs = batch.get("mask", None), other.get("mask", None)
    if mask is None or theirs is None or like.shape[: theirs.dim()] != theirs.shape:
        return like.new_full((len(batch), *like.shape[1:]), default)
    value = like.new_full((*mask.shape, *like.shape[theirs.dim() :]), default)
    return torch.where(align_left(mask, value), value, torch.zeros_like(value))


class Mixed(Source):
    """The rows of `first` and of `second` in one batch, with `origin` (int64 [B]): 0 and 1.

    Args:
        ratio: rows of `second` for every row of `first`. None concatenates what both give: for 50/50 of two replays
            they have equal batch sizes. Otherwise `second` is asked as often as needed, and what is left over comes
            first the next time; fractions of rows are made good later, so the ratio holds in the long run.
        defaults: values for keys that only one of them gives; without one a missing key is a UsageError.

    `index` stays as it is (`origin` tells whose it is); group ids of the second are moved behind those of the first,
    except negative ones ("no group").
    """

    saved = ("asked", "given")

    def __init__(
        self, first: Source, second: Source, ratio: float | None = None, defaults: Mapping[str, float] | None = None
    ) -> None:
        if ratio is not None and ratio <= 0:
            raise UsageError(f"the ratio of two sources is above 0, not {ratio}")
        self.first = first
        self.second = second
        self.ratio = ratio
        self.defaults = defaults
        self.asked = 0.0  # rows of the second that the ratio asks for so far
        self.given = 0
        self._rest: Batch | None = None

    def next(self, actor: Acts) -> Batch:
        batches = [self.first.next(actor)]
        if self.ratio is None:
            batches.append(self.second.next(actor))
        else:
            self.asked += self.ratio * len(batches[0])
            count = int(self.asked + 1e-6) - self.given
            self.given += count
            if count:
                batches.append(self._take(actor, count))
        after = 0
        for origin, batch in enumerate(batches):
            batch = batches[origin] = batch.clone(False)
            shape = batch.batch_size
            batch["origin"] = torch.full(shape, origin, device=batch.device)
            group = batch.get("group", None)
            if group is not None:
                batch["group"] = torch.where(group < 0, group, group + after)
                after = max(after, int(batch["group"].max()) + 1)
        return cat_rows(batches, self.defaults)

    def _take(self, actor: Acts, count: int) -> Batch:
        if self._rest is not None:  # one that was loaded comes on the CPU
            self._rest = put(self._rest, device_of(actor))
        while self._rest is None or len(self._rest) < count:
            more = self.second.next(actor)
            self._rest = more if self._rest is None else cat_rows([self._rest, more])
        taken, rest = self._rest[:count], self._rest[count:]
        self._rest = rest if len(rest) else None
        return taken

    def episodes(self) -> list[tuple[float, int]]:
        return self.first.episodes() + self.second.episodes()

    def components(self) -> Tally:
        return added(self.first.components(), self.second.components())

    def extra_state(self) -> dict[str, Any]:
        return {} if self._rest is None else flat(self._rest)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._rest = None
        if state:
            size = [len(next(iter(state.values())))]
            self._rest = TensorDict(nested(state), batch_size=size)


class Paired(Source):
    """One batch of every source, nested under its name; batch_size [], so each side is split by itself."""

    def __init__(self, **sources: Source) -> None:
        self.sources = sources

    def next(self, actor: Acts) -> Batch:
        return TensorDict({name: source.next(actor) for name, source in self.sources.items()}, batch_size=[])

    def episodes(self) -> list[tuple[float, int]]:
        return [episode for source in self.sources.values() for episode in source.episodes()]

    def components(self) -> Tally:
        return functools.reduce(added, (source.components() for source in self.sources.values()), {})

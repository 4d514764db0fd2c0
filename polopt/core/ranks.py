"""Several processes run one program: the rows of a batch are divided among them, and everything else all of them do.

Every process (a rank of `torch.distributed`) has the same seed, so it draws the same numbers, holds the same batch and
takes the same decisions. What costs time is done for its own rows only and joined: generation, scoring without
gradients, rewards, and the gradients of an optimizer step. So a method does not know how many processes there are, and
weights, which are written on the whole batch, need no second normalization.

Rows are divided into `parts()`, at least one for each process. A process that has several does them one after the
other: one process goes on with a run of two, to the last bit. With one part every function here does nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import RunError
from polopt.core.random import own_luck

T = TypeVar("T")
BUCKET = 1 << 24  # numbers that are sent at once: a copy of these stands beside the gradients
_parts = 1
_apart = False  # within work that the other processes do not do


class Gone(RunError):
    """Another process has ended, so that nothing can be joined with it any more."""


def count() -> int:
    """How many processes share the work that is done here."""
    return 1 if _apart or not dist.is_available() or not dist.is_initialized() else dist.get_world_size()


def index() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return index() == 0


def parts() -> int:
    """Into how many parts rows are divided here."""
    return 1 if _apart else max(_parts, count())


def own() -> range:
    """Which of the parts are this process's: neighbors."""
    size, total = count(), parts()
    rank = index() if size > 1 else 0
    return range(total * rank // size, total * (rank + 1) // size)


def mine(total: int) -> list[slice]:
    """Which of `total` rows are this process's: a block of neighbors for each of its parts, of about equal sizes, of
    which some are empty where there are fewer rows than parts."""
    return [slice(total * part // parts(), total * (part + 1) // parts()) for part in own()]


@contextmanager
def divided(number: int) -> Iterator[None]:
    """Inside, rows are divided into so many parts, however many processes there are."""
    global _parts
    before, _parts = _parts, number
    try:
        yield
    finally:
        _parts = before


@contextmanager
def apart() -> Iterator[None]:
    """Inside, the process works on what is its own already: nothing is divided or joined."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


# What the processes tell each other


def told(function: Callable[[], T]) -> T:
    """What the first process finds, which the others wait for and are told; an error of it is raised in all."""
    if count() == 1:
        return function()
    said = [_tried(function) if first() else None]
    _together(dist.broadcast_object_list, said)
    return cast(T, _opened(said[0]))


def each(function: Callable[[], T]) -> list[T]:
    """What every process finds, in their order; an error of one is raised in all."""
    if count() == 1:
        return [function()]
    said: list[Any] = [None] * count()
    _together(dist.all_gather_object, said, _tried(function))
    return [_opened(one) for one in said]


def in_turn(function: Callable[[], T]) -> T:
    """What each process finds, one after the other: of files that the first one makes and the others have then."""
    if count() == 1:
        return function()
    turns = [each(partial(_at, turn, function)) for turn in range(count())]
    return cast(T, turns[index()][index()])


def _at(turn: int, function: Callable[[], T]) -> T | None:
    return function() if turn == index() else None


def shared(items: Sequence[int], function: Callable[[Sequence[int]], dict[int, T]]) -> dict[int, T]:
    """`function(items)`, each process for items of its own, put together.

    It may draw random numbers, which then differ between the processes; afterwards their generators agree again.
    """
    if count() == 1:
        return function(items)
    chosen = [item for block in mine(len(items)) for item in items[block]]

    def work() -> dict[int, T]:
        with apart(), own_luck(_seed()):
            return function(chosen) if chosen else {}

    found = {item: value for one in each(work) for item, value in one.items()}
    return {item: found[item] for item in items if item in found}


def most(value: int) -> int:
    """The largest of the processes' values."""
    if count() == 1:
        return value
    found = torch.tensor(value)
    _together(dist.all_reduce, found, dist.ReduceOp.MAX)
    return int(found)


# Sums


def add_(tensors: Iterable[Tensor]) -> None:
    """Adds up each tensor over the processes, in place. Rows that one has and the others hold as zeros are joined."""
    if count() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        bucket: list[Tensor] = []
        for tensor in same:
            if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
                _add_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        _add_bucket(bucket)


def _add_bucket(bucket: list[Tensor]) -> None:
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
    kind = flat.dtype
    flat = flat.to(torch.uint8) if kind == torch.bool else flat
    _together(dist.all_reduce, flat)
    for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
        tensor.detach().copy_(part.view(tensor.shape).to(kind))


def joined(function: Callable[[Batch], Tensor], batch: Batch, *, even: bool = False) -> Tensor:
    """`function(batch [B]) -> [B, ...]` without gradients, each process for rows of its own, put together.

    `even`: all processes call it equally often, whoever has fewer rows in vain.
    """
    if parts() == 1 or not len(batch):
        return function(batch)
    blocks = [block for block in mine(len(batch)) if block.stop > block.start]
    calls = most(max(1, len(blocks))) if even else 0
    with apart():
        found = [function(batch[block]) for block in blocks] or [function(batch[:1])[:0]]
        for _ in range(len(found), calls):
            function(batch[:1])
    if count() == 1:
        return torch.cat(found)
    whole = found[0].new_zeros(len(batch), *found[0].shape[1:])
    for block, values in zip(blocks, found):
        whole[block] = values
    add_([whole])
    return whole


def gradients_(
    parameters: Sequence[Tensor], sums: dict[str, Tensor], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Adds up gradients over the processes, in place, and returns named numbers, on the `device`, added up likewise.

    What some process has counts as zero in those that lack it; a gradient that none has stays None.
    """
    if count() == 1:
        return sums
    said = each(lambda: ([*sums], [parameter.grad is not None for parameter in parameters]))
    names = dict.fromkeys(name for these, _ in said for name in these)
    for parameter, reached in zip(parameters, map(any, zip(*(flags for _, flags in said)))):
        if reached and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    device = parameters[0].device if device is None else device
    sums = {name: sums[name].clone() if name in sums else torch.zeros((), device=device) for name in names}
    add_([parameter.grad for parameter in parameters if parameter.grad is not None])
    add_(sums.values())
    return sums


# Inside


def _tried(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # errors with constructors of their own
            return None, RunError(f"{type(error).__name__}: {error}")
        return None, error


def _opened(said: Any) -> Any:
    value, error = said
    if error is not None:
        raise error
    return value


def lost(error: RuntimeError) -> bool:
    """Whether this is what gloo or NCCL say when another process cannot take part any more."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error)


def _together(collective: Callable[..., Any], *arguments: Any) -> None:
    """A collective operation. Raises Gone when another process cannot take part."""
    try:
        collective(*arguments)
    except RuntimeError as error:  # what gloo and NCCL say when a connection is closed
        raise Gone("another process of this run has ended") from error


def _seed() -> int:
    """A number of this process that is another one in each, and whenever the generators are elsewhere."""
    with torch.random.fork_rng([]):
        drawn = int(torch.randint(2**31, ()))
    return int(np.random.SeedSequence([drawn, index()]).generate_state(1)[0])

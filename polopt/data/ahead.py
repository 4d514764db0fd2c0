"""Batches that are sampled ahead of the updates that learn from them, by a schedule and not by who is faster.

Batch n is sampled with the weights after update n - offset (the first ones with the weights at the start), whatever the
time it takes: in this process, or while this one updates in one of its own, on this machine or of Ray. Each batch has
random numbers of its own, so that it does not matter where and when it is made. Trinity-RFT (arXiv 2505.17826) calls
the lag `sync_offset`.
"""

from __future__ import annotations

import pickle
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core import signals
from polopt.core.batch import Batch
from polopt.core.cluster import OwnActor
from polopt.core.errors import RunError
from polopt.core.ledger import Ledger
from polopt.core.modules import device_of, parameters_of
from polopt.core.pool import OwnProcess, of_script, packed
from polopt.core.random import own_luck
from polopt.core.state import gather, restore
from polopt.data.base import Acts, Source, put
from polopt.data.components import Tally, added
from polopt.optim.copies import source_of


@dataclass
class Sampled:
    """A batch, and what its making has added to the ledger, the episodes and the counts of reward functions."""

    batch: Batch
    spent: dict[str, int]
    episodes: list[tuple[float, int]]
    components: Tally


class Ahead(Source):
    """Serves the batches of `source` in their order, each sampled `offset` updates before it is learned from.

    Args:
        source: completions of prompts that depend on nothing that an update changes but the weights of the actor.
        offset: how many batches are always on the way.
        ledger: what is spent is counted here when a batch is served.
        where: "inline"; or in a process of its own, which ends with this one: "process", on this machine, or "actor",
            of Ray.

    Before every call of `next` but the first there is one update. The batches on the way are state; a checkpoint waits
    for those that are being made. `lag` is by how many updates the last batch is older than the actor that asked.
    Raises RunError when the process dies, and UsageError when actor or task cannot be sent to it, or it cannot begin.
    """

    saved = ("served", "seed")

    def __init__(self, source: Any, offset: int, ledger: Ledger, where: str = "inline") -> None:
        self.offset = offset
        self.ledger = ledger
        self.where = where
        self.served = 0
        self.seed = int(torch.randint(2**31, ()))
        self._source = source
        self._source.ledger = Ledger()  # what is sampled and not yet served counts there
        self._ready: deque[Sampled] = deque()
        self._sampler: _Sampler | None = None
        self._waiting = 0  # batches that the sampler is making
        self._episodes: list[tuple[float, int]] = []
        self._components: Tally = {}

    @property
    def lag(self) -> int:
        return min(max(self.served - 1, 0), self.offset)

    def next(self, actor: Acts) -> Batch:
        while (begun := self.served + len(self._ready) + self._waiting) <= self.served + self.offset:
            self._begin(actor, begun)
        if not self._ready:
            self._take()
        found = self._ready.popleft()
        self.served += 1
        for unit, count in found.spent.items():
            setattr(self.ledger, unit, self.ledger[unit] + count)
        self._episodes += found.episodes
        self._components = added(self._components, found.components)
        return put(found.batch, device_of(actor))

    def _begin(self, actor: Acts, number: int) -> None:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.where == "inline":
            self._ready.append(sample(self._source, actor, seed))
            return
        if self._sampler is None:
            with own_luck(seed):  # Ray draws
                self._sampler = _Sampler(self.where, self._source, actor)
        self._sampler.begin([weight.detach() for weight in changing(actor)], seed)
        self._waiting += 1

    def _take(self) -> None:
        """Waits for the batch that was begun first."""
        assert self._sampler is not None
        found, state = self._sampler.take()
        self._waiting -= 1
        self._ready.append(found)
        restore(self._source, state)

    def close(self) -> None:
        """Ends the process."""
        if self._sampler is not None:
            self._sampler.close()
        self._sampler, self._waiting = None, 0

    def episodes(self) -> list[tuple[float, int]]:
        ended, self._episodes = self._episodes, []
        return ended

    def components(self) -> Tally:
        counted, self._components = self._components, {}
        return counted

    def extra_state(self) -> dict[str, Any]:
        while self._waiting:
            self._take()
        state: dict[str, Any] = {f"source/{path}": leaf for path, leaf in gather(self._source).items()}
        state["notes"] = [[each.spent, each.episodes, each.components] for each in self._ready]
        state["counted"] = [self._episodes, self._components]
        for number, each in enumerate(self._ready):
            state |= {f"{number}/{path}": value for path, value in each.batch.flatten_keys("/").items()}
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.close()
        own = {path.removeprefix("source/"): leaf for path, leaf in state.items() if path.startswith("source/")}
        restore(self._source, own)
        self._ready = deque()
        for number, (spent, episodes, components) in enumerate(state["notes"]):
            prefix = f"{number}/"
            rows = {path.removeprefix(prefix): x for path, x in state.items() if path.startswith(prefix)}
            batch = TensorDict(rows, batch_size=[len(rows["group"])]).unflatten_keys("/")
            self._ready.append(Sampled(batch, dict(spent), _pairs(episodes), _tally(components)))
        self._episodes, self._components = _pairs(state["counted"][0]), _tally(state["counted"][1])


def _pairs(episodes: Sequence[Sequence[float]]) -> list[tuple[float, int]]:
    return [(float(value), int(count)) for value, count in episodes]


def _tally(components: Tally) -> Tally:
    return {name: list(counts) for name, counts in components.items()}


def changing(actor: Any) -> list[Tensor]:
    """The parameters of an actor that an update may change: not what is frozen where it is trained, such as all of a
    model but its adapters."""
    return [own for own, trained in zip(parameters_of(actor), _trained(actor), strict=True) if trained]


def _trained(module: nn.Module) -> Iterator[bool]:
    """Of every parameter, in their order: whether it is trained, or what it is a copy of."""
    source = source_of(module)
    if source is not None:
        yield from _trained(source)
        return
    yield from (parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _trained(child)


def sample(source: Any, actor: Acts, seed: int) -> Sampled:
    """The next batch of `source`, with random numbers of its own, on the CPU."""
    before = source.ledger.counts()
    with own_luck(seed, device_of(actor)):
        batch = source.next(actor)
    spent = {unit: count - before[unit] for unit, count in source.ledger.counts().items()}
    return Sampled(batch.cpu(), spent, source.episodes(), source.components())


class Beside(OwnProcess):
    """A process of this machine that is given calls without waiting until it reads them."""

    def __init__(self, *, script: bool = False) -> None:
        super().__init__(daemon=True, script=script)
        self._feeder = ThreadPoolExecutor(1)  # a pipe is full until the other side reads

    def give(self, call: bytes) -> None:
        self._feeder.submit(super().give, call)

    def ready(self, seconds: float) -> bool:
        return bool(wait([self.pipe, self.process.sentinel], timeout=seconds))

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._feeder.shutdown()
        self.pipe.close()


class _Sampler:
    """A process with a source and an actor of its own, which is given the weights of each batch."""

    def __init__(self, where: str, source: Any, actor: Any) -> None:
        call = packed(_open, (source, actor, torch.get_num_threads(), torch.get_default_dtype()))
        cuda = device_of(actor).type == "cuda"
        self.process = (
            OwnActor("--sampler actor", gpus=float(cuda)) if where == "actor" else Beside(script=of_script([call]))
        )
        self._end = weakref.finalize(self, self.process.close)
        self.process.give(call)
        self._answer()

    def begin(self, weights: list[Tensor], seed: int) -> None:
        self.process.give(packed(_sample, (weights, seed)))

    def take(self) -> tuple[Sampled, dict[str, Any]]:
        found: tuple[Sampled, dict[str, Any]] = self._answer()
        return found

    def _answer(self) -> Any:
        while not self.process.ready(0.5):
            signals.check()
        answer = self.process.answer()
        if answer is None:
            raise RunError(f"the process that samples ahead {self.process.end()}: 'polopt resume' goes on")
        good, value = pickle.loads(answer)
        if not good:
            raise value
        return value

    def close(self) -> None:
        self._end()


# In the process

_held: list[Any] = []


def _open(source: Any, actor: Any, threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    if parent_process() is not None:  # Ray ends its own
        signals.leave_to_parent()
    _held[:] = source, actor


@torch.no_grad()
def _sample(weights: list[Tensor], seed: int) -> tuple[Sampled, dict[str, Any]]:
    source, actor = _held
    for own, given in zip(changing(actor), weights, strict=True):
        own.copy_(given)
    return sample(source, actor, seed), gather(source)

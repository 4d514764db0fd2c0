"""A learner and the learners that it holds: what reaches all of them, such as progress, devices and compiling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from polopt.core.compiling import compiled
from polopt.core.state import Stateful, held
from polopt.data.base import Source
from polopt.optim import Optimizer
from polopt.optim.whole import compiled_wholes

L = TypeVar("L", bound="Learner")
P = TypeVar("P")


class Learner(Stateful):
    """What a method is besides its mathematics: modules, optimizers, sources and further learners, as attributes, or
    inside lists, tuples and dicts of them."""

    source: Source
    device: torch.device | str | None = None  # of `to`; this and the two below are for learners to come: see `adopt`
    compiled: dict[str, Any] | None = None  # options of `compile`
    prepared: bool = False
    wholes: Mapping[Any, Any] = MappingProxyType({})  # what `compile` made of functions that `whole` marks
    _progress: float = 0.0

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent, in [0, 1); set by the loop, read by schedules."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        for _, part in held(self, Learner, Optimizer):
            part.progress = value

    def learners(self) -> Iterator[tuple[str, Any]]:
        """This method (path "") and all that it holds, outermost first, each once: attributes, and what is inside
        lists, tuples and dicts. Progress, devices, compiling, the checks before a save and finished episodes follow it.
        """
        seen: set[int] = set()

        def walk(path: str, learner: Learner) -> Iterator[tuple[str, Any]]:
            if id(learner) not in seen:
                seen.add(id(learner))
                yield path, learner
                for name, other in held(learner, Learner):
                    yield from walk(f"{path}.{name}" if path else name, other)

        return walk("", self)

    def _parts(self, kind: type[P]) -> Iterator[tuple[str, P]]:
        """Attributes of a kind, of this method and of all that it holds, by path, each once."""
        seen: set[int] = set()
        for path, learner in self.learners():
            for name, part in held(learner, kind):
                if id(part) not in seen:
                    seen.add(id(part))
                    yield f"{path}.{name}" if path else name, part

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of this method and of all that it holds, by path, each once."""
        return self._parts(nn.Module)

    def optimizers(self) -> Iterator[Optimizer]:
        """The optimizers of this method and of all that it holds, each once."""
        return (optimizer for _, optimizer in self._parts(Optimizer))

    def sources(self) -> Iterator[tuple[str, Source]]:
        """The sources of this method and of all that it holds, with the path of the learner that each serves (""
        for this method itself), each once."""
        seen: set[int] = set()
        for path, learner in self.learners():
            own = [learner.source] if hasattr(learner, "source") else []  # of a staged method: that of its stage
            for source in (*own, *(source for _, source in held(learner, Source))):
                if id(source) not in seen:
                    seen.add(id(source))
                    yield path, source

    def episodes(self) -> dict[str, list[tuple[float, int]]]:
        """(return, length) of the training episodes that ended since the last call, by the path of their learner."""
        ended: dict[str, list[tuple[float, int]]] = {}
        for path, source in self.sources():
            if episodes := source.episodes():
                ended.setdefault(path, []).extend(episodes)
        return ended

    def prepare(self) -> None:
        """Opens what only training needs, such as data sets. Called before a run begins or is resumed, and before its
        saved state is loaded; not when a policy is only loaded. Learners that it holds are prepared after it."""

    def losses(self) -> Iterator[str]:
        """Names of the loss methods."""
        yield from (name for name in dir(type(self)) if name.endswith("_loss") and not name.startswith("_"))

    def to(self, device: torch.device | str) -> None:
        """Moves every module; sources follow their actor, and environments and storage stay on the CPU."""
        for _, learner in self.learners():
            learner.device = device
        for _, module in self.modules():
            module.to(device)

    def compile(self, **options: Any) -> None:
        """Compiles what this method and all that it holds compute; `options` go to `torch.compile`."""
        for _, learner in self.learners():
            learner.compiled = options
            learner.compile_own(**options)

    def compile_own(self, **options: Any) -> None:
        """Compiles every function that `whole` marks; elsewhere every `*_loss`, and every step that an optimizer takes
        on one. What is around them stays Python."""
        for name in self.losses():
            setattr(self, name, compiled(getattr(self, name), **options))
        for _, optimizer in held(self, Optimizer):
            optimizer.compile(**options)
        self.wholes = compiled_wholes(self, list(self.optimizers()), **options)

    def adopt(self, learner: L) -> L:
        """Makes a learner that is built while this one trains ready as this one is: moved, compiled and prepared."""
        if self.device is not None:
            learner.to(self.device)
        if self.compiled is not None:
            learner.compile(**self.compiled)
        if self.prepared:
            learner.prepare_all()
        return learner

    def prepare_all(self) -> None:
        """`prepare` of this method and of all that it holds."""
        for _, learner in self.learners():
            learner.prepare()
            learner.prepared = True

"""Builds the smallest run that a method declares, for the guards that every method gets from the registry."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from polopt import registry
from polopt.bases import offline
from polopt.bases.language import GroupMethod, LanguageMethod
from polopt.bases.method import Method
from polopt.bases.staged import Staged
from polopt.core.batch import Batch
from polopt.core.state import Blob, find, gather
from polopt.data.base import Source
from polopt.optim import copies
from polopt.policies.wrappers import Uniform
from polopt.tasks.base import Task
from polopt.tasks.gym import GymTask
from polopt.training import api, seeding

OWN = {"rivals": registry.Location("tests.guards.rivals", "Rivals", Path(__file__).with_name("rivals.py"))}
"""Methods that are no entries, in the form in which the registry knows one: what no entry does yet is guarded too."""
ENTRIES = registry.entries()
BUILT = [*ENTRIES, *OWN]
SEED = 7


@contextlib.contextmanager
def own_methods() -> Iterator[None]:
    """The registry knows `OWN`; every guard runs inside."""
    found = registry.locations
    registry.locations = lambda: {**found(), **OWN}
    try:
        yield
    finally:
        registry.locations = found


_recordings: dict[tuple[Any, ...], tuple[Batch, dict[str, Any], Any]] = {}


@contextlib.contextmanager
def recorded_once() -> Iterator[None]:
    """The dataset "random" of an environment is played once: it is the same each time (`recorded_data`), and every
    build of an offline method would wait for it. The environment is left where the episodes leave it."""
    original = offline.record

    def record(actor: Any, task: Task, episodes: int, *, greedy: bool = True) -> Batch:
        if type(task) is not GymTask or type(actor) is not Uniform:
            return original(actor, task, episodes, greedy=greedy)
        made = repr(task._make), task._workers, task.num, task.seed, task.evaluation, tuple(task._asked)
        key = (*made, str(task.spec), episodes, greedy, torch.get_default_dtype())
        if key not in _recordings:
            data = original(actor, task, episodes, greedy=greedy)
            _recordings[key] = data, task.extra_state(), task._make  # which lives on, and so does its address
            return data.clone()
        data, state, _ = _recordings[key]
        task.load_extra_state(copy.deepcopy(state))
        task.player = actor  # whoever plays on begins anew
        return data.clone()

    offline.record = record
    try:
        yield
    finally:
        offline.record = original


def load(name: str) -> type[Method]:
    """The class of a method in `BUILT`."""
    with own_methods():
        cls: type[Method] = registry.load(name)
        return cls


def kind(name: str) -> tuple[str, ...]:
    """What a method is made of: its base in `polopt.bases`, and the sources that its own modules name."""
    own = [cls for cls in load(name).__mro__ if not cls.__module__.startswith(("polopt.bases", "polopt.core"))]
    base = next(cls for cls in load(name).__mro__ if cls.__module__.startswith("polopt.bases"))
    named = {value for cls in own for value in vars(inspect.getmodule(cls)).values() if isinstance(value, type)}
    return (base.__name__, *sorted(value.__name__ for value in named if issubclass(value, Source)))


def compiled_code(name: str) -> tuple[Any, ...]:
    """What of a method decides how it is compiled: its base, whose steps and losses are compiled, and what it collects.

    Of language models it is the passes of `policies/causal_passes.py`, in all of them the same, which have tests of
    their own. `make test-all` compiles every method.
    """
    cls = load(name)
    if issubclass(cls, LanguageMethod):
        return "passes", issubclass(cls, GroupMethod)
    base, *sources = kind(name)
    return base, *(source in sources for source in ("ReplaySource", "Rollouts", "Episodes"))


def seen_by_verbs(name: str) -> tuple[Any, ...]:
    """What of a method the verbs tell apart: its base, what it counts, and whether it has a score of its own."""
    cls = load(name)
    return kind(name)[0], cls.unit, cls.score == "return"


def one_of_a_kind(names: Sequence[str], of: Callable[[str], tuple[Any, ...]] = kind) -> list[Any]:
    """Parameters for a guard that is dear: the plainest method of every kind always, the others in `make test-all`."""
    plainest = {of(name): name for name in sorted(names, key=lambda name: len(load(name).__mro__), reverse=True)}
    dear = {name: () if name in plainest.values() else pytest.mark.exhaustive for name in names}
    return [pytest.param(name, marks=marks) for name, marks in dear.items()]


def plan(name: str, task: str | None = None, **changes: Any) -> api.Plan:
    """The plan of a method's smoke run, with changed settings, or on another task."""
    smoke = registry.load(name).smoke
    if task is not None:
        smoke = replace(smoke, task=task, task_options={})
    settings = {"steps": smoke.steps, "seed": SEED, "eval_episodes": 2, "eval_every": smoke.steps, "loggers": ()}
    return api.plan(name, smoke.task, task_options=smoke.task_options, **{**smoke.config, **settings, **changes})


@contextlib.contextmanager
def built(name: str, task: str | None = None, **changes: Any) -> Iterator[Method]:
    """A freshly seeded method; its task is closed afterwards."""
    planned = plan(name, task, **changes)
    method = planned.build()
    try:
        yield method
    finally:
        for _, each in find(method, Task):
            each.close()


def advance(method: Method, steps: int, updates: int | None = None) -> list[dict[str, float]]:
    """The loop without anything around it, until `steps` of the method's unit; returns the metrics of each update."""
    return list(islice(steps_of(method, steps), updates))


def steps_of(method: Method, steps: int) -> Iterator[dict[str, float]]:
    """The same, update by update."""
    while method.ledger[method.unit] < steps:
        method.progress = min(method.ledger[method.unit] / steps, 1.0)
        metrics = method.update(method.collect())
        method.ledger.updates += 1
        yield {key: float(value) for key, value in metrics.items()}


def parameters(method: Method) -> dict[str, torch.Tensor]:
    """Every parameter of every module that is an attribute, by path."""
    return {
        f"{name}.{path}": parameter
        for name, module in method.modules()
        for path, parameter in module.named_parameters()
    }


class Trained:
    """What a run trains, and whether it moves. It looks before each update: a stage has learners of its own."""

    def __init__(self) -> None:
        self.before: dict[torch.Tensor, tuple[str, torch.Tensor]] = {}
        self.own: set[torch.Tensor] = set()
        self.slow: set[torch.Tensor] = set()

    def look(self, method: Method) -> None:
        for path, value in parameters(method).items():
            if value not in self.before:
                self.before[value] = path, value.detach().clone()
        self.slow |= {parameter for _, twin, _ in copies(method) for parameter in twin.parameters()}
        self.own |= {parameter for optimizer in method.optimizers() for parameter in optimizer.parameters}

    def faults(self) -> list[str]:
        """What is not as it should be at the end."""
        found = []
        for value, (path, start) in self.before.items():
            moved = not torch.equal(value, start)
            if not torch.isfinite(value).all():
                found.append(f"{path} is not finite")
            if value.requires_grad and not moved:
                found.append(f"{path} is trainable and did not move")
            if value.requires_grad and value not in self.own:
                found.append(f"{path} is trainable and in no optimizer")
            if not value.requires_grad and value not in self.slow and moved:
                found.append(f"{path} is frozen and moved")
        return found


def content(leaf: Any) -> Any:
    """A copy of a leaf of a state, of a block its tensors."""
    return copy.deepcopy(leaf.tensors() if isinstance(leaf, Blob) else leaf)


def kept(method: Method) -> dict[str, Any]:
    """The state of a method, with blocks that can be read when it has gone on."""
    return {
        path: Blob(leaf.key, partial(dict, content(leaf))) if isinstance(leaf, Blob) else content(leaf)
        for path, leaf in gather(method).items()
    }


def enough(name: str) -> int | None:
    """How many updates of a run show what is the same in all: six. A staged method shows each of its stages (None)."""
    return None if issubclass(load(name), Staged) else 6


def begun(name: str, method: Method, updates: int) -> bool:
    """Whether this is half of the smoke run, or `enough` of it."""
    return updates == enough(name) or method.ledger[method.unit] >= load(name).smoke.steps // 2


def begin(name: str, method: Method) -> dict[str, torch.Tensor]:
    """Trains until then; the parameters."""
    for updates, _ in enumerate(steps_of(method, load(name).smoke.steps), 1):
        if begun(name, method, updates):
            break
    return {path: value.detach() for path, value in parameters(method).items()}


def reseed() -> None:
    seeding.seed_everything(SEED)

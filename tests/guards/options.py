"""Every option of a method away from its value in the smoke run: does a number change?

Run `python -m tests.guards.options METHOD ...` to see what each option of a method does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice, zip_longest
from typing import Any

import torch

from polopt import registry
from polopt.bases.method import Method
from polopt.config.params import Config, Param, hints_of, is_config, members, param_of, spell, without_of
from polopt.core.errors import UsageError
from polopt.training.api import Plan
from tests.guards.harness import BUILT, Trained, advance, begun, kept, parameters, plan, steps_of

TRIED = 5  # values of one option at most
SOON = 2  # updates after which most options have shown, if the run has to be made for them
BY_CAPABILITY = ("network", "policy")  # other choices than the one of the smoke run: test_capabilities


@dataclass(frozen=True)
class Option:
    """A field of a method's config or of one of its parts, as it is in the smoke run."""

    name: str
    value: Any
    others: tuple[Any, ...]
    own: bool  # the method's own config class adds it


def options(name: str, config: Config | None = None, within: str = "") -> Iterator[Option]:
    """The options of a config (by default that of the method's smoke run) that have another value to try.

    Texts that name something, callables and parts without a choice have none. `within` a part: those of the part.
    """
    config = config or plan(name).config
    own = {item.name for item in fields(config)} - {item.name for item in fields(type(config).__bases__[0])}
    for path, value, hint, info in _walk(config):
        if path.startswith(within):
            others = tuple(islice(_others(value, hint, info, path), TRIED))
            if others:
                yield Option(path, value, others, path in own)


def _walk(config: Config, prefix: str = "", skipped: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any, Param]]:
    hints = hints_of(type(config))
    for item in fields(config):
        value, info = getattr(config, item.name), param_of(item)
        if item.name not in skipped and info is not None:
            yield prefix + item.name, value, hints[item.name], info
            if isinstance(value, Config):
                yield from _walk(value, f"{prefix}{item.name}.", without_of(item))


def _others(value: Any, hint: Any, info: Param, path: str) -> Iterator[Any]:
    """Other legal values, those first that should show most."""
    kinds = members(hint)
    found: list[Any] = []
    if isinstance(value, bool):
        found = [not value]
    elif info.choices is not None:
        found = list(info.choices)
    elif isinstance(value, int):
        found = [value // 2, 2 * value, value + 1, 1, 0]
    elif isinstance(value, float):
        found = [value / 2, 2 * value, 0.4, -1.0, 0.0, value / 10, 1.0]
    elif isinstance(value, tuple) and value and all(type(each) in (int, float) for each in value):
        found = [tuple(type(each)(each / 2) for each in value), tuple(2 * each for each in value)]
    elif value is None:
        found = [1, 2, 3] * (int in kinds) + [0.4, 1e-9, 2.0] * (float in kinds) + [True] * (bool in kinds)
    if path.rpartition(".")[2] not in BY_CAPABILITY:
        choices = [kind for kind in kinds if is_config(kind)]
        found += [kind() for kind in choices if type(value) is not kind]
        found += [named for kind in choices for named in kind.named.values()]
    found += [None] * (type(None) in kinds)
    for index, each in enumerate(found):
        if each != value and each not in found[:index] and info.allows(each):
            yield each


def changed(config: Config, path: str, value: Any) -> Config:
    """The config with another value at a dotted path. Raises UsageError where that is not legal."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def declared(config: Config, path: str) -> str:
    """Why the option at this path may leave all numbers as they are; "" when it may not."""
    for cls in type(config).__mro__:
        if path in vars(cls).get("inert", {}):
            return vars(cls)["inert"][path]
    name, _, rest = path.partition(".")
    return declared(getattr(config, name), rest) if rest else ""


@contextmanager
def _running(planned: Plan) -> Iterator[Method]:
    method = planned.build()
    try:
        yield method
    finally:
        method.task.close()


def _numbers(method: Method, planned: Plan) -> Iterator[dict[str, float]]:
    """The metrics of each update of the smoke run, and those of an evaluation at its end."""
    yield from steps_of(method, planned.steps)
    yield _scores(method, planned)


def _scores(method: Method, planned: Plan) -> dict[str, float]:
    task = planned.make_task(1, 2)
    try:
        return dict(method.evaluate(task, 2))
    finally:
        task.close()


class Run:
    """The smoke run of a method, or its first updates, and whether another run differs from it."""

    plan: Plan
    numbers: list[dict[str, float]]
    upto: int | None = None

    def __init__(self, name: str, config: Config | None = None, upto: int | None = None, **settings: Any) -> None:
        self.plan = plan(name, **settings)
        self.upto = upto
        if config is not None:
            self.plan.config = config
        with _running(self.plan) as method:
            self.numbers = list(islice(_numbers(method, self.plan), upto))

    def differs(self, config: Config) -> bool:
        """Whether the run with this config gives other numbers; it ends with the first. Raises UsageError."""
        planned = dataclasses.replace(self.plan, config=config)
        with _running(planned) as method:
            numbers = islice(_numbers(method, planned), self.upto)
            return any(_apart(*pair) for pair in zip_longest(self.numbers, numbers))


class Smoke(Run):
    """The smoke run as it is, with what several guards ask of it.

    Attributes:
        half: the parameters where the run has `begun`.
        state: all of its state there.
        faults: what is not trained as it should be.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self.plan = plan(name, **settings)
        self.numbers = []
        self.half, self.state = {}, {}
        trained = Trained()
        with _running(self.plan) as method:
            while method.ledger[method.unit] < self.plan.steps:
                trained.look(method)
                self.numbers += advance(method, self.plan.steps, updates=1)
                if not self.half and begun(name, method, len(self.numbers)):
                    self.half = {path: value.detach().clone() for path, value in parameters(method).items()}
                    self.state = kept(method)
            self.faults = trained.faults()
            self.numbers.append(_scores(method, self.plan))


@functools.cache
def smoke(name: str) -> Smoke:
    """The smoke run of a method in double precision, made once."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return Smoke(name)
    finally:
        torch.set_default_dtype(before)


def _apart(one: dict[str, float] | None, other: dict[str, float] | None) -> bool:
    if one is None or other is None or one.keys() != other.keys():
        return True
    return not all(math.isclose(one[key], other[key], rel_tol=1e-9, abs_tol=1e-12) for key in one)


def probe_of(name: str, option: str) -> dict[str, Any]:
    """The settings under which the method says that the option shows."""
    for cls in registry.load(name).__mro__:
        if option in vars(cls).get("probes", {}):
            return dict(vars(cls)["probes"][option])
    return {}


def effect(name: str, option: Option, first: Callable[[], Run], asked: bool = False) -> str:
    """What another value of the option does: "acts", "refused: sentence", "declared: reason" or "nothing: values". One
    that is declared is tried only where that is `asked`."""
    probe = probe_of(name, option.name)
    values: tuple[Any, ...] = (probe.pop(option.name),) if option.name in probe else option.others
    reason = declared(plan(name, **probe).config, option.name)
    if reason and not asked:
        return f"declared: {reason}"
    for upto in (SOON, None) if probe else (None,):
        run = Run(name, upto=upto, **probe) if probe else first()
        refusal, tried = "", []
        for value in values:
            try:
                if run.differs(changed(run.plan.config, option.name, value)):
                    return "acts"
                tried.append(value)
            except UsageError as error:
                refusal = str(error)
        if not tried:
            break
    if reason:
        return f"declared: {reason}"
    return f"nothing: {', '.join(spell(value) for value in tried)}" if tried else f"refused: {refusal}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with tempfile.TemporaryDirectory(prefix="polopt-options-") as cache:
        os.environ["POLOPT_CACHE"] = cache
        for each in sys.argv[1:] or BUILT:
            first = Run(each)
            print(each, flush=True)
            for item in options(each):
                said = effect(each, item, lambda run=first: run, asked=True)
                if said != "acts":
                    print(f"    {item.name} {spell(item.value)}: {said}", flush=True)

"""Updates that are compiled as one function: all losses, all optimizer steps, and what follows them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from polopt.core import ranks
from polopt.core.batch import Batch, closed, opened
from polopt.core.compiling import compiled, gradients_traced
from polopt.core.errors import Notice
from polopt.optim.optimizer import Optimizer

Step = Callable[..., dict[str, Tensor]]
F = TypeVar("F", bound=Step)


def whole(function: F) -> F:
    """Marks what a learner does to a batch, `(self, batch, ...) -> metrics`, as one function for `--compile`.

    It may compute with tensors, call losses and step optimizers, and must leave everything else as it is: counters,
    schedules and random generators of its own belong to its caller, because a compiled function is made anew for every
    number that it finds changed. Further arguments are tensors, or say which branch is meant: each of their values has
    a function of its own.

        @whole
        def step(self, batch, improving): ...

        def update(self, batch):
            self.updates += 1
            return self.step(batch, self.updates % self.config.delay == 0)
    """

    @functools.wraps(function)
    def call(self: Any, batch: Batch, *branch: Any) -> dict[str, Tensor]:
        made = None if torch.compiler.is_compiling() else self.wholes.get(function)
        return function(self, batch, *branch) if made is None else made(batch, *branch)

    call.is_whole = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def compiled_wholes(learner: Any, optimizers: Sequence[Optimizer], **options: Any) -> dict[Step, Step]:
    """Of every function that `whole` marks in the classes of a learner: the compiled one. None with a torch that is too
    old to trace gradients. `options` go to `torch.compile`."""
    functions = marked_functions(type(learner)) if gradients_traced() else ()
    return {function: _compiled(learner, function, optimizers, options) for function in functions}


def _compiled(learner: Any, function: Step, optimizers: Sequence[Optimizer], options: dict[str, Any]) -> Step:
    """Where it cannot be one graph, or has more versions than torch keeps, it is the function, in which each optimizer
    compiles its own step: said in a Notice, or raised where `options` ask for a full graph."""

    def one(columns: Any, kind: Any, *branch: Any) -> dict[str, Tensor]:
        return function(learner, closed(columns, kind), *branch)

    from torch._dynamo import exc  # takes a second, which a run without it need not wait

    graph = compiled(one, **(options | {"fullgraph": True}))
    possible = True

    def call(batch: Batch, *branch: Any) -> dict[str, Tensor]:
        nonlocal possible
        if possible and ranks.parts() == 1 and not any(optimizer.divides for optimizer in optimizers):
            for optimizer in optimizers:
                optimizer.ready()
            try:
                return graph(*opened(batch), *branch)
            except (exc.Unsupported, exc.UserError, exc.FailOnRecompileLimitHit) as error:  # nothing was done yet
                if options.get("fullgraph"):
                    raise
                why = str(error).strip().partition("\n")[0]
                warnings.warn(f"{function.__qualname__} is compiled in parts: {why}", Notice, stacklevel=2)
                possible = False
        return function(learner, batch, *branch)

    return call


def marked_functions(cls: type) -> Iterator[Step]:
    """The functions of a class that `whole` marks, also those that it overrides and may call."""
    for base in cls.__mro__:
        for value in vars(base).values():
            if getattr(value, "is_whole", False):
                yield value.__wrapped__

"""Several trainings: one after another, side by side on this machine, or on a Ray cluster, with the same numbers.

A job is a call of a function. It has one torch thread wherever it runs, because sums depend on the number of threads,
unless it asks for more itself. A process that dies takes its job with it, which then begins again: a run that goes on
where it was (`train_or_resume`) loses what it did since its last checkpoint. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.core.errors import UsageError
from polopt.core.pool import THREADS, packed, spread


@dataclass(frozen=True)
class Engine:
    """Where jobs run.

    Args:
        jobs: at a time. 1 is this process, one job after another, and more are processes of their own; None is 1, and
            on Ray as many as fit.
        ray: "local" begins a Ray cluster of this machine, "auto" is the one that it belongs to, HOST:PORT another one.
        gpus: of the cluster for each job; part of one for several jobs that share it.

    Raises UsageError.
    """

    jobs: int | None = None
    ray: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: at least 1")
        if self.gpus and self.ray is None:
            raise UsageError("--gpus-per-job is for --ray, which gives each job its own: --ray local is this machine")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise UsageError(f"--gpus-per-job {self.gpus:g}: part of one, or a whole number")

    @property
    def here(self) -> bool:
        """Whether jobs run in this process."""
        return self.ray is None and self.jobs in (None, 1)


def run_jobs(
    function: Callable[..., Any], todo: Sequence[tuple[Any, ...]], engine: Engine, folder: Path
) -> Iterator[tuple[int, Any]]:
    """Calls `function(*todo[place])` for every place; (place, result) as they end. `folder` is where they write.

    The result of a job whose process died three times is `polopt.core.pool.Died`, which names the signal; the others
    go on. At Ctrl-C, or where a call raises, no other begins, and those that run are told to save.

    Raises what a call raises, and UsageError when other processes could not import what is given, or for a cluster that
    is not there or not fit.
    """
    if engine.here:
        for place, arguments in enumerate(todo):
            with one_thread():
                result = function(*arguments)
            yield place, result
        return
    try:
        calls = [packed(function, arguments) for arguments in todo]
    except UsageError as error:
        what = f"jobs={engine.jobs}" if engine.ray is None else f"ray={engine.ray}"
        raise UsageError(f"with {what} {error}") from None
    if engine.ray is not None:
        from polopt.training.on_ray import on_ray

        yield from on_ray(calls, engine.ray, engine.jobs, engine.gpus, folder)
        return
    yield from spread(calls, engine.jobs or 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch has one thread, whether it is imported already or only then."""
    before = {name: os.environ.get(name) for name in THREADS}
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if threads is not None:
        sys.modules["torch"].set_num_threads(1)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)

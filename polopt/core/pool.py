"""Calls of one function side by side, in processes that end with this one. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from polopt.core.errors import RunError
from polopt.core.workers import end_with


def spread(
    function: Callable[..., Any], each: Sequence[tuple[Any, ...]], count: int, *, patience: float = 0.0
) -> Iterator[tuple[int, Any]]:
    """Calls `function` with each of these arguments in `count` processes; (place, result) as they come.

    Every process has one thread of OpenMP, and none outlives this one, however it ends. Where a call raises, or this
    process is interrupted, no other call begins, and those that run are asked to stop (SIGTERM, at which a run saves);
    they have `patience` seconds for it, or until a second Ctrl-C.

    Raises what a call raises, and RunError when a process has died.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        places = {pool.submit(_call, function, arguments): place for place, arguments in enumerate(each)}
        for done in as_completed(places):
            yield places[done], done.result()
    except BaseException as error:
        _stop(pool, patience)
        if isinstance(error, BrokenProcessPool):
            raise RunError("a worker process died (out of memory?); finished runs are kept, run it again") from None
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stop(pool: ProcessPoolExecutor, patience: float) -> None:
    """Ends the processes; whoever still works when time is up is killed."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    try:
        for process in processes:
            process.terminate()
        end = time.monotonic() + patience
        for process in processes:
            process.join(max(end - time.monotonic(), 0.0))
    finally:
        for process in processes:
            process.kill()


# What runs in the processes.

_working = False
_stopped = False


def _begin(parent: int) -> None:
    end_with(parent)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if sys.platform != "win32":
        os.setpgid(0, 0)  # a Ctrl-C of the terminal is the parent's, which passes it on
    signal.signal(signal.SIGTERM, _note)


def _note(number: int, frame: Any) -> None:
    """What SIGTERM does outside of training, which has a handler of its own."""
    global _stopped
    again, _stopped = _stopped, True  # a group of processes and the parent may both be told to stop
    if _working and not again:
        raise KeyboardInterrupt


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    global _working, _stopped
    if _stopped:  # it was handed out before
        raise KeyboardInterrupt
    _working = True
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        _stopped = True
        raise
    finally:
        _working = False

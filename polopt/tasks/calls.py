"""Calls of code that may raise, hang or be slow, one after another, with a time limit for each."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polopt.core.workers import Hung, Outcome


class Calls:
    """Calls of one function, one after another, in a daemon thread: a function that hangs cannot hold up the run.

    A Python function that exceeds its time is asked to stop; one that waits inside C code keeps its thread.
    """

    def __init__(self, function: Callable[..., Any], each: Sequence[Mapping[str, Any]]) -> None:
        self._function, self._each = function, each
        self._outcomes: list[tuple[Any, BaseException | None]] = []
        self._began = time.monotonic()  # the call that runs now
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for arguments in self._each:
            self._began = time.monotonic()
            value, wrong = None, None
            try:
                value = self._function(**arguments)
                value = asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value
            except BaseException as error:  # SystemExit too: a reward function may not end the run
                wrong = error
            if self._over.is_set():  # it was left behind
                return
            self._began = time.monotonic()  # before the outcome: what is found not to have come began no earlier
            self._outcomes.append((value, wrong))
        self._over.set()

    def results(self, seconds: float) -> list[Outcome]:
        """What came of the calls, in order, each as a function that returns or raises it. The list ends with Hung at
        the first call that took more than `seconds`; those after it are not made."""
        while True:
            count, began = len(self._outcomes), self._began
            if self._over.wait(max(began + seconds - time.monotonic(), 0.0)):
                return [functools.partial(_outcome, *outcome) for outcome in self._outcomes]
            if len(self._outcomes) == count and time.monotonic() - began >= seconds:
                self._over.set()
                ident = ctypes.c_ulong(self._thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
                hung = (None, Hung(f"took more than {seconds:g} seconds"))
                return [functools.partial(_outcome, *outcome) for outcome in [*self._outcomes[:count], hung]]


def _outcome(value: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
    return value


def in_threads(function: Callable[..., Any], each: Sequence[Mapping[str, Any]], seconds: float) -> list[Outcome]:
    """What came of a call for each of these arguments, in order; Hung for those that took more than `seconds`.

    One at a time, because user code need not be safe in threads; after two have hung, the remaining ones run side by
    side, so that a function that always hangs costs three times `seconds`.
    """
    found: list[Outcome] = []
    hung = 0
    while len(found) < len(each) and hung < 2:
        found += Calls(function, each[len(found) :]).results(seconds)
        hung += 1
    end = time.monotonic() + seconds
    for calls in [Calls(function, [one]) for one in each[len(found) :]]:
        found += calls.results(max(end - time.monotonic(), 0.0))
    return found


async def _awaited(value: Any) -> Any:
    return await value

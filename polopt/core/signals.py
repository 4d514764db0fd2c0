"""Ctrl-C and SIGTERM: answered with a line at once, acted on where a long loop asks. Imports no torch.

While a run trains, the first signal is only noted, so that what has been begun can end in a checkpoint of now. Loops
that take long (steps of episodes, tokens, steps of optimizers) call `check()`, which raises `Stopped`

    inside `breakable()`    at once: an evaluation leaves nothing behind, and is made up for when the run goes on
    elsewhere               when `PATIENCE` seconds have passed: the checkpoint before is then what is left of the run

A second signal raises KeyboardInterrupt wherever it comes, but for a SIGTERM that comes with the first (`ECHO`), also
when the run has ended by then.
Outside of `watched()` nothing is noted: Ctrl-C raises, as Python has it, and within `raising()` SIGTERM does, too.
Worker processes leave both to their parent (`leave_to_parent`).
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 10.0  # seconds that an update may go on after the first signal: schedulers kill 30 seconds after it
ECHO = 1.0  # seconds in which SIGTERM again is the same one, as `timeout` sends it to a process and to its group
SAID = "stopping: what has been begun ends and is saved; once more stops at once"
_watch: Watch | None = None
_noted = -math.inf  # when the last first one came, on the clock of `time.monotonic`


class Stopped(KeyboardInterrupt):
    """The first signal has come, and a long loop has asked."""


class Watch:
    """What is known of signals since it was made; `heard` once the first one has come."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.breakable = False
        self.thread = threading.get_ident()

    @property
    def heard(self) -> bool:
        return self.since is not None

    def note(self, number: int, frame: Any) -> None:
        """The handler of both signals."""
        global _noted
        if self.since is not None:
            _interrupt(number, frame)
            return
        self.since = _noted = time.monotonic()
        _say(f"polopt: {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}: {SAID}")

    def act(self) -> None:
        """Raises Stopped where nothing is lost by it, and where it has taken too long. Other threads go on."""
        if self.since is None or threading.get_ident() != self.thread:
            return
        if self.breakable or time.monotonic() - self.since > PATIENCE:
            raise Stopped


@contextmanager
def watched() -> Iterator[Watch]:
    """Notes the first Ctrl-C or SIGTERM of this thread, in a watch; in other threads than the main one none comes."""
    global _watch
    watch, before = Watch(), _watch
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    handlers = {number: signal.signal(number, watch.note) for number in (signal.SIGINT, signal.SIGTERM)}
    _watch = watch
    try:
        yield watch
    finally:
        _watch = before
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def breakable() -> Iterator[None]:
    """Inside, `check` acts on a signal at once."""
    watch = _watch
    if watch is None or watch.breakable or threading.get_ident() != watch.thread:
        yield
        return
    watch.breakable = True
    try:
        watch.act()  # one that came before
        yield
    finally:
        watch.breakable = False


def check() -> None:
    """Asked in every step of a long loop. Raises Stopped when it should end here."""
    if _watch is not None and _watch.since is not None:
        _watch.act()


@contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that what has been begun is cleared away."""
    global _noted
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    _noted = -math.inf
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: Any) -> None:
    if number == signal.SIGINT or time.monotonic() - _noted > ECHO:
        raise KeyboardInterrupt


def leave_to_parent() -> None:
    """In a worker: Ctrl-C and SIGTERM, which come to whole groups of processes, are for its parent to act on.

    What the worker starts hears them, which it would not if they were ignored here.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
        if hasattr(signal, "siginterrupt"):
            signal.siginterrupt(number, False)  # no call of a library fails because one came


def _leave(number: int, frame: Any) -> None:
    pass


def _say(text: str) -> None:
    """To standard error, also where the signal has come while something was being written there."""
    try:
        print(text, file=sys.stderr, flush=True)
    except RuntimeError:
        os.write(2, f"\n{text}\n".encode())
    except (OSError, ValueError):  # nobody reads it any more
        pass

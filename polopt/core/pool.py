"""Calls of functions side by side, in processes that end with this one and are tried again when they die.

Imports no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from polopt.core.errors import RunError, UsageError
from polopt.core.workers import end_with, main_hidden

TRIES = 3  # how often a call is begun whose process dies
PATIENCE = 60.0  # seconds in which calls that are told to stop may save
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STOPPED = 128 + signal.SIGTERM  # the exit code of a process that was told to stop


class Died(RunError):
    """What stands in the place of a call's result when its process has died every time."""


def packed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """A call for another process. Raises UsageError when what is given cannot be imported there."""
    try:
        return pickle.dumps((function, arguments))
    except Exception as error:
        said = " ".join(str(error).split())
        raise UsageError(f"other processes must be able to import what is given: {said}") from None


def of_script(calls: Iterable[bytes]) -> bool:
    """Whether calls (`packed`) need what the user's script itself defines."""
    return any(b"__main__" in call for call in calls)


def spread(calls: Sequence[bytes], count: int) -> Iterator[tuple[int, Any]]:
    """Makes each call (`packed`) in one of `count` processes; (place, result) as they come.

    A process has one thread of OpenMP and does one call after another; none outlives this one, however it ends. When
    it dies its call is begun again, after those that wait, and the third time the result is `Died`. Where a call
    raises, or this process is interrupted, no other call begins, and those that run are asked to stop (SIGTERM, at
    which a run saves); they have `PATIENCE` seconds for it, or until a second Ctrl-C. Raises what a call raises.
    """
    waiting, script = deque((place, 1) for place in range(len(calls))), of_script(calls)
    busy: dict[OwnProcess, tuple[int, int]] = {}
    idle: list[OwnProcess] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                worker = idle.pop() if idle else OwnProcess(script=script)
                busy[worker] = place, _ = waiting.popleft()
                worker.give(calls[place])
            for worker in _ready(busy):
                place, attempt = busy.pop(worker)
                answer = worker.answer()
                if answer is None:
                    if attempt < TRIES:
                        waiting.append((place, attempt + 1))
                    else:
                        yield place, Died(f"its process died {TRIES} times; at last it {worker.end()}")
                    continue
                idle.append(worker)
                good, value = pickle.loads(answer)
                if not good:
                    raise value
                yield place, value
    finally:
        _stop(busy, idle)


class OwnProcess:
    """A process that makes one call after another, in the order in which they are given. It runs the user's script
    again only where that is asked for (`script`), which then needs its `if __name__ == "__main__":`."""

    def __init__(self, *, daemon: bool = False, script: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=daemon)
        with nullcontext() if script else main_hidden():
            self.process.start()
        theirs.close()

    def give(self, call: bytes) -> None:
        with suppress(OSError):  # it is gone: seen when it is asked for the answer
            self.pipe.send_bytes(call)

    def answer(self) -> bytes | None:
        """What the call gave; None when the process has died."""
        try:
            if self.pipe.poll():
                return self.pipe.recv_bytes()
        except (EOFError, OSError):
            pass
        self.process.join()
        return None

    def end(self) -> str:
        """How the process has ended, as the end of a sentence."""
        code = self.process.exitcode or 0
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"ended with code {code}"
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _ready(workers: Collection[OwnProcess]) -> list[OwnProcess]:
    """Those that have answered or ended. It wakes up once a second, for interruptions that wake no system call."""
    found: list[Any] = []
    while not found:
        found = wait([item for worker in workers for item in (worker.pipe, worker.process.sentinel)], timeout=1.0)
    return [worker for worker in workers if worker.pipe in found or worker.process.sentinel in found]


def _stop(busy: Collection[OwnProcess], idle: Collection[OwnProcess]) -> None:
    """Ends the processes; whoever still works when time is up is killed."""
    for worker in idle:
        worker.pipe.close()  # which ends it
    try:
        for worker in busy:
            worker.process.terminate()
        end = time.monotonic() + PATIENCE
        for worker in (*busy, *idle):
            worker.process.join(max(end - time.monotonic(), 0.0))
    finally:
        for worker in (*busy, *idle):
            worker.process.kill()


# What runs in the processes.

_working = False
_stopped = False


def _serve(pipe: Connection, parent: int) -> None:
    global _working
    end_with(parent)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if sys.platform != "win32":
        os.setpgid(0, 0)  # a Ctrl-C of the terminal is the parent's, which passes it on
    signal.signal(signal.SIGTERM, _note)
    while True:
        try:
            call = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        _working = True
        try:
            answer = answer_of(call)
        except KeyboardInterrupt:
            sys.exit(STOPPED)
        _working = False
        pipe.send_bytes(answer)


def _note(number: int, frame: Any) -> None:
    """What SIGTERM does outside of training, which has a handler of its own."""
    global _stopped
    again, _stopped = _stopped, True  # a group of processes and the parent may both be told to stop
    if not _working:
        sys.exit(STOPPED)
    if not again:
        raise KeyboardInterrupt


def answer_of(call: bytes) -> bytes:
    """Makes the call: whether it was good, and what it gave or raised."""
    try:
        function, arguments = pickle.loads(call)
        return pickle.dumps((True, function(*arguments)))
    except Exception as error:
        if not isinstance(error, (UsageError, RunError)):
            error.add_note(f"in a process of its own:\n{traceback.format_exc()}")
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)  # some exceptions can be written and not read
        except Exception:
            own = UsageError if isinstance(error, UsageError) else RunError
            name = "" if isinstance(error, (UsageError, RunError)) else f"{type(error).__name__}: "
            answer = pickle.dumps((False, own(f"{name}{error}")))
        return answer

"""A function in processes of its own, which may hang, crash or eat memory without taking anything else down.

A worker is a fresh interpreter that imports the function by name: nothing of this process is in it, and a script that
starts one is not run again. What it is asked is pickled, what it answers is JSON: nothing that a worker says can run
code here. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from polopt.core import signals
from polopt.core.errors import UsageError

Outcome = Callable[[], Any]
"""What came of a call: a function that returns it, or raises it."""

START = 300.0  # seconds that a worker may take to import what it needs
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from polopt.core.workers import serve; serve(int(sys.argv[2]))"
)


class Hung(Exception):
    """A call that took too long and was left behind."""


class Failed(Exception):
    """A call that raised in its worker: what it said."""


class Crashed(Exception):
    """A call whose worker ended: how."""


class Worker:
    """One process; it begins when it is asked, and again after it has ended."""

    def __init__(self, code: Sequence[str], memory: float | None) -> None:
        self.code, self.memory = list(code), memory
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection
        self._end: Callable[[], Any] = lambda: None

    def begin(self) -> dict[str, Any]:
        """Starts the process and returns what it says of the function. Raises Crashed, and Failed where the function
        cannot be imported."""
        self.connection, theirs = Pipe()
        command = [sys.executable, "-c", CHILD, json.dumps(sys.path), str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._end = weakref.finalize(self, _kill, self.process, self.connection)
        self._send({"code": self.code, "memory": self.memory, "parent": os.getpid()})
        if not self.connection.poll(START):
            self.end()
            raise Crashed(f"did not begin within {START:g} seconds")
        return self.answer()

    def ask(self, arguments: Mapping[str, Any]) -> None:
        """Begins a call. Raises Crashed, or Failed where a new process cannot begin."""
        if self.process is not None:
            try:
                return self.connection.send(arguments)
            except OSError:  # it has ended since
                self.end()
        self.begin()
        self._send(arguments)

    def answer(self) -> Any:
        """What came of the call. Raises Crashed and Failed."""
        try:
            said = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise Crashed(self._how()) from None
        if "failed" in said:
            raise Failed(said["failed"])
        return said["value"]

    def end(self) -> None:
        """Kills the process, and what it has started."""
        self._end()
        self.process = None

    def _send(self, value: Any) -> None:
        try:
            self.connection.send(value)
        except OSError:
            raise Crashed(self._how()) from None

    def _how(self) -> str:
        process = self.process
        self.end()
        code = 0 if process is None else process.returncode
        return f"ended its process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


class Workers:
    """`count` processes that call one function, each of a list of calls with a time limit of its own.

    Args:
        code: "module:function"; texts behind it are arguments with which that is called to make the function.
        memory: GB of memory that a worker may have: beyond it the function gets a MemoryError.

    Attributes:
        timeout: the function's own, None without one.
        __signature__: that of the function.

    A worker that hangs, crashes or is no longer there is replaced when it is needed. All end with this process.
    Raises UsageError where the function cannot be called in a worker.
    """

    def __init__(self, code: Sequence[str], count: int = 1, memory: float | None = None) -> None:
        if not hasattr(os, "killpg") or (memory is not None and not sys.platform.startswith("linux")):
            what = "limits of memory need Linux" if hasattr(os, "killpg") else "processes need Linux or macOS"
            raise UsageError(f"rewards cannot be isolated so here: {what}")
        self.workers = [Worker(code, memory) for _ in range(count)]
        try:
            about = self.workers[0].begin()
        except (Crashed, Failed) as error:
            how = f"which {error}" if isinstance(error, Crashed) else error
            raise UsageError(f"'{code[0]}' cannot be called in a process of its own: {how}") from None
        kinds = [(name, getattr(inspect.Parameter, kind), needed) for name, kind, needed in about["parameters"]]
        empty = inspect.Parameter.empty
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, kind, default=empty if needed else None) for name, kind, needed in kinds]
        )
        self.timeout: float | None = about["timeout"]

    def __call__(self, each: Sequence[Mapping[str, Any]], seconds: float) -> list[Outcome]:
        """What came of a call for each of these arguments, in order. They raise Hung, Failed and Crashed."""
        found: dict[int, Outcome] = {}
        waiting = list(reversed(range(len(each))))
        busy: dict[Worker, tuple[int, float]] = {}
        try:
            while waiting or busy:
                for worker in self.workers:
                    if waiting and worker not in busy:
                        number = waiting.pop()
                        try:
                            worker.ask(each[number])
                            busy[worker] = number, time.monotonic() + seconds
                        except Exception as error:  # Crashed, Failed, or what it is asked cannot be sent
                            found[number] = functools.partial(_raise, error)
                soonest = min((end for _, end in busy.values()), default=0.0)
                ready = wait([worker.connection for worker in busy], max(soonest - time.monotonic(), 0.0))
                for worker, (number, end) in list(busy.items()):
                    if worker.connection in ready:
                        found[number] = _outcome(worker)
                    elif time.monotonic() >= end:
                        worker.end()
                        found[number] = functools.partial(_raise, Hung(f"took more than {seconds:g} seconds"))
                    else:
                        continue
                    del busy[worker]
        finally:
            for worker in busy:  # interrupted: an answer that comes later would be taken for that of another call
                worker.end()
        return [found[number] for number in range(len(each))]

    def end(self) -> None:
        """Kills all of them; they begin again when they are asked."""
        for worker in self.workers:
            worker.end()


def _outcome(worker: Worker) -> Outcome:
    try:
        value = worker.answer()
    except (Crashed, Failed) as error:
        return functools.partial(_raise, error)
    return lambda: value


def _raise(error: Exception) -> Any:
    raise error


def _kill(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Ends a worker with all that it has started in its session."""
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()  # only now: until then nobody else can have its number


# What runs in the worker.


def serve(handle: int) -> None:
    """Answers calls until the other end is closed."""
    os.set_inheritable(handle, False)
    signals.leave_to_parent()
    connection = Connection(handle)
    asked = connection.recv()
    end_with(asked["parent"])
    function: Any = None

    def imported() -> dict[str, Any]:
        nonlocal function
        module, _, path = asked["code"][0].partition(":")
        function = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        if len(asked["code"]) > 1:
            function = function(*asked["code"][1:])
        parameters = inspect.signature(function).parameters.values()
        limit = getattr(function, "timeout", None)
        return {
            "parameters": [(one.name, one.kind.name, one.default is inspect.Parameter.empty) for one in parameters],
            "timeout": limit if isinstance(limit, (int, float)) else None,
        }

    if asked["memory"] is not None:
        import resource

        size = int(asked["memory"] * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    connection.send_bytes(_said(imported))
    while function is not None:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send_bytes(_said(functools.partial(_called, function, arguments)))


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    value = function(**arguments)
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def _said(call: Callable[[], Any]) -> bytes:
    """{"value": ...} or {"failed": why} as JSON."""
    try:
        return json.dumps({"value": call()}, default=_plain).encode()
    except BaseException as error:  # SystemExit too: the worker goes on
        said = " ".join(str(error).split())
        return json.dumps({"failed": f"{type(error).__name__}{said and ': ' + said}"}).encode()


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of NumPy and torch, samples without a reward, and all else by its type."""
    if hasattr(value, "tolist"):
        return value.tolist()
    why = getattr(value, "why", None)
    return {"why": why} if isinstance(why, str) else f"<{type(value).__name__}>"


def end_with(parent: int) -> None:
    """Has this process end when its parent, of this number, does: whatever either is doing then."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        return
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Keeps multiprocessing from running the user's script again in every process that begins inside.

    They need nothing of it, since what it defines is sent by value; running it would start the training anew where
    `if __name__ == "__main__":` is missing, and import torch where it is not.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {key: vars(main).pop(key) for key in ("__file__", "__spec__") if key in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def end_with_maker(patience: float = 5.0) -> None:
    """Has this process of multiprocessing, whose parent may be a server, end when the one that made it does. Where it
    waits to be asked it ends by itself; `patience` are the seconds for whatever else it does then."""
    import threading

    maker = parent_process()
    if maker is None:
        return

    def watch() -> None:
        maker.join()
        time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

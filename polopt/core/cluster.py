"""A Ray cluster: how it is reached, whether a machine of it has the same code, and a process of it for calls.

The only module that imports Ray, which is optional (`polopt[cluster]`). Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import polopt
from polopt.core import signals
from polopt.core.errors import UsageError
from polopt.core.pool import TRIES

REACH = 5.0  # seconds in which a cluster must answer
SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray warns that it will be
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(TRIES - 1),  # else without end
    "RAY_worker_niceness": "0",  # else jobs give way to everything on the machine
}
"""Of Ray, where the environment does not say otherwise; those of a cluster that is there are its own."""


def code_here() -> dict[str, str]:
    """What must be the same on every machine: polopt to the letter, and torch."""
    root = Path(polopt.__file__).parent
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {"polopt": f"{polopt.__version__} ({code.hexdigest()[:8]})", "torch": metadata.version("torch")}


def installed(what: str = "--ray") -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(f'{what} needs Ray: pip install "polopt[cluster]"') from None
    return ray


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connects to the cluster at `address`, or begins one here, and lets go of it; one that is connected is used.
    "any" is that of this machine, or else one that begins. Raises UsageError."""
    if ray.is_initialized():
        yield
        return
    where = re.fullmatch(r"\[?([^\[\]/]+)\]?:(\d+)", address)
    if where:
        try:
            socket.create_connection((where[1], int(where[2])), REACH).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"--ray {address}: there is no cluster ({error})") from None
    elif address not in ("local", "auto", "any"):
        raise UsageError(f"--ray {address}: it is local, auto or HOST:PORT")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        _begin(ray, "auto" if address == "any" else address)
    except ConnectionError as error:
        if address == "any":
            _begin(ray, "local")
        elif address == "auto":
            raise UsageError(
                "--ray auto: this machine belongs to no cluster ('ray start' joins one); --ray local needs none"
            ) from None
        else:
            raise _refused(address, error) from None
    except (RuntimeError, ValueError, OSError) as error:
        raise _refused(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _begin(ray: Any, address: str) -> None:
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray has its own


def _refused(address: str, error: Exception) -> UsageError:
    return UsageError(f"--ray {address}: {str(error).strip().splitlines()[0]}")


def check_gpus(ray: Any, gpus: float, what: str) -> None:
    """Raises UsageError, of `what`, where no machine of the cluster has so many GPUs."""
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if gpus > most:
        has = f"at most {most:g} in a machine" if most else "no GPU"
        raise UsageError(f"{what}: this cluster has {has}")


def arrival() -> Callable[[str, list[str], dict[str, str]], str]:
    """What comes first on a machine of the cluster: a function that goes to this folder and imports from these places,
    and says in a sentence what is wrong there, "" if nothing is. It is sent by value, being no function of a module:
    polopt may be another one there."""

    def arrive(folder: str, path: list[str], code: dict[str, str]) -> str:
        import os
        import socket
        import sys

        host = socket.gethostname()
        if not os.path.isdir(folder):
            return f"{host} does not see {folder}, which all machines of the cluster must"
        os.chdir(folder)
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
        try:
            from polopt.core.cluster import code_here

            found = code_here()
        except ImportError as error:
            return f"{host} cannot import what it needs: {error}"
        for name, version in code.items():
            if found[name] != version:
                said = f"{host} has {name} {found[name]}, and here is {version}"
                return f"{said}: every machine of the cluster needs the same"
        return ""

    return arrive


class OwnActor:
    """As `polopt.core.pool.OwnProcess`, an actor of Ray: somewhere on the cluster that is connected, or to which this
    machine belongs, or of this machine alone, begun here.

    It asks for no processor, so that jobs that have them all may wait for it, and for `gpus`. Raises UsageError, of
    `what`, where there is none or the machine has other code or does not see the current folder.
    """

    def __init__(self, what: str, *, gpus: float = 0.0) -> None:
        self._ray = installed(what)
        self._left = ExitStack()
        self._left.enter_context(connected(self._ray, "any"))
        self._answers: deque[Any] = deque()
        self._why = ""
        try:
            check_gpus(self._ray, gpus, what)
            options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
            self._actor = self._ray.remote(**options)(_host()).remote()
            self._answers.append(self._actor.begin.remote(os.getcwd(), list(sys.path), code_here()))
            while not self.ready(0.5):
                signals.check()
            said = self.answer()
            if said != b"":
                raise UsageError(f"{what}: {said.decode() if said else self.end()}")
        except BaseException:
            self._left.close()
            raise

    def give(self, call: bytes) -> None:
        self._answers.append(self._actor.call.remote(call))

    def ready(self, seconds: float) -> bool:
        """Whether the first call has been answered, or the actor is gone, before so much time has passed."""
        return bool(self._ray.wait([self._answers[0]], timeout=seconds)[0])

    def answer(self) -> bytes | None:
        """What the first call gave; None when the actor has died."""
        try:
            found: bytes = self._ray.get(self._answers.popleft())
        except self._ray.exceptions.RayError as error:
            self._why = str(error).strip().splitlines()[0]
            return None
        return found

    def end(self) -> str:
        """How the actor has ended, as the end of a sentence."""
        return f"ended on Ray ({self._why.rstrip('.')})"

    def close(self) -> None:
        """Ends it, and the cluster if it was begun here."""
        with suppress(Exception):  # it is gone, or the cluster is
            self._ray.kill(self._actor)
        self._left.close()


def _host() -> type[Any]:
    """What runs on the cluster; sent by value, as polopt may be another one there."""
    arrive = arrival()

    class Host:
        def begin(self, folder: str, path: list[str], code: dict[str, str]) -> bytes:
            return arrive(folder, path, code).encode()

        def call(self, call: bytes) -> bytes:
            from polopt.core.pool import answer_of

            return answer_of(call)

    return Host

"""Jobs on a Ray cluster. A task of Ray looks after a process like those of `polopt.core.pool`, in which the job runs:
it is tried again, told to save and named by its signal there as it is here.

The only module that imports Ray, which is optional (`polopt[cluster]`). Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import polopt
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.core.pool import PATIENCE, TRIES, Died

REACH = 5.0  # seconds in which a cluster must answer
SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray warns that it will be
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(TRIES - 1),  # else without end
    "RAY_worker_niceness": "0",  # else jobs give way to everything on the machine
}
"""Of Ray, where the environment does not say otherwise; those of a cluster that is there are its own."""


def on_ray(
    calls: Sequence[bytes], address: str, jobs: int | None, gpus: float, folder: Path
) -> Iterator[tuple[int, Any]]:
    """As `polopt.core.pool.spread`, on the cluster: `jobs` calls at a time, by default as many as fit.

    Every machine must see `folder` and the current folder, and have this polopt and torch. Raises UsageError otherwise,
    and when the cluster is not there or none of its machines has `gpus`.
    """
    ray = _installed()
    with _connected(ray, address), _marked(folder) as mark:
        _check_gpus(ray, gpus)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(_there())
        told = os.getcwd(), list(sys.path), str(mark), code_here()
        left = deque(range(len(calls)))
        running: dict[Any, int] = {}
        try:
            while left or running:
                while left and (jobs is None or len(running) < jobs):
                    place = left.popleft()
                    running[task.remote(*told, calls[place])] = place
                for one in ray.wait(list(running), timeout=1.0)[0]:
                    place = running.pop(one)
                    yield place, _result(ray, one, str(folder))
        finally:
            _stop(ray, list(running))


def code_here() -> dict[str, str]:
    """What must be the same on every machine: polopt to the letter, and torch."""
    root = Path(polopt.__file__).parent
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {"polopt": f"{polopt.__version__} ({code.hexdigest()[:8]})", "torch": metadata.version("torch")}


def _there() -> Callable[..., tuple[str, Any]]:
    """What runs on the cluster. It is sent by value, being no function of a module: polopt may be another one there."""

    def there(folder: str, path: list[str], mark: str, code: dict[str, str], call: bytes) -> tuple[str, Any]:
        import os
        import socket
        import sys

        host = socket.gethostname()
        if not os.path.isdir(folder) or not os.path.exists(mark):
            return "folder", host
        os.chdir(folder)
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
        try:
            from polopt.core.pool import spread
            from polopt.core.workers import main_hidden
            from polopt.training.on_ray import code_here

            found = code_here()
        except ImportError as error:
            return "code", f"{host} cannot import what it needs: {error}"
        for name, version in code.items():
            if found[name] != version:
                return "code", f"{host} has {name} {found[name]}, and here is {version}"
        try:
            with main_hidden():  # which is Ray's own program
                ((_, result),) = spread([call], 1)
        except Exception as error:
            return "raised", error
        return "gave", result

    return there


def _result(ray: Any, one: Any, folder: str) -> Any:
    """What a job gave, or `Died`. Raises what it raised, and UsageError where a machine cannot run it."""
    try:
        kind, value = ray.get(one)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        return Died(f"its Ray worker died {TRIES} times: {str(error).strip().splitlines()[0]}")
    if kind == "raised":
        raise value
    if kind == "folder":
        raise UsageError(
            f"{value} does not see {folder} and {os.getcwd()}: on a cluster both lie on a disk that all machines share"
        )
    if kind == "code":
        raise UsageError(f"{value}: every machine of the cluster needs the same")
    return value


def _stop(ray: Any, running: Sequence[Any]) -> None:
    """Tells those that run to save, and waits for it; a second Ctrl-C ends the waiting."""
    for one in running:
        ray.cancel(one, force=False)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)


def _installed() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError('--ray needs Ray: pip install "polopt[cluster]"') from None
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connects to the cluster at `address`, or begins one here, and lets go of it; one that is connected is used."""
    if ray.is_initialized():
        yield
        return
    where = re.fullmatch(r"\[?([^\[\]/]+)\]?:(\d+)", address)
    if where:
        try:
            socket.create_connection((where[1], int(where[2])), REACH).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"--ray {address}: there is no cluster ({error})") from None
    elif address not in ("local", "auto"):
        raise UsageError(f"--ray {address}: it is local, auto or HOST:PORT")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise UsageError(
                "--ray auto: this machine belongs to no cluster ('ray start' joins one); --ray local needs none"
            ) from None
        raise UsageError(f"--ray {address}: {str(error).strip().splitlines()[0]}") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray has its own
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """A file in the folder by which another machine can tell that it sees the same one."""
    files.make_folder(folder)
    mark = folder.absolute() / f".jobs-{secrets.token_hex(8)}"
    files.write(mark, b"")
    try:
        yield mark
    finally:
        files.remove(mark)


def _check_gpus(ray: Any, gpus: float) -> None:
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if gpus > most:
        has = f"at most {most:g} in a machine" if most else "no GPU"
        raise UsageError(f"--gpus-per-job {gpus:g}: this cluster has {has}")

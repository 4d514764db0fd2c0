"""Jobs on a Ray cluster. A task of Ray looks after a process like those of `polopt.core.pool`, in which the job runs:
it is tried again, told to save and named by its signal there as it is here. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from polopt.core.cluster import arrival, check_gpus, code_here, connected, installed
from polopt.core.errors import UsageError
from polopt.core.files import marked
from polopt.core.pool import PATIENCE, TRIES, Died


def on_ray(
    calls: Sequence[bytes], address: str, jobs: int | None, gpus: float, folder: Path
) -> Iterator[tuple[int, Any]]:
    """As `polopt.core.pool.spread`, on the cluster: `jobs` calls at a time, by default as many as fit.

    Every machine must see `folder` and the current folder, and have this polopt and torch. Raises UsageError otherwise,
    and when the cluster is not there or none of its machines has `gpus`.
    """
    ray = installed()
    with connected(ray, address), marked(folder) as mark:
        check_gpus(ray, gpus, f"--gpus-per-job {gpus:g}")
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


def _there() -> Callable[..., tuple[str, Any]]:
    """What runs on the cluster. It is sent by value, being no function of a module: polopt may be another one there."""

    arrive = arrival()

    def there(folder: str, path: list[str], mark: str, code: dict[str, str], call: bytes) -> tuple[str, Any]:
        import os
        import signal
        import socket

        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for a cluster begun in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray cancels by it
        if not os.path.isdir(folder) or not os.path.exists(mark):
            return "folder", socket.gethostname()
        if said := arrive(folder, path, code):
            return "refused", said
        from polopt.core.pool import spread
        from polopt.core.workers import main_hidden

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
    if kind == "refused":
        raise UsageError(value)
    return value


def _stop(ray: Any, running: Sequence[Any]) -> None:
    """Tells those that run to save, and waits for it; a second Ctrl-C ends the waiting."""
    for one in running:
        ray.cancel(one, force=False)
    if running:
        ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)

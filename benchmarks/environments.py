"""The libraries that polopt is compared with: their virtual environments, and worker processes in them.

Each has its own environment (d3rlpy pins an old Gymnasium) with what `benchmarks/peers/NAME.txt` pins, in
`.venv/benchmarks/NAME`, where `make clean` removes it. A line `# source: URL COMMIT` there is a repository that is no
package: it is fetched into the folder `source` of the environment. POLOPT_PEERS=/folder keeps environments in another
folder, for example one that outlives the clone. polopt itself, and what needs nothing but Gymnasium, runs in the Python
that runs the benchmarks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKERS = ROOT / "benchmarks" / "workers"
TORCH = "torch==2.13.0"  # first and by itself: where a CPU build is at hand, a range would fetch the newest CUDA build
SCRIPTS = {
    "polopt": "ours.py",
    "stable-baselines3": "peer_sb3.py",
    "sbx": "peer_sbx.py",
    "cleanrl": "peer_cleanrl.py",
    "purejax": "peer_purejax.py",
    "d3rlpy": "peer_d3rlpy.py",
    "trl": "peer_trl.py",
    "gymnasium": "peer_gymnasium.py",
}
OWN = ("polopt", "gymnasium")  # run in the Python that runs the benchmarks
WITHOUT_TORCH = ("purejax",)


class WorkerError(Exception):
    """What went wrong in another process, in its last line."""


def python_of(name: str) -> Path:
    """The Python of a library's environment, made or brought up to date where its text file has changed.

    Raises WorkerError, with the last line of what was printed, when that fails.
    """
    if name in OWN:
        return Path(sys.executable)
    wanted = ROOT / "benchmarks" / "peers" / f"{name}.txt"
    folder = Path(os.environ.get("POLOPT_PEERS") or ROOT / ".venv" / "benchmarks") / name
    python, stamp = folder / "bin" / "python", folder / "installed.sha256"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text().strip() == digest:
        return python
    print(f"installing {name} into {folder}", file=sys.stderr)
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not python.exists():
        _call(name, [sys.executable, "-m", "venv", folder])
    if name not in WITHOUT_TORCH:
        _call(name, [*install, TORCH])
    _call(name, [*install, "-r", wanted])
    for url, commit in re.findall(r"^# source: (\S+) (\S+)$", wanted.read_text(), re.MULTILINE):
        _fetch(name, url, commit, folder / "source")
    stamp.write_text(digest)
    return python


def _fetch(name: str, url: str, commit: str, into: Path) -> None:
    """One commit of a repository, without its history."""
    shutil.rmtree(into, ignore_errors=True)
    _call(name, ["git", "init", "--quiet", into])
    _call(name, ["git", "-C", into, "fetch", "--quiet", "--depth", "1", url, commit])
    _call(name, ["git", "-C", into, "checkout", "--quiet", "FETCH_HEAD"])


def _call(name: str, command: list[str | Path]) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise WorkerError(f"{name} cannot be installed: {error}") from error
    if done.returncode:
        raise WorkerError(f"{name} cannot be installed: {last_line(done.stdout)}")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """A process of one library that has prepared a rate case and waits for slices; close it, or use it in `with`.

    Args:
        library: one of `SCRIPTS`.
        job: what to measure; see `workers/protocol.py`.
        threads: of OpenMP and MKL; with `pinned` the process may use no more cores than that (JAX asks no variable).
        python: another interpreter than `python_of(library)`.
        patience: seconds until a silent worker is given up.

    Raises:
        WorkerError: the worker failed, here or in `run`; it is closed then.
    """

    def __init__(
        self,
        library: str,
        job: dict[str, Any],
        threads: int,
        *,
        pinned: bool = False,
        python: Path | None = None,
        patience: float = 900.0,
    ) -> None:
        self.threads = threads
        self.patience = patience
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `close`
        self._code = tempfile.TemporaryDirectory(prefix="polopt-code-")  # what is compiled is compiled by this process
        self._process = subprocess.Popen(
            [python or python_of(library), WORKERS / SCRIPTS[library]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(threads) | {"TORCHINDUCTOR_CACHE_DIR": self._code.name},
            preexec_fn=(lambda: _pin(threads)) if pinned else None,
        )
        answer = self._ask(job)
        self.versions: dict[str, str] = answer["versions"]
        self.ready_seconds: float = answer["ready_seconds"]

    def run(self, units: int) -> dict[str, Any]:
        """One slice: units, seconds, cpu_seconds, peak_mb, parts."""
        return {"units": units, **self._ask({"units": units})}

    def close(self) -> None:
        """Ends the process: a closed pipe ends its loop."""
        process = self._process
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()
        self._code.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._answer(message)
        except BaseException:
            self.close()
            raise

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading says so
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], self.patience)[0]:
            process.kill()  # `close` would wait for it
            raise WorkerError(f"no answer in {self.patience:.0f} seconds")
        line = process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with code {process.wait()}: {self._last_error()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(last_line(answer["error"]))
        return answer

    def _last_error(self) -> str:
        self._errors.seek(0)
        return last_line(self._errors.read())


class Command:
    """The same for a whole process: a unit is one run of `command`, from its start to its end, in an empty folder."""

    def __init__(self, command: list[str | Path]) -> None:
        self.command = command
        self.threads = cores()
        self.versions: dict[str, str] = {}
        self.ready_seconds = 0.0
        self.run(1)  # files that are read are in memory from now on

    def run(self, units: int) -> dict[str, Any]:
        begin, cpu, peak = time.perf_counter(), 0.0, 0
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        for _ in range(units):
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(
                    self.command,
                    cwd=folder,
                    env=os.environ | {"PYTHONPATH": path},
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                errors.seek(0)
                if process.returncode:
                    raise WorkerError(f"code {process.returncode}: {last_line(errors.read())}")
            cpu, peak = cpu + usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss)
        seconds = time.perf_counter() - begin
        return {
            "units": units,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_mb": round(peak / 1024, 1),
            "parts": {},
        }

    def close(self) -> None:
        pass


def environment(threads: int) -> dict[str, str]:
    """This process's environment with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads))


def last_line(text: str) -> str:
    """The last line of a message that says something."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["nothing was printed"])[-1]


def _pin(threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

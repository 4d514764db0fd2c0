"""What the machine is, and what it can do at most: matrix products, and the simulator without a learner.

The limits are cases of polopt's own worker (`workers/limits.py`), so that the driver can measure them between the
slices of the libraries; `limits` takes each once.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, Worker, cores

GFLOP = 2 * 256**3 / 1e9  # of a product of two 256 x 256 matrices, the unit of the case `matrix`


def about() -> dict[str, Any]:
    """The machine, the versions that decide its speed, and polopt's commit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "commit": commit(),
    }


def commit() -> str:
    """polopt's commit, with "-dirty" when code (not results) differs from it."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)

    head = git("rev-parse", "--short=12", "HEAD").stdout.strip() or "unknown"
    changed = git("status", "--porcelain", "--", "polopt", "benchmarks", ":!benchmarks/results").stdout.strip()
    return head + "-dirty" * bool(changed)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def now() -> str:
    """The date and time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def limits(task: str = "HalfCheetah-v5") -> dict[str, float]:
    """Measured once, by name: GFLOP/s by threads, and steps per second of the simulator by copies and processes."""
    found = {}
    for threads in sorted({1, min(2, cores())}):
        rate = _rate({"case": "matrix"}, 3000, threads)
        found[f"matrix products, threads: {threads} (GFLOP/s)"] = round(rate * GFLOP, 1)
    for envs, processes in ((1, 1), (8, 1), (max(8, cores()), cores())):
        rate = _rate({"case": "simulator", "task": task, "envs": envs, "processes": processes}, 10_000 * processes)
        found[f"{task}, environments: {envs}, processes: {processes} (steps/s)"] = round(rate)
    return found


def _rate(job: dict[str, Any], units: int, threads: int = 1) -> float:
    with Worker("polopt", job, threads) as worker:
        return units / worker.run(units)["seconds"]

"""What a worker says to the driver of the benchmarks: one JSON object a line, over its own standard input and output.

A worker runs inside the virtual environment of one library, so this file needs nothing but Python. The driver sends one
job, `{"case": "sac", "task": "HalfCheetah-v5", ...}`. Two kinds of case:

- a *rate* is a function of the job that builds everything, warms up, and returns `run(units)`. The worker then answers
  `{"ready": true, "ready_seconds": ..., "versions": {...}}`, and each `{"units": n}` with `{"seconds": ...,
  "cpu_seconds": ..., "peak_mb": ..., "parts": {...}}`: the driver alternates between workers, so that both sides see
  the same machine. Where the job has `"count": true`, answers have `gflop` too, and their times mean nothing: counting
  is slow;
- a *curve* is a generator over the job that yields rows (dicts), sent one by one as `{"row": {...}}`, then
  `{"done": true, "peak_mb": ..., "versions": {...}}`.

Whatever goes wrong is answered as `{"error": "..."}`. All that the libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Run = Callable[[int], "dict[str, float] | None"]  # returns seconds of each part of the work, if it knows them


def serve(cases: Mapping[str, Callable[[Job], Any]], packages: tuple[str, ...], **versions: str) -> None:
    """Answers one driver until it closes the pipe.

    `packages` are those whose versions are worth knowing, `versions` those of what is no package.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print whatever they like

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    try:
        job = json.loads(sys.stdin.readline())
        case = cases[job["case"]]
        known = {"python": sys.version.split()[0], **versions}
        about = {"versions": known | {name: version(name) for name in packages}}
        if inspect.isgeneratorfunction(case):
            for row in case(job):
                say(row=row)
            say(done=True, peak_mb=peak_mb(), **about)
            return
        begin = time.perf_counter()
        run = case(job)
        say(ready=True, ready_seconds=time.perf_counter() - begin, **about)
        for line in sys.stdin:
            units = json.loads(line)["units"]
            wall, cpu = time.perf_counter(), time.process_time()
            counted: dict[str, float] = {}
            with counting(counted) if job.get("count") else contextlib.nullcontext():
                parts = run(units)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            say(seconds=wall, cpu_seconds=cpu, peak_mb=peak_mb(), parts=parts or {}, **counted)
    except Exception:
        say(error=traceback.format_exc())


@contextlib.contextmanager
def counting(found: dict[str, float]) -> Iterator[None]:
    """Adds `gflop`: multiplications and additions of PyTorch in this thread, in products of matrices and in attention.

    Attention counts as if nothing were masked; elementwise work, and what other frameworks do, does not count.
    """
    import torch.utils.flop_counter as flops

    for end in ("", "_backward"):  # the CPU's kernel is not in the table, and has the arithmetic of the GPU's
        name = f"_scaled_dot_product_flash_attention{end}"
        cpu = getattr(flops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}")
        flops.flop_registry[cpu] = flops.flop_registry[getattr(flops.aten, name)]
    with flops.FlopCounterMode(display=False) as counter:
        yield
    found["gflop"] = counter.get_total_flops() / 1e9


def peak_mb() -> float:
    """The most memory this process and its present children (simulators) have had so far, in MB, added up."""
    pids, total = [str(os.getpid())], 0
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):  # a child may have ended meanwhile
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1])
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += children.read_text().split()
    return round(total / 1024, 1)


def version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""

"""Reward functions to which everything happens that can happen to one, by what they are given. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from typing import Any


class Told:
    why = "of no use"


def alone(completion: str) -> Any:
    """The length of the text, unless it names a calamity."""
    if completion == "sleep":
        time.sleep(1000)
    if completion == "regex":  # holds the interpreter for ever: no thread of this process would run
        re.match("(a+)+b", "a" * 60)
    if completion == "exit":
        os._exit(3)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "raise":
        raise ValueError("not this one")
    if completion == "leave":
        sys.exit(2)
    if completion == "memory":
        return len(bytearray(3_000_000_000))
    if completion == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        with open(os.environ["POLOPT_TEST_PIDS"], "a") as file:
            print(child.pid, file=file, flush=True)
        time.sleep(1000)
    kinds: dict[str, Any] = {
        "nan": float("nan"),
        "none": None,
        "text": "7",
        "list": [1.0],
        "other": object(),
        "why": Told(),
    }
    return kinds.get(completion, float(len(completion)))


def together(completions: list[str], answer: list[str], **columns: Any) -> list[Any]:
    return [alone(text) + (text == right) for text, right in zip(completions, answer)]


def process(completion: str) -> float:
    return float(os.getpid())


def slow(completion: str) -> float:
    time.sleep(0.3)
    return 1.0


slow.timeout = 900.0  # type: ignore[attr-defined]


async def later(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def arrays(completions: list[str]) -> Any:
    import numpy

    return numpy.array([len(text) for text in completions]) / 2

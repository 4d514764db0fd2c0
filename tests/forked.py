"""Processes of Python that are forked from one that has imported what they need, which takes longer than most of what
they do.

`Forked` is to a test what `subprocess.Popen([sys.executable, "-c", code, *words])` is. What is about starting alone, or
about what is imported, starts a process of its own.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds within which a process ends, on a machine that is busy
POLOPT = "from polopt.cli import run; run()"
"""The code of `polopt WORDS`."""


class Forked:
    """A process that runs `code` as `__main__` with `words` as its arguments; its output goes into files.

    Args:
        group: whether it is the first one of a group of its own.
    """

    returncode: int | None = None

    def __init__(self, code: str, words: Sequence[str] = (), *, group: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="polopt-forked-")
        self.out, self.err = (Path(self._folder.name) / name for name in ("out", "err"))
        self.out.touch()
        self.pid: int = _ask(
            code=code, words=list(words), group=group, environment=dict(os.environ), path=sys.path, here=os.getcwd(),
            out=str(self.out), err=str(self.err),
        )  # fmt: skip

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(of=self.pid)
        return self.returncode

    def wait(self, seconds: float = PATIENCE) -> int:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"it did not end within {seconds:g} seconds: {self.err.read_text()}")
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def errors(self, seconds: float = PATIENCE) -> str:
        """What it wrote to stderr until it ended."""
        self.wait(seconds)
        return self.err.read_text()


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that they are forked from; it ends with this one."""
    modules = tempfile.mkdtemp(dir=os.environ["POLOPT_CACHE"])  # where transformers keeps what models bring
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "HF_MODULES_CACHE": modules
    }  # fmt: skip
    command = [sys.executable, "-c", "from tests.forked import served; exec(served())"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(**what: Any) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(what), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


# What runs in the server.


def served() -> str:
    """Forks what is asked for and says how each has ended, until the other end is closed. In a process that was forked
    it returns the code of it, to be run at the top of a program, which ends like any other."""
    import torch

    from polopt import registry

    for module in ("polopt.cli", "polopt.training.api", "transformers.models.llama.modeling_llama", "tokenizers"):
        importlib.import_module(module)
    for name in ("ppo", "sac", "bc-ppo", "rec"):
        registry.load(name)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        asked = json.loads(line)
        if "of" in asked:
            pid, status = os.waitpid(asked["of"], os.WNOHANG)
            said = os.waitstatus_to_exitcode(status) if pid else None
        else:
            said = os.fork()
            if said == 0:
                return _begun(asked)
        print(json.dumps(said), flush=True)
    return ""


def _begun(asked: dict[str, Any]) -> str:
    """Makes of the process that was forked one that was begun with what was asked for."""
    if asked["group"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["here"])
    for number, file in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the other one has read what is asked of the server
    sys.argv, sys.path[:] = ["-c", *asked["words"]], asked["path"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return str(asked["code"])

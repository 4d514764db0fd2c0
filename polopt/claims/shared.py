"""Folders of the arms of a claim: what they use together, made once (a warm start, a clone, data, a critic), and where
each trains, so that a run that was stopped goes on there. Torch-free."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polopt.core import files, locks

VARIABLE = "POLOPT_CLAIM_FOLDER"  # where the processes of one run of a claim share


def shared(key: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make(folder)` has filled: once for each key in a run of a claim, by whichever arm asks first.

    The key names all that it depends on: the seed, unless all seeds share it, and the settings. Other processes wait
    for it. What `make` raises is raised, and who asks next tries again.
    """
    root = Path(os.environ.get(VARIABLE) or _own_folder())
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
    done = folder.with_suffix(".done")
    with _locked(folder.with_suffix(".lock")):
        if not done.exists():
            files.remove(folder)
            files.make_folder(folder)
            make(folder)
            files.write(done, b"")
    return folder


@contextmanager
def one_run(inside: Path | None = None) -> Iterator[Path]:
    """Within it, this process and those that it starts share one new folder, where the system keeps what is temporary
    or `inside` another one."""
    with files.temporary_folder(".together-" if inside else "polopt-claim-shared-", inside) as folder, sharing(folder):
        yield folder


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Within it, what arms share is in this folder."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


_runs: Path | None = None  # of the job that this process does


@contextmanager
def keeping_runs(folder: Path) -> Iterator[None]:
    """Within it, arms train in this folder, which stays."""
    global _runs
    before, _runs = _runs, folder
    try:
        yield
    finally:
        _runs = before


@contextmanager
def run_folder(key: str) -> Iterator[Path]:
    """Where the run with this key trains: the same folder whenever its job is done again; outside of a claim a
    temporary one."""
    if _runs is not None:
        yield _runs / key
        return
    with files.temporary_folder("polopt-claim-") as folder:
        yield folder / key


@functools.cache
def _own_folder() -> str:
    """Of an arm that is called by itself."""
    folder = ExitStack()
    atexit.register(folder.close)
    return str(folder.enter_context(files.temporary_folder("polopt-claim-shared-")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with files.opened(path, "wb") as file:
        locks.take(file.fileno(), wait=True)
        yield

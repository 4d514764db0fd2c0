"""One writer of a folder at a time, by a lock that dies with its process. Imports no torch.

The lock is the operating system's (flock), held on a small hidden file that says who holds it. The file is removed at
the end; one that a killed process left behind locks nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.core.errors import Notice, UsageError

OWNER = ".owner"
_held: set[int] = set()  # open lock files of this process


def take(handle: int, *, wait: bool = False) -> bool:
    """Locks an open file until it is closed; False when somebody else has the lock and this one does not `wait`.

    Where the system knows no such locks (Windows) it is True at once. Raises OSError where a file system does not.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Makes this the only process that writes the folder, which must be there.

    On a file system without locks it warns and goes on; a read-only folder needs no lock, because the first write says
    what is wrong. Raises UsageError when another process, or another run of this one, holds it: the sentence says who.
    """
    path = folder / OWNER
    handle = _own(path)
    try:
        yield
    finally:
        if handle in _held:  # a forked process has let go of it
            _held.discard(handle)
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _own(path: Path) -> int | None:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno == errno.EROFS or not os.access(path.parent, os.W_OK):
                return None
            raise files.refused(path, error) from error
        try:
            if not take(handle):
                raise UsageError(f"{path.parent} is being written by {_who(handle)}: let it end, or stop it first")
        except OSError as error:
            reason = f"its file system has no locks ({error.strerror or error})"
            warnings.warn(
                f"{path.parent} cannot be locked, {reason}: see to it that nobody else writes", Notice, stacklevel=4
            )
        except UsageError:
            os.close(handle)
            raise
        if _there(path, handle):
            break
        os.close(handle)  # its owner has just removed it: the lock was of nothing
    _held.add(handle)
    text = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
    with suppress(OSError):  # a full disk: the first write of the run says so
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(text).encode())
    return handle


def _there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _who(handle: int) -> str:
    try:
        said: dict[str, Any] = json.loads(os.read(handle, 4096))
        pid, host, since = said["pid"], said["host"], said["since"]
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if host != socket.gethostname():
        return f"process {pid} on {host} since {since}"
    return f"{'another run of this process,' if pid == os.getpid() else 'process'} {pid} since {since}"


def _let_go() -> None:
    """A forked process, such as a worker, shares its parent's open files and would keep the locks alive."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

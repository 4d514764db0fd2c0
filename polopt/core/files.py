"""Every file operation of a save, so that each can be made to fail in a test.

A file appears under its name whole or not at all: it is written beside, flushed to disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from polopt.core.errors import RunError


def write(path: Path, data: bytes) -> None:
    """Writes `data` to a new file and flushes it to disk. Raises RunError when the disk refuses."""
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise refused(path, error) from error


def rename(source: Path, target: Path) -> None:
    """Atomic rename of a file or folder, flushed to disk."""
    try:
        os.replace(source, target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise refused(target, error) from error


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole, in place of the one that is there."""
    beside = path.with_name(f".{path.name}.new")
    write(beside, data)
    rename(beside, path)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error


def remove(path: Path) -> None:
    """Removes a file or folder; what is not there is fine."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> RunError:
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission to write there",
    }.get(error.errno or 0, str(error.strerror or error))
    return RunError(f"could not write {path}: {reason}; what was saved before is untouched")

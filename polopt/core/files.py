"""Every file operation of polopt, so that each can be made to fail in a test, and says what could not be written.

A file appears under its name whole or not at all: it is written beside, flushed to disk, and renamed. A folder likewise
(`new_folder`). What other libraries write themselves they write inside `writing`. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from polopt.core.errors import DiskError, RunError, UsageError

REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
}


def cache_folder() -> Path:
    """Where is kept what can be made again, such as models and compiled code: $POLOPT_CACHE, or ~/.cache/polopt."""
    return Path(os.environ.get("POLOPT_CACHE", Path.home() / ".cache" / "polopt"))


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Whatever is refused inside is a RunError that names `path`: also by libraries that write by themselves, which
    raise errors of their own (safetensors, HDF5, torch) that only quote what the system said."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from error
    except RunError:
        raise
    except Exception as error:
        number = next((number for number in REFUSALS if os.strerror(number) in str(error)), None)
        if number is None:
            raise
        raise refused(path, OSError(number, os.strerror(number))) from error


def write(path: Path, data: bytes) -> None:
    """Writes `data` to a new file and flushes it to disk. Raises RunError when the disk refuses, and leaves nothing."""
    with writing(path), whole(path):
        _put(path, data)


def _put(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Removes what was begun of a new file or folder inside, when the disk refuses the rest."""
    try:
        yield
    except (OSError, RunError):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def append(path: Path, data: bytes) -> None:
    """Adds to the end of a file. What a killed process leaves there may be torn."""
    with writing(path), open(path, "ab") as file:
        file.write(data)


def opened(path: Path, mode: str) -> BinaryIO:
    """A file that stays open for writing, such as one with a lock on it; `mode` has a "b"."""
    with writing(path):
        return cast(BinaryIO, open(path, mode))


def rename(source: Path, target: Path) -> None:
    """Atomic rename of a file or folder, flushed to disk."""
    with writing(target):
        os.replace(source, target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole, in place of the one that is there. Raises RunError, and for what is no file UsageError."""
    check_file(path)
    beside = path.with_name(f".{path.name}.new")
    with writing(path), whole(beside):
        _put(beside, data)
        rename(beside, path)


def check_file(path: Path) -> None:
    """Raises UsageError where there is something that is no file, such as a folder or a device."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'a device'}, not a file")


def check_folder(path: Path) -> None:
    """Raises UsageError where there is something that is no folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder")


def make_folder(path: Path) -> None:
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder, to be filled, which takes the place of `path` and of what is there when the block ends well.

    It is made beside `path`, hidden; nothing is left of it when the block fails.
    """
    new: Path | None = None
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            new.chmod(0o755)
            yield new
            old = new.with_name(new.name + "-old")
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            if new is not None:
                shutil.rmtree(new, ignore_errors=True)


@contextmanager
def temporary_folder(prefix: str, inside: Path | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards, where the system keeps what is temporary or `inside` another one."""
    with writing(inside or os.environ.get("TMPDIR", "/tmp")):
        if inside is not None:
            inside.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=inside, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in the folder, which is made, by which another machine can tell that it sees the same one."""
    make_folder(folder)
    mark = folder.absolute() / f".seen-{secrets.token_hex(8)}"
    write(mark, b"")
    try:
        yield mark
    finally:
        remove(mark)


def reserve(path: Path, size: int) -> None:
    """Raises DiskError unless there is room for `size` bytes at `path`: for who cannot stand a disk that fills up."""
    if hasattr(os, "posix_fallocate"):
        with writing(path), tempfile.NamedTemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def remove(path: Path) -> None:
    """Removes a file or folder; what is not there is fine."""
    with writing(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def refuses(error: OSError) -> bool:
    """Whether this is the disk's refusal to be written to, and not a fault of a program."""
    return error.errno in REFUSALS


def refused(path: Path | str, error: OSError) -> DiskError:
    reason = REFUSALS.get(error.errno or 0, str(error.strerror or error))
    return DiskError(f"could not write {path}: {reason}; what was saved before is untouched")

"""What the disk refuses is one sentence that names the file, whoever has tried to write it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from polopt.core import files
from polopt.core.errors import DiskError, RunError, UsageError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_library_that_only_quotes_the_system_is_understood(number, kind):
    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    with pytest.raises(RunError, match=f"could not write a/b: {files.REFUSALS[number]}"), files.writing("a/b"):
        raise kind(said)


@pytest.mark.parametrize("error", [ValueError("3 is no shape"), UsageError("no"), RunError("of its own"), KeyError(1)])
def test_what_is_no_refusal_is_left_as_it_is(error):
    with pytest.raises(type(error)) as raised, files.writing("a/b"):
        raise error
    assert raised.value is error


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "below" / "model"
    with files.new_folder(target) as new:
        (new / "one").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["one"]

    def fail(error: BaseException) -> None:
        with files.new_folder(target) as new:
            (new / "two").write_text("2")
            raise error

    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "full")):
        with pytest.raises((KeyboardInterrupt, RunError)):
            fail(error)
    with files.new_folder(target) as new:
        (new / "three").write_text("3")
    assert [path.name for path in target.iterdir()] == ["three"]
    assert [path.name for path in target.parent.iterdir()] == ["model"], "nothing is left beside it"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", [files.write, files.replace])
def test_nothing_is_left_of_a_file_that_the_disk_refuses(write, call, tmp_path, monkeypatch):
    path = tmp_path / "page.html"

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, full)
        if write is files.write and call == "replace":
            write(path, b"whole")
        else:
            with pytest.raises(DiskError, match=f"could not write {path}: the disk is full"):
                write(path, b"half")
            assert list(tmp_path.iterdir()) == []
    files.write(path, b"whole")
    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(DiskError):
        files.replace(path, b"half")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path):
    for path, kind in ((tmp_path, "folder"), (Path(os.devnull), "device")):
        with pytest.raises(UsageError, match=f"{path} is a {kind}, not a file"):
            files.replace(path, b"x")


def test_room_is_asked_for_before_it_is_needed(tmp_path, monkeypatch):
    files.reserve(tmp_path / "data", 1)
    with pytest.raises(DiskError, match=f"could not write {tmp_path}/data: "):
        files.reserve(tmp_path / "data", 2**62)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for wrong in (lambda p: files.opened(p, "wb"), lambda p: files.append(p, b"x"), lambda p: files.replace(p, b"x")):
        with pytest.raises(RunError, match=f"could not write {tmp_path}/file/below: Not a directory"):
            wrong(tmp_path / "file" / "below")
    files.append(tmp_path / "file", b"y")
    assert (tmp_path / "file").read_text() == "xy"


def test_a_temporary_folder_is_gone_afterwards():
    with files.temporary_folder("polopt-test-") as folder:
        (folder / "x").mkdir()
    assert not folder.exists()
    assert folder.parent == Path(os.environ.get("TMPDIR", "/tmp"))

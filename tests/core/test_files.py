"""What the disk refuses is one sentence that names the file, whoever has tried to write it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from polopt.core import files
from polopt.core.errors import RunError, UsageError


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


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for wrong in (lambda p: files.opened(p, "wb"), lambda p: files.append(p, b"x"), lambda p: files.replace(p, b"x")):
        with pytest.raises(RunError, match=f"could not write {tmp_path}/file/[.\\w]*: Not a directory"):
            wrong(tmp_path / "file" / "below")
    files.append(tmp_path / "file", b"y")
    assert (tmp_path / "file").read_text() == "xy"


def test_a_temporary_folder_is_gone_afterwards():
    with files.temporary_folder("polopt-test-") as folder:
        (folder / "x").mkdir()
    assert not folder.exists()
    assert folder.parent == Path(os.environ.get("TMPDIR", "/tmp"))

"""One writer of a folder at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polopt.core import locks
from polopt.core.errors import RunError, UsageError

HOLD = """
import os, sys, time
from pathlib import Path
from polopt.core.locks import owned
with owned(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)  # by now it has let go of what it shares
        time.sleep(100)
        os._exit(0)
    time.sleep(100)
"""


def test_the_second_is_told_who_and_the_lock_dies_with_its_process_not_with_its_children(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        told = rf"is being written by process {process.pid} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC: let it end"
        with pytest.raises(UsageError, match=told), locks.owned(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it still lives, and holds nothing
        with locks.owned(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_one_process_does_not_own_a_folder_twice_and_leaves_nothing_behind(tmp_path):
    with locks.owned(tmp_path):
        told = f"another run of this process, {os.getpid()} since"
        with pytest.raises(UsageError, match=told), locks.owned(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [locks.OWNER]
    assert not list(tmp_path.iterdir())
    with locks.owned(tmp_path):
        pass


def test_an_owner_that_said_nothing_readable_is_another_process(tmp_path):
    with locks.owned(tmp_path):
        for text in ("", "[]", '{"pid": 1}'):
            (tmp_path / locks.OWNER).write_text(text)
            with pytest.raises(UsageError, match="written by another process: let it end"), locks.owned(tmp_path):
                pass


def test_one_on_another_machine_is_named_with_it(tmp_path):
    with locks.owned(tmp_path):
        (tmp_path / locks.OWNER).write_text('{"pid": 1, "host": "elsewhere.", "since": "noon"}')
        with pytest.raises(UsageError, match=r"by process 1 on elsewhere\. since noon"), locks.owned(tmp_path):
            pass


def test_a_lock_of_a_file_that_its_owner_has_just_removed_is_taken_again(tmp_path, monkeypatch):
    original = locks.take
    removed: list[Path] = []

    def take(handle: int) -> bool:
        if not removed:
            removed.append(tmp_path / locks.OWNER)
            removed[0].unlink()
        return original(handle)

    monkeypatch.setattr(locks, "take", take)
    with locks.owned(tmp_path), pytest.raises(UsageError, match="is being written"), locks.owned(tmp_path):
        pass


def refusing(number: int) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_file_system_without_locks_is_told_and_worked_on(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "take", refusing(errno.ENOLCK))
    told = r"cannot be locked, its file system has no locks \(No locks available\)"
    with pytest.warns(UserWarning, match=told), locks.owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_needs_no_lock_and_other_refusals_are_one_sentence(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing(errno.EROFS))
        with locks.owned(tmp_path):
            pass
    monkeypatch.setattr(os, "open", refusing(errno.ENOSPC))
    with pytest.raises(RunError, match=r"could not write .*: the disk is full"), locks.owned(tmp_path):
        pass

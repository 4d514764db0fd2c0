"""Processes beside each other: they end with their parent, however it ends, and stop when it is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polopt.core.errors import RunError, UsageError
from polopt.core.pool import spread

SECONDS = 60  # that a process may take to end, on a machine that is busy


def double(number):
    if number < 0:
        raise UsageError("no negative ones")
    return 2 * number


def busy(folder, number):
    """Says who it is and works on; stopped, it says so."""
    (Path(folder) / f"{number}.pid").write_text(str(os.getpid()))
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (Path(folder) / f"{number}.saved").touch()
        raise


def die(number):
    os._exit(3)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(true):
    end = time.monotonic() + SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def test_results_come_with_their_place():
    assert dict(spread(double, [(1,), (2,), (5,)], 2)) == {0: 2, 1: 4, 2: 10}


def test_what_a_call_raises_is_raised():
    with pytest.raises(UsageError, match="no negative ones"):
        list(spread(double, [(1,), (-2,), (5,)], 2))


def test_a_process_that_dies_is_told():
    with pytest.raises(RunError, match="a worker process died"):
        list(spread(die, [(1,), (2,)], 2))


PARENT = """
import signal, sys
from polopt.core.pool import spread
from tests.core.test_pool import busy
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    list(spread(busy, [(sys.argv[1], number) for number in range(4)], 2, patience=60))
"""


@pytest.fixture
def parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(tmp_path)], env=environment)
    assert until(lambda: len(pids(tmp_path)) == 2)
    yield process
    process.kill()
    process.wait()
    for pid in pids(tmp_path):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def pids(folder):
    return [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@needs_proc
def test_processes_end_with_a_parent_that_was_killed(parent, tmp_path):
    workers = pids(tmp_path)
    assert all(map(alive, workers))
    parent.kill()  # SIGKILL: it can tell nobody
    parent.wait()
    assert until(lambda: not any(map(alive, workers)))
    assert not list(tmp_path.glob("*.saved"))


@needs_proc
def test_an_interrupted_parent_lets_them_save_and_begins_nothing_more(parent, tmp_path):
    workers = pids(tmp_path)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(SECONDS) != 0
    assert until(lambda: not any(map(alive, workers)))
    assert sorted(path.stem for path in tmp_path.glob("*.saved")) == ["0", "1"]
    assert len(pids(tmp_path)) == 2

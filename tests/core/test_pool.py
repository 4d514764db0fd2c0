"""Processes beside each other: they end with their parent, however it ends, and stop when it is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polopt.core.errors import RunError, UsageError
from polopt.core.pool import Died, packed, spread

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


def die(number, how):
    if how == 0:
        return number
    os._exit(how) if how > 0 else os.kill(os.getpid(), -how)


def die_twice(folder):
    """Dies at its first two tries."""
    tries = len(list(Path(folder).glob("try-*")))
    (Path(folder) / f"try-{tries}").touch()
    if tries < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.environ["OMP_NUM_THREADS"], tries


class Awkward(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def awkward():
    raise Awkward("cannot be read again", 2)


def calls(function, each):
    return [packed(function, arguments) for arguments in each]


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


SCRIPTS = {
    "what others define": "print(dict(spread([packed(operator.neg, (1,))], 1)))",
    "its own": "def own(number): return -number\n"
    'if __name__ == "__main__": print(dict(spread([packed(own, (1,))], 1)))',
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_is_run_again_only_for_what_it_defines_itself(kind, tmp_path):
    begins = "import operator\nfrom polopt.core.pool import packed, spread\nprint('begun', flush=True)\n"
    (tmp_path / "script.py").write_text(begins + SCRIPTS[kind])
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
    assert done.stdout == "begun\n" * (1 + (kind == "its own")) + "{0: -1}\n", done.stderr


def test_results_come_with_their_place():
    assert dict(spread(calls(double, [(1,), (2,), (5,)]), 2)) == {0: 2, 1: 4, 2: 10}


def test_what_a_call_raises_is_raised():
    with pytest.raises(UsageError, match="no negative ones"):
        list(spread(calls(double, [(1,), (-2,), (5,)]), 2))
    with pytest.raises(RunError, match="Awkward: cannot be read again"):
        list(spread(calls(awkward, [()]), 2))


def test_a_process_that_dies_is_tried_again(tmp_path):
    assert dict(spread(calls(die_twice, [(str(tmp_path),)]), 2)) == {0: ("1", 2)}
    assert len(list(tmp_path.iterdir())) == 3


def test_one_that_always_dies_is_told_by_its_signal_and_the_others_end():
    found = dict(spread(calls(die, [(7, -signal.SIGKILL), (8, 0), (9, 3), (10, 0)]), 2))
    assert (found[1], found[3]) == (8, 10)
    assert isinstance(found[0], Died)
    assert str(found[0]) == "its process died 3 times; at last it was killed by SIGKILL (out of memory?)"
    assert str(found[2]) == "its process died 3 times; at last it ended with code 3"


def test_what_others_cannot_import_is_refused():
    with pytest.raises(UsageError, match="other processes must be able to import what is given"):
        packed(lambda: None, ())


PARENT = """
import signal, sys
from polopt.core.pool import packed, spread
from tests.core.test_pool import busy
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    list(spread([packed(busy, (sys.argv[1], number)) for number in range(4)], 2))
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

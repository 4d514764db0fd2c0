"""What is freed stays with the process for as long as asked, and what the environment says is not overruled.

In processes of their own: how memory is kept is a matter of the whole process.
"""

import os
import subprocess
import sys

import pytest

from polopt.core import memory

PASS = """
import resource, sys
from contextlib import nullcontext
import numpy as np
from polopt.core import memory

def step():
    layers = [np.ones(2_000_000, np.uint8) for _ in range(8)]

def taken():  # pages, of 4 KB or more
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with memory.kept() if sys.argv[1] == "kept" else nullcontext():
    step()
    print(taken())
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    within = resident()
print(within - resident())
"""


def measured(how: str, **env: str) -> tuple[int, int]:
    """Pages that ten steps take, and the bytes that go back when the block ends."""
    clean = {name: value for name, value in os.environ.items() if name not in memory.OF_ONES_OWN}
    done = subprocess.run(
        [sys.executable, "-c", PASS, how], env=clean | env, capture_output=True, text=True, check=True
    )
    pages, back = map(int, done.stdout.split())
    return pages, back


glibc = pytest.mark.skipif(memory._glibc() is None, reason="another C library, or settings of one's own")


@glibc
def test_a_step_takes_what_the_last_one_freed_and_all_goes_back_at_the_end():
    pages, back = measured("kept")
    assert pages < 100
    assert back > 8e6
    assert measured("not")[0] > 1_000  # else there is nothing to gain, and the test shows nothing


@glibc
@pytest.mark.parametrize("name", memory.OF_ONES_OWN)
def test_settings_of_ones_own_are_left(name, monkeypatch):
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    monkeypatch.setenv(name, value)
    assert memory._glibc() is None
    with memory.kept():
        pass


@glibc
def test_settings_of_ones_own_hold():
    assert measured("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] > 1_000


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_happens_elsewhere(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    with memory.kept():
        pass

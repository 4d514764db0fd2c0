"""Memory that a process keeps for its next step."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**31 - 1  # bytes that may lie free at the end of the heap
HEAP_BLOCK = 32 * 2**20  # bytes of the largest block that glibc lets into the heap
OF_ONES_OWN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


@contextmanager
def kept() -> Iterator[None]:
    """Within, memory that is freed stays with the process, and goes back to the system afterwards.

    Else the C library of Linux gives back what is free at the end of its heap once it is twice the largest block so
    far. A pass through a network frees more than that, and the next one gets it again page by page, which the system
    fills with zeros: of an update of a small language model that is a tenth of the time. No more memory is used at the
    peak. Blocks above `HEAP_BLOCK` come and go as before. Without effect with another C library, and where the
    environment says how memory is to be kept (`OF_ONES_OWN`).
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(TRIM_THRESHOLD, KEPT)
    libc.mallopt(MMAP_THRESHOLD, HEAP_BLOCK)
    try:
        yield
    finally:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """None where there is another C library, or the environment has settings for it."""
    if sys.platform != "linux" or any(name in os.environ for name in OF_ONES_OWN):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None

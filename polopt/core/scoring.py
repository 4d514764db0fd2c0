"""Whether those who act say how likely their actions were: a third of the time of an action, which few replays need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SCORES = ("log_prob", "pre_action")
"""What the record of an action says of its density."""

_wanted = ContextVar("wanted", default=True)  # of each thread by itself


def scored() -> bool:
    """Asked by policies when they act."""
    return _wanted.get()


@contextmanager
def scoring(wanted: bool) -> Iterator[None]:
    """Inside, unless it is `wanted`, records lack `SCORES` where that saves time; actions are the same."""
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)

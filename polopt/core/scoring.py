"""Whether those who act say how likely their actions were: a third of the time of an action, which few replays need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SCORES = ("log_prob", "pre_action")
"""What the record of an action says of its density."""

_wanted = True


def scored() -> bool:
    """Asked by policies when they act."""
    return _wanted


@contextmanager
def scoring(wanted: bool) -> Iterator[None]:
    """Inside, unless it is `wanted`, records lack `SCORES` where that saves time; actions are the same."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before

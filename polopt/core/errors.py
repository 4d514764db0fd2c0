"""The two ways polopt refuses: each message is one clear sentence for the person who reads it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Wrong names, values or combinations: the command line exits with 2."""


class RunError(Exception):
    """A run that failed while it ran (non-finite loss, broken environment, full disk): exit code 1."""


class DiskError(RunError):
    """The disk has refused to be written to; what was saved before is untouched."""


class Notice(UserWarning):
    """What a run says without failing: on the command line it is one line, whoever has called."""


class CheckpointError(RunError):
    """A checkpoint that cannot be trusted or read."""


class DamagedError(CheckpointError):
    """A checkpoint of which a file is missing or has changed."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" with the closest option, or a list of the options when none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from {', '.join(options)}" if 0 < len(options) <= 12 else ""

"""Which device a run is on, here and now."""

from __future__ import annotations

import re
import warnings

import torch

from polopt.core.errors import Notice, UsageError


def named_device(name: str) -> torch.device:
    """The device of this name, "auto" the best there is. Raises UsageError when this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if re.fullmatch(r"gpu(:\d+)?", name):
            raise UsageError(f"--device {name}: it is '{name.replace('gpu', 'cuda')}' here") from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    return device


def device_here(recorded: str, wanted: str | None, *, resuming: bool = False) -> str:
    """Where a saved policy is loaded: on the device that is wanted, or else on that of its run, or else on the CPU.

    The last comes with a warning: the machine that trained it had a device that this one lacks. Raises UsageError when
    the wanted one is not there, and in place of that warning when the run is to be resumed.
    """
    if wanted is not None:
        named_device(wanted)
        return wanted
    try:
        named_device(recorded)
    except UsageError:
        if resuming:
            raise UsageError(
                f"this run was made on {recorded}, which is not here: continue elsewhere with --device cpu, with other "
                f"last bits"
            ) from None
        warnings.warn(
            f"this run was made on {recorded}, which is not here: loading it on the CPU", Notice, stacklevel=4
        )
        return "cpu"
    return recorded

"""torch.compile for methods of objects of which there may be many, and kept on disk."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from polopt.core.files import cache_folder

F = TypeVar("F", bound=Callable[..., Any])

ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps compiled code; it asks for it whenever it needs it


def compiled(function: F, **options: Any) -> F:
    """`torch.compile` with versions of its own, where torch can: else it keeps 8 of one piece of code, whoever calls
    it, and the ninth learner of a method that holds many would run uncompiled.

    What it draws are the numbers that would be drawn uncompiled.
    """
    keep_code()
    if options.get("backend", "inductor") == "inductor" and "mode" not in options:  # torch takes one of the two
        options = options | {"options": {"fallback_random": True} | options.get("options", {})}
    return torch.compile(function, **({"isolate_recompiles": True} if ISOLATES else {}), **options)  # type: ignore


def keep_code() -> None:
    """What torch compiles from here on is kept in polopt's cache, unless the environment says where, so that the next
    process that wants the same begins with it."""
    os.environ.setdefault(CACHE, str(cache_folder() / "compiled"))

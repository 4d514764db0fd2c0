"""torch.compile for methods of objects of which there may be many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters


def compiled(function: F, **options: Any) -> F:
    """`torch.compile` with versions of its own, where torch can: else it keeps 8 of one piece of code, whoever calls
    it, and the ninth learner of a method that holds many would run uncompiled."""
    return torch.compile(function, **({"isolate_recompiles": True} if ISOLATES else {}), **options)  # type: ignore

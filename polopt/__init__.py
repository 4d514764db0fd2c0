"""polopt: policy optimization, one short readable file per method.

import polopt
run = polopt.train("sac", "Pendulum-v1", steps=10_000)
actor = polopt.load(run.folder)
action = actor.predict(obs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "train": "polopt.training.api",
    "iterate": "polopt.training.api",
    "resume": "polopt.training.api",
    "load": "polopt.training.api",
    "evaluate": "polopt.training.api",
    "demonstrate": "polopt.training.api",
    "export": "polopt.training.export",
    "record": "polopt.report.compare",
    "compare": "polopt.report.compare",
    "report": "polopt.report.compare",
    "sweep": "polopt.report.sweep",
    "Run": "polopt.training.folder",
    "Method": "polopt.bases.method",
    "methods": "polopt.registry",
    "UsageError": "polopt.core.errors",
    "RunError": "polopt.core.errors",
}

if TYPE_CHECKING:
    from polopt.bases.method import Method
    from polopt.core.errors import RunError, UsageError
    from polopt.registry import methods
    from polopt.report.compare import compare, record, report
    from polopt.report.sweep import sweep
    from polopt.training.api import demonstrate, evaluate, iterate, load, resume, train
    from polopt.training.export import export
    from polopt.training.folder import Run

__all__ = [
    "Method",
    "Run",
    "RunError",
    "UsageError",
    "compare",
    "demonstrate",
    "evaluate",
    "export",
    "iterate",
    "load",
    "methods",
    "record",
    "report",
    "resume",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Loads torch only when something that needs it is asked for: `polopt methods` stays fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'polopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""polopt's own tasks by name: one table of "module:class". Imports no torch."""

from __future__ import annotations

import functools
import importlib
import traceback
from typing import Any

from polopt.core.errors import UsageError, nearest

NAMED: dict[str, str] = {
    "recall": "polopt.tasks.memory:Recall",
    "masked": "polopt.tasks.masked:Masked",
    "u-maze": "polopt.tasks.maze:UMaze",
    "point-maze": "polopt.tasks.maze:PointMaze",
    "brownian": "polopt.tasks.diffusions:Brownian",
    "cone": "polopt.tasks.programs:Cone",
    "mixture": "polopt.tasks.programs:Mixture",
    "random-mdp": "polopt.tasks.tabular:RandomMDP",
    "chain": "polopt.tasks.tabular:Chain",
    "exit-mdp": "polopt.tasks.tabular_sets:ExitMDP",
    "off-dynamics": "polopt.tasks.tabular_sets:OffDynamics",
    "grid": "polopt.tasks.grid:Grid",
    "point": "polopt.tasks.point:Point",
    "lock": "polopt.tasks.lock:Lock",
    "lock/continuous": "polopt.tasks.lock:Lock",
    "layers": "polopt.tasks.lock:Layers",
    "inventory/store": "polopt.tasks.inventory:Inventory",
    "inventory/serial": "polopt.tasks.inventory:Inventory",
    "inventory/warehouse": "polopt.tasks.inventory:Inventory",
    "edge": "polopt.tasks.edge:Edge",
    "sessions": "polopt.tasks.sessions:Sessions",
    "sessions/groups": "polopt.tasks.sessions:Sessions",
    "feed": "polopt.tasks.feed:Feed",
    "pendulum": "polopt.tasks.torch_control:Pendulum",
    "memory-controller": "polopt.tasks.controller:MemoryController",
    "memory-controller/box": "polopt.tasks.controller:MemoryController",
    "addition": "polopt.tasks.problems:Addition",
    "countdown": "polopt.tasks.problems:Countdown",
    "ascending": "polopt.tasks.problems:Ascending",
    "sorting": "polopt.tasks.problems:Sorting",
    "lookup": "polopt.tasks.problems:Lookup",
    "guess": "polopt.tasks.problems:Guess",
    "vowels": "polopt.tasks.problems:Vowels",
    "orbit": "polopt.tasks.orbit:Orbit",
    "strings": "polopt.tasks.strings:Strings",
    "mixed": "polopt.tasks.mixed:Mixed",
}
"""Each class is a `gymnasium.Env`, of which rows are made one by one, or a `Task`, which makes all its rows itself."""

BEGINS: dict[str, str] = {
    "grid/": "polopt.tasks.grid:Grid",
    "point/": "polopt.tasks.point:Point",
    "reasoning-gym/": "polopt.tasks.reasoning:ReasoningGym",
    "datasets/": "polopt.tasks.prompts:Prompts",
    "envpool/": "polopt.tasks.pooled:PooledTask",
}
"""Whole families of tasks, by how their names begin; `ENDS` likewise."""

ARRAYS = (".hdf5", ".h5", ".npz")  # files of recorded decisions
ENDS: dict[str, str] = dict.fromkeys((".jsonl", ".parquet"), "polopt.tasks.prompts:Prompts")
ENDS |= dict.fromkeys(ARRAYS, "polopt.tasks.unplayed:Unplayed")


def place(name: str) -> str | None:
    """Where the class is ("module:class") that serves a name of polopt's own; None for other names."""
    found = NAMED.get(name)
    found = found or next((where for start, where in BEGINS.items() if name.startswith(start)), None)
    return found or next((where for end, where in ENDS.items() if name.endswith(end)), None)


def own_class(name: Any) -> Any:
    """The class that serves a name of polopt's own; None for anything else, which is not even imported."""
    where = place(name) if isinstance(name, str) else None
    return imported(where, name) if where else None


def is_text(name: Any) -> bool:
    """Whether a name stands for a text task of polopt's own."""
    found = own_class(name)
    if found is None:
        return False
    from polopt.tasks.text import TextTask

    return issubclass(found, TextTask)


def imported(where: str, name: str) -> Any:
    """What "module:path" stands for; `name` is how the task was called. Raises UsageError, one sentence."""
    module_name, _, path = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"the task '{name}' needs the module '{error.name}', which cannot be imported") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}, line {frame.lineno})"
        raise UsageError(f"the task '{name}' needs the module '{module_name}', whose import failed: {said}") from error
    try:
        return functools.reduce(getattr, path.split("."), module)
    except AttributeError:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"the module '{module_name}' has no '{path}'{nearest(path, functions)}") from None

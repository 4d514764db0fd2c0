"""torch.compile for methods of objects of which there may be many, and kept on disk."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from polopt.core.files import cache_folder

F = TypeVar("F", bound=Callable[..., Any])

ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps compiled code; it asks for it whenever it needs it
VALUES = ("CONSTANT_MATCH", "EQUALS_MATCH", "ID_MATCH")  # numbers, texts, flags and None, wherever they are


def compiled(function: F, **options: Any) -> F:
    """`torch.compile` with versions of its own, where torch can: else it keeps 8 of one piece of code, whoever calls
    it, and the ninth learner of a method that holds many would run uncompiled.

    What it draws are the numbers that would be drawn uncompiled. Of what torch looks at in each call, to see whether
    the compiled code still holds, only `may_change` is left.
    """
    keep_code()
    if "mode" not in options:  # torch takes one of the two
        own: dict[str, Any] = {"guard_filter_fn": may_change}
        if options.get("backend", "inductor") == "inductor":
            own |= inductor_options()
        options = options | {"options": own | options.get("options", {})}
    return torch.compile(function, **({"isolate_recompiles": True} if ISOLATES else {}), **options)  # type: ignore


def inductor_options() -> dict[str, Any]:
    """Random numbers are drawn as uncompiled. A tanh is made of an exponential, in a third of the time of the one that
    is exact to the last digit: within 2e-7 of it. Where there is no accelerator, what calls the kernels is C++ as well,
    in one file with them: that takes less time to compile, and a sixth off an update with small networks. Which vector
    instructions there are is what the processor says: torch would compile a program for each set, 12 seconds in all, to
    ask the compiler as well, and compilers that can read this torch's headers know AVX2 and AVX-512."""
    from torch._inductor import config  # takes a second, which a run without it need not wait

    fast = {"cpp.use_decompose_tanh": True} if hasattr(config.cpp, "use_decompose_tanh") else {}
    if getattr(config.cpp, "vec_isa_ok", False) is None:  # the environment has not said
        fast["cpp.vec_isa_ok"] = True
    return {"fallback_random": True, "cpp_wrapper": not torch.accelerator.is_available(), **fast}


def may_change(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards on compiled code are asked in each call: those on arguments, on values, and on what a
    learner holds. Not those on functions, classes and modules of Python, on hooks, and on what an optimizer keeps for
    each parameter: they are most, and where networks are small all of them take half as long as the update itself.
    """
    return [_asked(guard) for guard in guards]


def _asked(guard: Any) -> bool:
    name, kind = guard.name, guard.guard_type
    if kind in VALUES:
        return True
    if guard.is_global or "type(" in name or kind == "EMPTY_NN_MODULE_HOOKS_DICT":
        return False
    if kind == "NOT_PRESENT_IN_GENERIC_DICT":  # an attribute of the class: of values the object may get its own
        attribute = getattr(guard.orig_guard.create_fn, "keywords", {}).get("attr", "")
        return not callable(getattr(type(guard.value), attribute, None))
    if kind == "DUPLICATE_INPUT":  # an optimizer's parameters are those of modules
        return ".parameters[" not in name
    return "._moments[" not in name  # those of an optimizer, which are shaped like the parameters


def keep_code() -> None:
    """What torch compiles from here on is kept in polopt's cache, unless the environment says where, so that the next
    process that wants the same begins with it."""
    os.environ.setdefault(CACHE, str(cache_folder() / "compiled"))


def gradients_traced() -> bool:
    """Whether this torch can compile a function that takes gradients; it does from here on."""
    from torch._dynamo import config  # takes a second, which a run without it need not wait

    if not hasattr(config, "trace_autograd_ops"):
        return False
    config.trace_autograd_ops = True
    return True

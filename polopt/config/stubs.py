"""Reading a method's config without its libraries: method files import torch, whose import takes seconds.

Inside `stubbed()`, whatever is neither polopt, nor the standard library, nor imported already, imports as a stub: an
object that can be called, subclassed, subscripted and used as a decorator, and never computes. Afterwards the modules
imported meanwhile are forgotten, so that a later import is a real one. A test compares what is read with the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class StubBase:
    """What a class inherits from that subclasses a stub."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()


class Stub:
    """Stands for anything of a library that is not imported."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> Stub:
        return self

    def __getattr__(self, name: str) -> Stub:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (StubBase,) if next(base for base in bases if isinstance(base, Stub)) is self else ()

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    __getitem__ = __or__ = __ror__ = __and__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __call__
    __truediv__ = __rtruediv__ = __pow__ = __neg__ = __enter__ = __call__

    def __exit__(self, *error: Any) -> None:
        pass


class StubModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return "0" if name == "__version__" else Stub()


class _Finder(MetaPathFinder, Loader):
    def __init__(self, real: set[str]) -> None:
        self.real = real

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.real else ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def stubbed() -> Iterator[None]:
    """Within it, importing a method file imports no library; the modules imported within it are forgotten after."""
    before = set(sys.modules)
    finder = _Finder({"polopt", *sys.stdlib_module_names, *before})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.startswith("polopt.") or isinstance(sys.modules[name], StubModule):
                module, (parent, _, child) = sys.modules.pop(name), name.rpartition(".")
                if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                    delattr(sys.modules[parent], child)

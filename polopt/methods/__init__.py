"""One file per method, by family; a base class is in `polopt.bases.method`."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Package(types.ModuleType):
    """`polopt.methods()` lists the catalogue, and `polopt.methods.control.sac` is a module: one name serves both."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from polopt import registry

        return registry.methods(*args, **options)


sys.modules[__name__].__class__ = _Package

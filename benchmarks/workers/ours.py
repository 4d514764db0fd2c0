"""polopt's worker: cases from one file per family, so that a controller is measured without a language stack."""

import importlib
from typing import Any

from protocol import serve

MODULES = ("limits", "ours_control", "ours_control_curves", "ours_offline", "ours_worlds", "ours_many", "ours_language")


class Cases(dict[str, Any]):
    """All cases; a file is imported when no file before it has the case that is asked for."""

    def __missing__(self, name: str) -> Any:
        for module in MODULES:
            cases = importlib.import_module(module).CASES
            if name in cases:
                return cases[name]
        raise KeyError(f"polopt's worker has no case {name}")


if __name__ == "__main__":
    serve(Cases(), ("polopt", "torch", "numpy", "tensordict", "gymnasium", "mujoco", "transformers"))

"""Golden trajectories: the first updates of every method's smoke run, in double precision.

Run `python -m tests.guards.golden [METHOD ...]` to write them anew, after a change that is meant to change numbers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from polopt import registry
from tests.guards.harness import BUILT, advance, built, own_methods

FOLDER = Path(__file__).parent / "golden"
UPDATES = 6


def trajectory(name: str) -> list[dict[str, float]]:
    """The metrics of the first updates."""
    torch.set_default_dtype(torch.float64)
    with built(name) as method:
        return advance(method, registry.load(name).smoke.steps, updates=UPDATES)


def write(name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(trajectory(name), indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="polopt-golden-") as cache, own_methods():
        os.environ["POLOPT_CACHE"] = cache  # new models come from today's code
        for each in sys.argv[1:] or BUILT:
            write(each)
            print(each)

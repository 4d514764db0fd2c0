"""docs/adding-a-method.md is true: its blocks, put into a copy of the package, make a method that passes all guards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.docs.blocks import ROOT, blocks

MYA2C = ["polopt/methods/control/mya2c.py", "tests/methods/test_mya2c.py", "claims/mya2c.py", "polopt/catalogue.toml"]
REDQ = ["polopt/methods/control/redq.py", "tests/methods/test_redq.py", "polopt/catalogue.toml"]


def put(folder):
    """A copy of the package with the blocks of the page."""
    skip = shutil.ignore_patterns("docs", "results")  # what is compiled stays so
    for name in ("polopt", "claims", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    parts = [block for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.title]
    assert [part.title for part in parts] == MYA2C + REDQ
    for part in parts:
        path = folder / part.title
        before = path.read_text() + "\n" if path.exists() else ""
        path.parent.mkdir(exist_ok=True)
        path.write_text(before + part.text)


SCRIPT = """
import runpy, sys
import pytest, torch
from polopt.claims.results import find_place, load_claim
from polopt.cli import main
assert main(["show", "mya2c"]) == 0
assert main(["train", "mya2c", "--task", "CartPole-v1", "--steps", "160", "--eval-episodes", "1"]) == 0
print("claims", load_claim(find_place().claims / "mya2c.py").method)
sys.argv[1:] = ["mya2c", "redq"]
runpy.run_module("tests.guards.golden", run_name="__main__")
torch.set_default_dtype(torch.float32)
sys.stdout.flush()
tests = ["tests/methods/test_mya2c.py", "tests/methods/test_redq.py", "tests/guards", "tests/test_registry.py"]
sys.exit(pytest.main([*tests, "-k", "mya2c or redq or belongs_to", "-p", "no:xdist", "-vv"]))
"""
"""What the page says of commands, in one process: to begin one, and to collect the guards, takes long."""


def test_the_blocks_make_two_methods(tmp_path):
    """The four of MyA2C and the three of an off-policy one, both at once."""
    put(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, tested = done.stdout.partition("claims mya2c\n")
    assert "status    partial" in said
    assert "slug" not in said
    assert "return " in said
    for name, base in (("mya2c", "a2c"), ("redq", "sac")):
        limit = f"test_limit[{name}-is-{base}]"
        for guard in (f"test_trains_what_it_says[{name}]", f"test_stopped_equals_unstopped[{name}]", limit):
            assert f"{guard} PASSED" in tested
        assert f"tests/methods/test_{name}.py" in tested

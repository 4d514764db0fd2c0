"""docs/adding-a-method.md is true: its blocks, put into a copy of the package, make a method that passes all guards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.docs.blocks import ROOT, blocks

A2C = ["polopt/methods/control/a2c.py", "tests/methods/test_a2c.py", "claims/a2c.py", "polopt/catalogue.toml"]
REDQ = ["polopt/methods/control/redq.py", "tests/methods/test_redq.py", "polopt/catalogue.toml"]


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def put(folder, titles):
    """A copy of the package with those blocks of the page."""
    skip = shutil.ignore_patterns("__pycache__", "docs", "results")
    for name in ("polopt", "claims", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    parts = [block for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.title]
    assert [part.title for part in parts] == A2C + REDQ
    for part in parts[: len(A2C)] if titles is A2C else parts[len(A2C) :]:
        path = folder / part.title
        before = path.read_text() + "\n" if path.exists() else ""
        path.parent.mkdir(exist_ok=True)
        path.write_text(before + part.text)


def guarded(folder, name, base):
    python(folder, "-m", "tests.guards.golden", name)
    tests = [f"tests/methods/test_{name}.py", "tests/guards", "tests/test_registry.py"]
    done = python(folder, "-m", "pytest", *tests, "-k", f"{name} or belongs", "-p", "no:xdist", "-vv")
    limit = f"test_limit[{name}-is-{base}]"
    for guard in (f"test_trains_what_it_says[{name}]", f"test_stopped_equals_unstopped[{name}]", limit):
        assert f"{guard} PASSED" in done


def test_an_off_policy_method_is_three_blocks(tmp_path):
    put(tmp_path, REDQ)
    guarded(tmp_path, "redq", "sac")


def test_the_four_blocks_make_a_method(tmp_path):
    put(tmp_path, A2C)
    guarded(tmp_path, "a2c", "ppo")
    shown = python(tmp_path, "-m", "polopt.cli", "show", "a2c")
    assert "status    partial" in shown
    assert "slug" not in shown
    trained = python(
        tmp_path, "-m", "polopt.cli", "train", "a2c", "--task", "CartPole-v1", "--steps", "160", "--eval-episodes", "1"
    )
    assert "return " in trained
    checked = python(
        tmp_path, "-c", "from polopt.claims.results import *; print(load_claim(find_place().claims / 'a2c.py').method)"
    )
    assert checked.strip() == "a2c"

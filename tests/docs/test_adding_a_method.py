"""docs/adding-a-method.md is true: its blocks, put into a copy of the package, make a method that passes all guards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.docs.blocks import ROOT, blocks

EXPECTED = ["polopt/methods/control/a2c.py", "tests/methods/test_a2c.py", "claims/a2c.py", "polopt/catalogue.toml"]


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_four_blocks_make_a_method(tmp_path):
    skip = shutil.ignore_patterns("__pycache__", "docs", "results")
    for name in ("polopt", "claims", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    parts = [block for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.title]
    assert [part.title for part in parts] == EXPECTED
    for part in parts:
        path = tmp_path / part.title
        before = path.read_text() + "\n" if path.exists() else ""
        path.parent.mkdir(exist_ok=True)
        path.write_text(before + part.text)

    python(tmp_path, "-m", "tests.guards.golden", "a2c")
    tests = ["tests/methods/test_a2c.py", "tests/guards", "tests/test_registry.py"]

    done = python(tmp_path, "-m", "pytest", *tests, "-k", "a2c or test_registry", "-p", "no:xdist", "-vv")
    for guard in ("test_trains_what_it_says[a2c]", "test_stopped_equals_unstopped[a2c]", "test_limit[a2c-is-ppo]"):
        assert f"{guard} PASSED" in done

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

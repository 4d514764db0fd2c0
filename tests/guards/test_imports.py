"""Optional libraries are imported by the few modules that need them, and nobody who does not use them needs them."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import polopt

PACKAGE = Path(polopt.__file__).parent
ALLOWED = {
    "transformers": ("policies/", "data/tokenizing.py"),
    "tokenizers": ("policies/", "data/tokenizing.py"),
    "peft": ("policies/",),
    "vllm": ("policies/",),
    "huggingface_hub": ("policies/",),
    "minari": ("data/storing.py", "tasks/recorded.py"),
    "datasets": ("tasks/",),
    "reasoning_gym": ("tasks/",),
    "ray": ("core/cluster.py",),
}


@functools.cache
def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, also through `need("name")` and `import_module("name")`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("need", "import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("library", ALLOWED)
def test_only_where_it_belongs(library):
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if library in imported(path)}
    assert users, f"nothing imports {library}"
    assert not [user for user in users if not user.startswith(ALLOWED[library])], users


def test_control_needs_none_of_them(tmp_path):
    """Training, evaluating and reporting a controller where these libraries are not installed."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ALLOWED)
    code = f"""
import sys; {blocked}
from polopt.cli import main
run = {str(tmp_path / "run")!r}
small = ["--network.sizes", "8", "--eval-episodes", "1", "--envs", "2", "--window", "32"]
assert main(["train", "ppo", "--task", "CartPole-v1", "--steps", "64", "--out", run, *small]) == 0
assert main(["eval", run, "--episodes", "1"]) == 0
assert main(["methods"]) == 0 and main(["show", "rec"]) == 0
assert main(["train", "rec", "--task", "vowels", "--model", "tiny"]) == 2
assert main(["dataset", "info", "x/y-v0"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert "polopt[language]" in done.stderr
    assert "polopt[offline]" in done.stderr

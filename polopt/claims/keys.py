"""What the lines of a claim are keyed by: hashes of arms, of expectations, of the claim's code, and of the behavior of
the methods that are trained. Torch-free."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import polopt
from polopt import registry
from polopt.claims.claim import Claim
from polopt.claims.expectations import describe
from polopt.core.errors import UsageError

PACKAGE = Path(polopt.__file__).parent
GOLDEN = PACKAGE.parent / "tests" / "guards" / "golden"  # the first updates of every method, in numbers


def arm_key(claim: Claim, arm: str) -> str:
    """Hash of an arm's settings and of the budget."""
    return digest({"arm": describe_arm(claim.arms[arm], arm), "budget": dict(claim.budget)})


def expect_key(claim: Claim) -> str:
    """Hash of what is expected."""
    return digest([describe(item) for item in claim.expect])


def line_key(claim: Claim, path: Path, arm: str) -> str:
    """What a new line is keyed by: "ARM:CLAIM:BEHAVIOR", three hashes. See `polopt.claims.results`."""
    return ":".join((arm_key(claim, arm), claim_key(path), behavior_key(claim, path, arm)))


def claim_key(path: Path) -> str:
    """Hash of the code of a claim file, without CLAIM itself, `figures`, docstrings and comments."""
    return _sourcedigest(path.read_text())


def behavior_key(claim: Claim, path: Path, arm: str) -> str:
    """Hash of the golden numbers of the methods that an arm trains, or, where polopt is installed, of its version."""
    if not GOLDEN.is_dir():
        return digest(polopt.__version__)
    names = getattr(claim.arms[arm], "trains", None) or (claim.method, *_named_methods(path.read_text()))
    return digest({name: _golden(name) for name in sorted(set(names))})


def _golden(name: str) -> Any:
    path = GOLDEN / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _named_methods(source: str) -> set[str]:
    """The methods that a claim file names: it trains no others."""
    words = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {word for word in words if isinstance(word, str) and word in registry.locations()}


def describe_arm(arm: Any, name: str = "") -> Any:
    """What an arm is, as JSON. Raises UsageError for arms that cannot be told apart from others."""
    if hasattr(arm, "describe"):
        return arm.describe()
    if isinstance(arm, functools.partial):
        return {"partial": describe_arm(arm.func, name), "args": plain(arm.args), "keywords": plain(arm.keywords)}
    if is_dataclass(arm) and not isinstance(arm, type):
        return plain(arm)
    if inspect.isfunction(arm) and arm.__closure__ is None:
        source = textwrap.dedent(inspect.getsource(arm))
        try:
            return {"function": arm.__qualname__, "source": ast.dump(_bare(ast.parse(source)))}
        except SyntaxError:  # a lambda in the middle of an expression
            return {"function": arm.__qualname__, "source": source}
    raise UsageError(f"the arm '{name}' must be a train_arm, a plain function, a functools.partial or a dataclass")


@functools.cache
def _sourcedigest(source: str) -> str:
    tree = _bare(ast.parse(source))
    tree.body = [node for node in tree.body if not _assigns_claim(node) and not _draws(node)]
    return digest(ast.dump(tree))


def _assigns_claim(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "CLAIM" for to in node.targets)


def _draws(node: ast.stmt) -> bool:
    """The function that says what is drawn of the results: no result depends on it."""
    return isinstance(node, ast.FunctionDef) and node.name == "figures"


def _bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings; comments and layout are not in it anyway."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [
                item
                for item in node.body
                if not (
                    isinstance(item, ast.Expr)
                    and isinstance(item.value, ast.Constant)
                    and isinstance(item.value.value, str)
                )
            ]
    return tree


def digest(value: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A value as JSON: dataclasses with their kind, callables by name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return str(value)

"""What the lines of a claim are keyed by: hashes of arms, of expectations, and of the code that was run. Torch-free."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import polopt
from polopt import registry
from polopt.claims.claim import Claim
from polopt.claims.expectations import describe
from polopt.core.errors import UsageError

PACKAGE = Path(polopt.__file__).parent
NOT_METHOD = ("training", "report", "cli", "claims", "registry")  # changes there make no line stale


def arm_key(claim: Claim, arm: str) -> str:
    """Hash of an arm's settings and of the budget."""
    return _hash({"arm": describe_arm(claim.arms[arm], arm), "budget": dict(claim.budget)})


def expect_key(claim: Claim) -> str:
    """Hash of what is expected."""
    return _hash([describe(item) for item in claim.expect])


def code_key(claim: Claim, path: Path, arm: str) -> str:
    """Hash of the claim file (without CLAIM itself), the arm's method file, and the polopt modules they import."""
    roots = [path]
    method = getattr(claim.arms[arm], "method", None)
    if isinstance(method, str):
        roots.append(registry.location(method).path)
    return _hash([_source_hash(item.read_text()) for item in _closure(roots)])


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


def _closure(roots: Iterable[Path]) -> list[Path]:
    """The files, and every polopt module that they import, at the top or inside functions, directly or not."""
    seen: dict[Path, None] = {}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen[path] = None
            waiting += _imports(path.read_text())
    return sorted(seen)


@functools.cache
def _imports(source: str) -> tuple[Path, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = (_module_file(name.removeprefix("polopt.")) for name in names if name.startswith("polopt."))
    return tuple(sorted(path for path in found if path is not None))


def _module_file(name: str) -> Path | None:
    if any(name == item or name.startswith(f"{item}.") for item in NOT_METHOD):
        return None
    base = PACKAGE.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _source_hash(source: str) -> str:
    tree = _bare(ast.parse(source))
    tree.body = [node for node in tree.body if not _assigns_claim(node)]
    return _hash(ast.dump(tree))


def _assigns_claim(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "CLAIM" for to in node.targets)


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


def _hash(value: Any) -> str:
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

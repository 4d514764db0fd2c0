"""Breaks a method on purpose, one small change at a time, and lists the changes that no test of it sees.

    python -m tests.mutants ppo                                              a method, by tests/methods/test_ppo.py
    python -m tests.mutants polopt/losses/surrogate.py tests/losses          a part, by the tests that are named

A term is dropped, a sign flipped, operands swapped, a `detach` or `no_grad` taken away, a constant replaced, a
comparison negated, a keyword argument or a call without a result left out. Configs and settings are left as they are.
Each mutant runs in a child of one warm process, in which the module imports as the mutant; the first failure, or three
times the processor time of the whole, ends it. Tests above 2 seconds are left out: what only a training run sees is
hardly seen.

A survivor is a missing test, or a change that means nothing (a small number that only guards a division, say).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SLOW = 2.0  # seconds of a test
PLAIN = ("Config", "derived")  # what checks and describes settings
OPPOSITE = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SYMMETRIC = ("weighted_mean", "torch.maximum", "torch.minimum", "max", "min", "isinstance")
SIGN = {ast.Add: ast.Sub, ast.Sub: ast.Add}


@dataclass(frozen=True)
class Mutant:
    """A changed syntax tree, and the change in words."""

    line: int
    change: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module's text."""
    tree = ast.parse(source)
    for way, node in _places(tree):
        for change, replacement in _changes(node):
            twin = copy.deepcopy(tree)
            _put(twin, way, replacement)
            ast.fix_missing_locations(twin)
            yield Mutant(node.lineno, f"{_short(node)} -> {change}", twin)


Way = tuple[tuple[str, int | None], ...]  # fields and positions from the module to a node


def _places(node: ast.AST, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every statement and expression of functions, with the way to it."""
    for name, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _plain(node, name, child):
                continue
            here = (*way, (name, index))
            if isinstance(child, ast.stmt | ast.expr):
                yield here, child
            yield from _places(child, here)


def _plain(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """Whether it is no mathematics: types, decorators, texts, errors, what is named outside of functions."""
    if isinstance(parent, ast.Module | ast.ClassDef):
        return not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name in PLAIN
    if isinstance(node, ast.arguments | ast.Raise | ast.Assert) or field in ("annotation", "returns", "decorator_list"):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: Any) -> Iterator[tuple[str, ast.AST]]:
    """What to put in the place of a node, each with its text."""
    match node:
        case ast.FunctionDef(decorator_list=[*_, decorator]) if "no_grad" in ast.unparse(decorator):
            yield "with gradients", _both(node, decorator_list=node.decorator_list[:-1])[1]
        case ast.BinOp(left, op, right) if not _textual(node):
            if type(op) in SIGN:
                yield _both(node, op=SIGN[type(op)]())
            if isinstance(op, ast.Sub | ast.Div | ast.Pow | ast.MatMult | ast.BitOr):
                yield _both(node, left=right, right=left)
            if isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitOr | ast.BitAnd):
                yield ast.unparse(left), left
            if isinstance(op, ast.Add | ast.Mult | ast.BitOr | ast.BitAnd):
                yield ast.unparse(right), right
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield ast.unparse(operand), operand
        case ast.Compare(ops=[op]) if type(op) in OPPOSITE:
            yield _both(node, ops=[OPPOSITE[type(op)]()])
        case ast.BoolOp(op):
            yield _both(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.IfExp(_, body, orelse):
            yield ast.unparse(body), body
            yield ast.unparse(orelse), orelse
        case ast.Constant(bool() as value):
            yield _both(node, value=not value)
        case ast.Constant(int() | float() as value):
            yield _both(node, value=value + 1 if isinstance(value, int) else 2 * value or 1.0)
        case ast.Call(ast.Attribute(value, "detach" | "square" | "abs" | "clamp" | "clamp_min" | "clamp_max" | "exp")):
            yield ast.unparse(value), value
        case ast.With(items=[item], body=body) if "no_grad" in ast.unparse(item):
            yield "with gradients", ast.If(ast.Constant(True), body, [])
        case ast.Expr(ast.Call()) if "super().__init__" not in ast.unparse(node):
            yield "left out", ast.Pass()
        case ast.AugAssign():
            yield "left out", ast.Pass()
    if isinstance(node, ast.Call):
        for index, keyword in enumerate(node.keywords):
            rest = node.keywords[:index] + node.keywords[index + 1 :]
            yield f"without {keyword.arg}", ast.Call(node.func, node.args, rest)
        swappable = len(node.args) >= 2 and ast.unparse(node.func) not in SYMMETRIC
        if swappable and not any(isinstance(arg, ast.Starred | ast.Constant) for arg in node.args[:2]):
            yield _both(node, args=[node.args[1], node.args[0], *node.args[2:]])


def _both(node: Any, **changes: Any) -> tuple[str, ast.AST]:
    twin = copy.copy(node)
    for name, value in changes.items():
        setattr(twin, name, value)
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(twin))), twin


def _textual(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    ) or any(_textual(side) for side in sides if isinstance(side, ast.BinOp))


def _short(node: ast.AST) -> str:
    text = ast.unparse(node).split("\n")[0]
    return text if len(text) < 70 else f"{text[:67]}..."


def _put(tree: ast.AST, way: Way, node: ast.AST) -> None:
    """Puts a node at the end of a way into the tree."""
    parent: Any = tree
    for name, index in way[:-1]:
        parent = getattr(parent, name) if index is None else getattr(parent, name)[index]
    name, index = way[-1]
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes one module from a tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(self.path))
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class Watch:
    """Notes how long tests take and which one fails first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run(tests: Sequence[str], limit: float | None, importer: Importer | None = None) -> dict[str, Any]:
    """The tests in a child process: {"code", "failed", "seconds" by test, "modules"}; "code" None: out of time."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        code: int = 99
        with contextlib.suppress(BaseException):
            if limit is not None:
                signal.setitimer(signal.ITIMER_PROF, limit)  # processor time: others may be at work
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            if importer is not None:
                sys.meta_path.insert(0, importer)
            watch = Watch()
            code = int(pytest.main(["-x", "-q", "-p", "no:randomly", *tests], plugins=[watch]))
            found = {"code": code, "failed": watch.failed, "seconds": watch.seconds, "modules": list(sys.modules)}
            with os.fdopen(send, "w") as pipe:
                json.dump(found, pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"code": None, "failed": "out of time, or the process died", "seconds": {}}


def warm(modules: Sequence[str]) -> None:
    """Imports the libraries that the tests use, so that no child has to."""
    for name in modules:
        if name.partition(".")[0] not in ("polopt", "tests", "__main__", "conftest") and name not in sys.modules:
            with contextlib.suppress(BaseException):
                importlib.import_module(name)


def places(what: str, tests: Sequence[str]) -> tuple[Path, list[str]]:
    """The file to mutate, and the tests that should see it."""
    path = ROOT / what
    if path.suffix != ".py":
        from polopt import registry

        path = Path(registry.location(what).path)
        tests = tests or [f"tests/methods/test_{path.stem}.py"]
    if not tests or not path.is_file():
        raise SystemExit("name a method, or a file of polopt and the tests of it")
    return path.resolve(), list(tests)


def survivors(path: Path, tests: Sequence[str], jobs: int = 1, slow: float = SLOW) -> tuple[int, list[Mutant]]:
    """How many mutants there are, and those that no test sees."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    source = path.read_text()
    first = run(tests, None)
    if first["code"] != 0:
        raise SystemExit(f"the tests fail as they are: {first['failed']}")
    warm(first["modules"])
    quick = [test for test, seconds in sorted(first["seconds"].items(), key=lambda item: item[1]) if seconds < slow]
    began = time.process_time() + sum(os.times()[2:4])
    again = run(quick, None, Importer(name, path, ast.parse(source)))
    if again["code"] != 0:
        raise SystemExit(f"the tests fail one by one: {again['failed']}")
    limit = 3 * (time.process_time() + sum(os.times()[2:4]) - began) + 2
    kills = dict.fromkeys(quick, 0)
    alive: list[Mutant] = []

    def look(mutant: Mutant) -> None:
        order = sorted(quick, key=lambda test: -kills[test])  # what saw the last ones may see this one
        found = run(order, limit, Importer(name, path, mutant.tree))
        if found["code"] == 0:
            alive.append(mutant)
        elif found["failed"] in kills:
            kills[found["failed"]] += 1

    every = list(mutants(source))
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(look, every))
    return len(every), sorted(alive, key=lambda mutant: mutant.line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", help="a method, or a file of polopt")
    parser.add_argument("tests", nargs="*", help="default: the tests of the method")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--slow", type=float, default=SLOW, help="seconds above which a test is left out")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT)
    file, named = places(args.what, args.tests)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polopt-mutants-") as cache:
        os.environ["POLOPT_CACHE"] = cache
        count, alive = survivors(file, named, args.jobs, args.slow)
    for mutant in alive:
        print(f"{file.relative_to(ROOT)}:{mutant.line}: {mutant.change}")
    print(f"{len(alive)} of {count} mutants survive ({time.monotonic() - start:.0f} s)")

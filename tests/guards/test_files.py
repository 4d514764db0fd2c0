"""What a method file may be: short, in order, and without a body that another one has already."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import polopt
from polopt import registry
from tests.guards.harness import ENTRIES

METHODS = Path(polopt.__file__).parent / "methods"
SETTINGS = sorted(METHODS.glob("*/*_settings.py"))
FILES = sorted(path for path in METHODS.glob("*/*.py") if path.name != "__init__.py" and path not in SETTINGS)
TESTS = Path(__file__).parents[1] / "methods"
SHORT = 8  # lines of a body that may be repeated
LONG = 400  # lines of any file of the package, but for these, each with the reason why it is not parted
MAY_BE_LONG: dict[str, str] = {}


def body_of(function: ast.FunctionDef) -> list[ast.stmt]:
    """The body without its docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def normalized(function: ast.FunctionDef) -> str:
    """The body as text in which local names are numbered, so that renaming does not hide a copy."""
    names: dict[str, str] = {}
    module = ast.parse(ast.unparse(ast.Module(body_of(function), type_ignores=[])))
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    local = {argument.arg for argument in arguments if argument.arg != "self"}
    local |= {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id in local:
            node.id = names.setdefault(node.id, f"_{len(names)}")
    return ast.unparse(module)


def repeated(sources: dict[str, str]) -> list[list[str]]:
    """Groups of functions, "file:name", with the same long body."""
    groups = defaultdict(list)
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                text = normalized(node)
                if text.count("\n") + 1 > SHORT:
                    groups[text].append(f"{file}:{node.name}")
    return [group for group in groups.values() if len(group) > 1]


def test_no_function_body_is_repeated():
    assert repeated({str(path.relative_to(METHODS)): path.read_text() for path in FILES}) == []


def test_a_renamed_copy_is_found():
    lines = [f"    b = b + {index}" for index in range(SHORT)]
    one = "\n".join(["def f(self, a):", '    """Doc."""', "    b = a", *lines, "    return b"])
    other = one.replace("b", "zz").replace("def f(self, a)", "def g(self, other)").replace("= a", "= other")
    assert repeated({"one": one, "other": other}) == [["one:f", "other:g"]]
    assert repeated({"one": one, "other": other.replace("+ 3", "+ 9")}) == []


def test_no_file_of_the_package_is_long_without_a_reason():
    package = METHODS.parent
    lines = {str(path.relative_to(package)): path.read_text().count("\n") for path in package.rglob("*.py")}
    assert len(lines) > 100
    long = {name for name, count in lines.items() if count > LONG}
    assert long == set(MAY_BE_LONG), "part it by what changes together, or say why not; a reason goes with its file"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_short_and_in_order(path):
    source = path.read_text()
    assert source.count("\n") <= 300, "a method file has at most 300 lines: move what is shared into a part"
    tree = ast.parse(source)
    doc = ast.get_docstring(tree)
    assert doc, "a method file begins with its docstring"
    assert "Departs from the paper in" in doc
    assert any(char.isdigit() for char in doc.split("\n\n")[1]), "the second paragraph cites the paper, with its year"
    kinds = [type(node) for node in tree.body[1:]]
    imports = [index for index, kind in enumerate(kinds) if kind in (ast.Import, ast.ImportFrom)]
    assert imports == list(range(len(imports))), "imports follow the docstring"
    forbidden = {"print", "open"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & forbidden, "no logging and no files in a method file"


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_a_settings_file_stands_beside_a_method_and_has_no_mathematics(path):
    method = path.with_name(path.name.replace("_settings", ""))
    assert method in FILES, f"there is no {method.name} beside {path.name}"
    assert f".{path.stem} import" in method.read_text()
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes
    for node in classes:
        assert [ast.unparse(base) for base in node.bases] == ["Settings"]
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert functions <= {"derived"}, "what computes belongs into the method's file or into a part"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_a_class_config_comes_first_and_collecting_before_updating(path):
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        names = [item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.ClassDef))]
        if "Config" in names:
            assert names[0] == "Config"
        order = [names.index(name) for name in ("Config", "build", "update") if name in names]
        assert order == sorted(order), f"{node.name}: {names}"


@pytest.mark.parametrize("name", [name for name in ENTRIES if not registry.find(name).base_only])
def test_what_must_not_be_skipped_is_tested(name):
    """The test module of a row says how many such items its paper has: MUST = n, and tests test_must_1_... to n."""
    path = TESTS / f"test_{registry.find(name).slug.replace('-', '_')}.py"
    assert path.exists(), f"{name} has no {path.relative_to(TESTS.parents[1])}"
    tree = ast.parse(path.read_text())
    numbers = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == "MUST" for target in node.targets)
    ]
    assert numbers, f"{path.name} does not say MUST = n"
    tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for number in range(1, numbers[0] + 1):
        assert any(test.startswith(f"test_must_{number}_") for test in tests), f"{path.name}: no test_must_{number}_..."

"""What begins with an underscore belongs to one file: no other file asks for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    *(ROOT / "gptoss").rglob("*.py"),
    *ROOT.glob("bench*.py"),
    *(ROOT / "bench").rglob("*.py"),
    *(ROOT / "tools").rglob("*.py"),
]
# Public, whatever their names say.
ALLOWED = {
    "_core": "the compiled core, a module for all of gptoss",
    "_kernels": "the kernels one by one, a module for tests and benchmarks",
    "_replace": "of named tuples",
    "_asdict": "of named tuples",
    "_exit": "os._exit",
    "_attn_implementation": "transformers has no other name for it in a made configuration",
}


def defined(tree: ast.AST) -> set[str]:
    """Names that a file gives to something of its own."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) if of_itself(node):
                found.add(name)
            case ast.alias(name=name, asname=None):
                found.add(name.partition(".")[0])
            case ast.alias(asname=name):
                found.add(name)
    return found


def of_itself(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def touched(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each private member of another file that `source` uses."""
    tree = ast.parse(source)
    own = defined(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and not of_itself(node):
                if name not in own:
                    yield node.lineno, name
            case ast.ImportFrom(names=names):
                yield from ((node.lineno, each.name) for each in names if is_private(each.name))


def test_nothing_private_of_another_file_is_touched() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        for line, name in touched(path.read_text())
        if name not in ALLOWED
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("engine._worker.submit()", ["_worker"]),
        ("self._engine._worker", ["_worker"]),
        ("engine._worker = None", ["_worker"]),
        ("from gptoss.cli.serve import _plans", ["_plans"]),
        ("class A:\n    def __init__(self):\n        self._n = 0\n    def __eq__(self, o):\n"
         "        return self._n == o._n", []),
        ("class A:\n    _n: int = 0\nA._n", []),
        ("def _f(): ...\n_f()", []),
        ("x.__class__", []),
    ],
)  # fmt: skip
def test_the_rule_itself(source: str, names: list[str]) -> None:
    assert [name for _, name in touched(source)] == names

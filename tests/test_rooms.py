"""Who may import whom: the rooms of gptoss/, held by reading every import statement.

docs/architecture.md explains the table. tests/test_includes.py does the same for C++.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gptoss"

# A room is a folder of gptoss/, or a file beside them. It may import from itself and from these.
BASE = {"errors", "extras"}
MAY = {
    "errors": set(),
    "extras": set(),
    "files": BASE,
    "gguf": BASE | {"files"},
    "native": BASE,
    "request": BASE,
    "model": BASE | {"files"},
    "tokenizer": BASE | {"files", "gguf"},
    "checkpoint": BASE | {"files", "gguf", "model", "native", "tokenizer"},
    "reference": BASE | {"model", "checkpoint"},
    "chat": BASE | {"tokenizer", "request"},
    "hub": BASE | {"files", "gguf", "checkpoint", "tokenizer"},
    "engine": BASE | {"files", "native", "request", "model", "tokenizer", "checkpoint", "hub"},
    "agent": BASE | {"request", "chat", "engine"},
    "server": BASE | {"files", "engine", "chat", "agent", "request", "tokenizer"},
    "train": BASE | {"files", "model", "tokenizer", "checkpoint", "chat", "native"},
    "viz": BASE | {"train", "files"},
    "eval": BASE
    | {"engine", "train", "chat", "request", "native", "model", "tokenizer", "checkpoint"},
    "rl": BASE | {"engine", "train", "chat", "request"},
}
EVERYTHING = {"cli", "__init__", "__main__"}

# Inside a room. Of the checkpoint room only the face and the names of tokenizer files are needed.
ONLY = {
    ("checkpoint", "tokenizer"): {"gptoss.tokenizer", "gptoss.tokenizer.files"},
    ("hub", "tokenizer"): {"gptoss.tokenizer.files"},
    ("reference", "checkpoint"): {"gptoss.checkpoint", "gptoss.checkpoint.source"},
}
# The two halves of the server: neither knows the other.
APART = [("gptoss.server.api", "gptoss.server.front")]
# file → what it may import all the same, and why
EXCEPTIONS = {
    # An application of Ray Serve is what each of its replicas runs.
    "gptoss/server/front/ray_app.py": {"gptoss.server.api.app"},
}
# Rooms that others import through their face (`gptoss.engine`), not file by file, so that a face
# shows all that others use. The rest bring heavy libraries that only some of their files need.
FACED = {"request", "model", "tokenizer", "checkpoint", "hub", "chat", "engine"}
OPEN = {"gptoss.tokenizer.files", "gptoss.tokenizer.vocabulary", "gptoss.model.mxfp4",
        "gptoss.engine.options", "gptoss.checkpoint.source"}  # fmt: skip

# Imports inside functions; besides all of cli/ and every face.
LAZY = {"gptoss/__init__.py", "gptoss/__main__.py"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset(map(module_of, files())) | {"gptoss.native._core", "gptoss.native._kernels"}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[tuple[ast.stmt, str, bool]]:
    """(statement, module of ours that it names, whether at the top of the file)."""
    found = []
    tree = ast.parse(path.read_text())
    top = set()
    for node in tree.body:
        top.add(node)
        if isinstance(node, ast.If):  # `if TYPE_CHECKING`
            top.update(node.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import relative to its file"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                name = full if full in modules() else base
                if name.split(".")[0] == "gptoss":
                    found.append((node, name, node in top))
        elif isinstance(node, ast.Import):
            found += [
                (node, alias.name, node in top)
                for alias in node.names
                if alias.name.split(".")[0] == "gptoss"
            ]
    return found


def each_import():
    for path in files():
        place = str(path.relative_to(ROOT))
        for node, name, top in imports(path):
            yield place, module_of(path), f"{place}:{node.lineno}", name, top


def test_a_room_imports_only_from_rooms_below_it():
    wrong = []
    for place, module, where, name, _ in each_import():
        room, theirs = room_of(module), room_of(name)
        if room in EVERYTHING or theirs in (room, "__init__") or name in EXCEPTIONS.get(place, ()):
            continue
        assert room in MAY, f"{where}: room {room} is not in the table"
        if theirs not in MAY[room]:
            wrong.append(f"{where}: {room} may not import {name}")
        elif name not in ONLY.get((room, theirs), {name}):
            wrong.append(f"{where}: {room} may import {ONLY[room, theirs]}, not {name}")
    assert not wrong, "\n".join(wrong)


def test_halves_of_the_server_do_not_know_each_other():
    wrong = [
        f"{where}: {name}"
        for place, module, where, name, _ in each_import()
        for pair in APART
        for one, other in (pair, pair[::-1])
        if module.startswith(one)
        and name.startswith(other)
        and name not in EXCEPTIONS.get(place, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_other_rooms_come_through_the_face():
    wrong = [
        f"{where}: {name}; say `from gptoss.{room_of(name)} import …`"
        for place, module, where, name, _ in each_import()
        if room_of(name) in FACED
        and room_of(name) != room_of(module)
        and name.count(".") > 1
        and name not in OPEN
        and place not in LAZY
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_stand_at_the_top():
    """What an import inside a function hides is a circle, or a wait in the middle of work."""
    wrong = [
        f"{where}: {name}"
        for place, module, where, name, top in each_import()
        if not top
        and room_of(module) != "cli"
        and not place.endswith("__init__.py")
        and place not in LAZY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Which files of ours each file imports; a face counts as the files that it is made of."""
    result: dict[str, set[str]] = {name: set() for name in modules()}
    for place, module, _, name, _ in each_import():
        if place not in LAZY and name in modules() and name != module:
            result[module].add(name)
    return result


def test_nothing_imports_in_a_circle(graph):
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join([*path[path.index(name) :], name])
        state[name] = 1
        for other in sorted(graph[name]):
            visit(other, [*path, name])
        state[name] = 2

    for name in sorted(graph):
        visit(name, [])


def floors() -> dict[str, int]:
    """How high each room stands: one above the highest that it imports."""
    below: dict[str, set[str]] = {}
    for _, module, _, name, _ in each_import():
        room, theirs = room_of(module), room_of(name)
        if room not in ("__init__", "__main__") and theirs not in (room, "__init__"):
            below.setdefault(room, set()).add(theirs)

    def height(room: str) -> int:
        return 1 + max((height(other) for other in below.get(room, ())), default=0)

    return {room: height(room) for room in {room_of(name) for name in modules()} - EVERYTHING}


def test_the_house_has_at_most_nine_floors():
    assert max(floors().values()) <= 9


def test_the_table_has_no_circle_either():
    seen: set[str] = set()
    while len(seen) < len(MAY):
        ready = {room for room, below in MAY.items() if room not in seen and below <= seen}
        assert ready, f"a circle among {sorted(set(MAY) - seen)}"
        seen |= ready


if __name__ == "__main__":
    for room, floor in sorted(floors().items(), key=lambda item: (item[1], item[0])):
        print(floor, room)

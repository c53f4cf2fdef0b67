"""Who may include whom in C++ and CUDA: the rows of docs/architecture.md, by reading the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "cuda", "bindings", "tests/core", "tools/bochs")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
EXTERN = re.compile(r'^cdef extern from "([^"]+)"', re.MULTILINE)

# What a file of a room may include, by patterns of paths. The first room that fits a file counts.
GROUND = r"core/(?!registry|parallel)\w+\.h"
ROOMS = [
    # The one file that knows which backends there are.
    (r"core/registry\.cpp", [r"core/\w+\.h", r"core/cpu/backend\.h"]),
    (r"core/(registry|parallel)\.(h|cpp)", [r"core/\w+\.h"]),
    (r"core/\w+\.(h|cpp)", [GROUND]),
    (r"core/cpu/kernels/.*", [GROUND, r"core/cpu/(isa|panels)\.h", r"core/cpu/kernels/.*"]),
    (r"core/cpu/.*", [GROUND, r"core/cpu/.*"]),
    # Not in what users install.
    (r"core/testing/.*", [GROUND, r"core/cpu/.*", r"core/testing/.*"]),
    (r"cuda/.*", [GROUND, r"cuda/.*"]),
    (r"bindings/.*", [GROUND]),
    (r"tests/core/.*", [r"core/.*", r"cuda/.*", r"tests/core/.*"]),
    (r"tools/bochs/.*", [r"core/cpu/kernels/table\.h"]),
]
# Compiled for one instruction set, with macros that its own file defines.
PER_ISA = r"core/cpu/kernels/(\w+-inl\.h|(?!select\b)\w+\.cpp)"


def sources() -> list[Path]:
    found = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES
    ]
    assert len(found) > 100
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def includes() -> dict[str, list[str]]:
    """Each file's quoted includes, as they are written."""
    return {name(path): INCLUDE.findall(path.read_text("utf-8")) for path in sources()}


def matches(patterns: list[str], included: str) -> bool:
    return any(re.fullmatch(pattern, included) for pattern in patterns)


def test_includes_are_written_from_the_root(includes: dict[str, list[str]]) -> None:
    wrong = [
        f"{file}: {included}"
        for file, all_of in includes.items()
        for included in all_of
        if ".." in included or not (ROOT / included).is_file()
    ]
    assert not wrong


def test_pxd_files_are_those_of_their_headers() -> None:
    """bindings/core/backend.pxd declares core/backend.h, and that header alone."""
    files = sorted((ROOT / "bindings").rglob("*.pxd"))
    assert files
    for file in files:
        headers = EXTERN.findall(file.read_text("utf-8"))
        at = file.relative_to(ROOT / "bindings").with_suffix(".h").as_posix()
        wanted = at if (ROOT / at).is_file() else f"bindings/{at}"
        assert headers in ([wanted], []), f"{name(file)}: {headers}"


def test_no_source_file_is_included(includes: dict[str, list[str]]) -> None:
    wrong = [
        f"{file}: {included}"
        for file, all_of in includes.items()
        for included in all_of
        if Path(included).suffix in (".cpp", ".cu")
    ]
    assert not wrong


def test_rooms(includes: dict[str, list[str]]) -> None:
    wrong = []
    for file, all_of in includes.items():
        allowed = next(may for room, may in ROOMS if re.fullmatch(room, file))
        wrong += [f"{file}: {included}" for included in all_of if not matches(allowed, included)]
    assert not wrong


def test_code_for_one_instruction_set_stays_there(includes: dict[str, list[str]]) -> None:
    wrong = [
        f"{file}: {included}"
        for file, all_of in includes.items()
        for included in all_of
        if included.endswith("-inl.h") and not re.fullmatch(PER_ISA, file)
    ]
    assert not wrong


def test_no_circle(includes: dict[str, list[str]]) -> None:
    done: set[str] = set()

    def visit(file: str, path: tuple[str, ...]) -> None:
        assert file not in path, " → ".join([*path[path.index(file) :], file])
        if file not in done:
            for included in includes[file]:
                visit(included, (*path, file))
            done.add(file)

    for file in includes:
        visit(file, ())

"""Environments of clients, apart from ours and from each other where what they need differs.

They are made in build/clients and kept there until their requirements change.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WORK

ROOT = Path(__file__).parents[2]
MADE = ROOT / "build" / "clients"
JAVASCRIPT = Path(__file__).parent / "javascript"
# Pinned: another version is another client, and docs/clients.md says which were tried. instructor
# wants an older openai than the agents do.
PYTHON = {
    "agents": (
        "langchain-openai==1.7.4",
        "langgraph==1.2.24",
        "openai-agents==0.24.0",
        "pydantic-ai-slim[openai]==2.68.0",
    ),
    "routers": ("instructor==1.17.0", "litellm==1.110.2"),
}
# What no waiting mends; other failures are those of a registry that is not to be had.
_CONFLICTS = ("ResolutionImpossible", "ERESOLVE")


@functools.cache
def python(name: str) -> str:
    """The interpreter of an environment of PYTHON. Skips the test where it cannot be made."""
    folder = MADE / name
    interpreter = folder / "bin" / "python"
    wanted = "\n".join((sys.version, *PYTHON[name]))
    if not _is_made(folder, wanted):
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, *PYTHON[name]])
        _stamp(folder).write_text(wanted)
    return str(interpreter)


@functools.cache
def javascript() -> Path:
    """The folder of the programs for Node, beside the packages that they import. Skips the test
    where it cannot be made."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not there")
    folder = MADE / "javascript"
    wanted = (JAVASCRIPT / "package.json").read_text()
    if not _is_made(folder, wanted):
        folder.mkdir(parents=True)
        shutil.copy(JAVASCRIPT / "package.json", folder)
        _run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        _stamp(folder).write_text(wanted)
    for program in JAVASCRIPT.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def versions() -> dict[str, str]:
    """Of every client that is installed in an environment."""
    pinned = dict(each.split("==") for names in PYTHON.values() for each in names)
    return {**pinned, **json.loads((JAVASCRIPT / "package.json").read_text())["dependencies"]}


def _stamp(folder: Path) -> Path:
    return folder / "made"


def _is_made(folder: Path, wanted: str) -> bool:
    """Whether it is there as wanted; what is there otherwise is removed."""
    if _stamp(folder).is_file() and _stamp(folder).read_text() == wanted:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _run(command: list[str], folder: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WORK)
    if done.returncode == 0:
        return
    said = (done.stderr or done.stdout).strip()
    assert not any(word in said for word in _CONFLICTS), said
    pytest.skip(f"{' '.join(command[:4])}…: {said[-300:]}")

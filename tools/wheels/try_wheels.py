"""Installs each wheel of dist/ as a user without a compiler would, and lets it write.

    python3 tools/wheels/try_wheels.py

In every Python of this machine that a wheel is for: an environment of its own, where no compiler,
make or CMake can be found, run from another folder. The instruction set that is chosen must be the
best that /proc/cpuinfo implies, and the text the one of story.py. Prints how long it takes from the
wheel to the first token.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import story
from pythons import find_pythons

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "wheels" / "tried"
DIST = ROOT / "dist"

# Settings of pip and of certificates are the machine's; everything else of the environment is not
# handed on.
KEPT = re.compile(r"PIP_.*|SSL_CERT_.*|.*_proxy|HOME", re.IGNORECASE)
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "cmake", "make", "ninja", "ld", "ccache")

# The best instruction set last, with what it needs beside the one before; as in core/cpu/isa.cpp.
SETS = {
    "generic": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_vnni": {"avx512_vnni"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}


def may_use_amx() -> bool:
    """Linux saves the tiles of this process: ARCH_REQ_XCOMP_PERM, as in core/cpu/isa.cpp."""
    arch_prctl = 158
    return ctypes.CDLL(None).syscall(arch_prctl, 0x1023, 18) == 0


def expected_set(cpuinfo: str) -> str:
    """The best of SETS that the flags of /proc/cpuinfo, given as text, allow; none on Arm."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    best = "generic"
    for name, needed in SETS.items():
        if not needed <= flags or (name == "amx" and not may_use_amx()):
            break
        best = name
    return best


def bare_environment(folder: Path, python: Path) -> dict[str, str]:
    """Variables under which only Python can be found."""
    only = folder / "path"
    only.mkdir(parents=True)
    (only / "python3").symlink_to(python)
    variables = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    variables |= {"PATH": str(only), "CC": "/bin/false", "CXX": "/bin/false"}
    for name in COMPILERS:
        assert shutil.which(name, path=variables["PATH"]) is None, name
    return variables


def wheel_for(version: tuple[int, int]) -> Path:
    """The wheel in dist/ that pip would choose on this machine."""
    pattern = "cp310-cp310" if version == (3, 10) else "cp311-abi3"
    found = sorted(DIST.glob(f"*-{pattern}-*_{platform.machine()}.whl"))
    if len(found) != 1:
        raise SystemExit(f"wheels: expected one {pattern} wheel in {DIST}, found {len(found)}")
    return found[0]


def try_wheel(python: Path, version: tuple[int, int]) -> None:
    name = ".".join(map(str, version))
    folder = WORK / name
    variables = bare_environment(folder, python)
    venv = folder / "venv"

    def run(*command: str | Path) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, env=variables, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}{done.stderr}wheels: Python {name}: failed: {words}")
        return done.stdout

    run(python, "-m", "venv", venv)
    pip, gptoss = venv / "bin" / "pip", venv / "bin" / "gptoss"
    wheel = wheel_for(version)
    start = time.perf_counter()
    run(pip, "install", "-q", "--only-binary", ":all:", wheel)
    installed = time.perf_counter()
    run(gptoss, "generate", "Once upon a time", "--max-tokens", "1")
    token = time.perf_counter()
    info = run(gptoss, "info")
    chosen = re.search(r"^cpu +(\w+) kernels", info, re.MULTILINE)
    expected = expected_set(Path("/proc/cpuinfo").read_text())
    if chosen is None or chosen[1] != expected:
        raise SystemExit(f"{info}wheels: Python {name}: expected {expected} kernels")
    story.check_story(run(gptoss, *story.COMMAND), f"Python {name}")
    print(
        f"wheels: Python {name}: {chosen[1]} kernels; installed in {installed - start:.1f} s, first"
        f" token {token - installed:.1f} s later",
        flush=True,
    )


def main() -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    for version, python in find_pythons().items():
        if version == (3, 10) and platform.machine() != "x86_64":
            continue  # which has the wheel of the stable ABI alone
        try_wheel(python, version)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

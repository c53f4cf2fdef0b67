"""The Pythons of this machine that gptoss supports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 10)
NEWEST = (3, 19)  # what is looked for, not what is supported

VERSION = """
import sys, sysconfig
print(*sys.version_info[:2], sysconfig.get_config_var("Py_GIL_DISABLED") or 0)
"""


def find_pythons() -> dict[tuple[int, int], Path]:
    """(3, minor) → interpreter: on PATH, of pyenv, and this one. Not those without the GIL."""
    candidates = [Path(sys.executable).resolve()]
    versions = (Path.home() / ".pyenv" / "versions").glob("3.*/bin/python")
    candidates += sorted(
        versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])]
    )
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        found = shutil.which(f"python3.{minor}")
        candidates += [Path(found)] if found else []
    pythons: dict[tuple[int, int], Path] = {}
    for path in candidates:
        done = subprocess.run([path, "-c", VERSION], capture_output=True, text=True)
        if done.returncode != 0:  # a shim of pyenv for a version that is not chosen
            continue
        major, minor, without_gil = map(int, done.stdout.split())
        if (major, minor) >= OLDEST and not without_gil:
            pythons.setdefault((major, minor), path)
    return dict(sorted(pythons.items()))


if __name__ == "__main__":
    for (major, minor), path in find_pythons().items():
        print(f"{major}.{minor} {path}")

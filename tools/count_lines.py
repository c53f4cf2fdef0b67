"""Refuse source files that have grown too long to say one thing: `make lint` runs this.

python tools/count_lines.py FILE…
"""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 600  # lines
EXCEPTIONS: dict[str, str] = {}  # file → why it may be longer


def main(files: list[str]) -> int:
    too_long = False
    for file in files:
        lines = len(Path(file).read_bytes().splitlines())
        if lines > LIMIT and file not in EXCEPTIONS:
            print(f"{file}: expected at most {LIMIT} lines, found {lines}")
            too_long = True
    for file in EXCEPTIONS:
        if not Path(file).is_file() or len(Path(file).read_bytes().splitlines()) <= LIMIT:
            print(f"{file}: needs no exception in {__file__} any more")
            too_long = True
    return int(too_long)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

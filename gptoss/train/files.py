"""Files that are old or new, never half."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_in_one_piece(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, brings it to the disk and renames it: `path` is old or new, never half.

    Whatever `write` raises passes on, and what it has written is removed.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

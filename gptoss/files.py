"""JSON from files that may be damaged or hostile: strict, bounded, and only `Error` comes out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from gptoss.errors import Error, shown

_UNITS = {
    **dict.fromkeys(("", "b"), 1),
    **{unit: 1000**i for i, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**i for i, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**i for i, unit in enumerate("kmgt", start=1)},
}
CONFIG_LIMIT = 1 << 24  # bytes; a real config.json has about 2 KB, an index about 100 KB


class _Refused(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {shown(key)} appears twice")
            seen.add(key)
    return result


def _no_constants(name: str) -> Any:
    raise _Refused(f"{name} is not JSON")


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in UTF-8 `data`; `what` names it in messages. See `parse_json`."""
    value = parse_json(data, what)
    if not isinstance(value, dict):
        raise Error(f"{what}: expected a JSON object, found {shown(value)}")
    return value


def parse_json(data: bytes, what: str) -> Any:
    """The JSON value in UTF-8 `data`; `what` names it in messages.

    Stricter than `json.loads`: duplicate keys, NaN and Infinity are refused. Raises Error.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants
        )
    except UnicodeDecodeError as error:
        raise Error(
            f"{what}: expected UTF-8 text, found an invalid byte at {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise Error(
            f"{what}: expected JSON, found an error at character {error.pos}: {error.msg}"
        ) from None
    except _Refused as error:
        raise Error(f"{what}: expected JSON, found: {error}") from None
    except RecursionError:
        raise Error(f"{what}: expected a flat JSON object, found one nested too deep") from None
    except ValueError:  # Python refuses to read integers of thousands of digits
        raise Error(f"{what}: expected JSON, found an integer too long to read") from None


def read_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Raises Error."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise Error(f"{path}: expected a file, found something else")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        if isinstance(error, Error):
            raise
        raise Error(f"{path}: cannot be read: {reason(error)}") from None
    if len(data) > limit:
        raise Error(f"{path}: expected at most {limit} bytes of JSON, found more")
    return parse_object(data, str(path))


def parse_size(text: str) -> int:
    """Bytes: "500MB", "2GiB", "1.5g"; single letters are powers of 1024. Raises Error."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)", text.strip().lower())
    # A float holds a number of 20 digits, which is more than any memory.
    if match is None or match[2] not in _UNITS or len(match[1]) > 20:
        raise Error(f"expected a size such as 500MB or 2GiB, found {shown(text)}")
    return int(float(match[1]) * _UNITS[match[2]])


def reason(error: Exception) -> str:
    """Why an operating system call failed, in words, without repeating the file name."""
    return getattr(error, "strerror", None) or str(error)


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


def short_path(path: Path) -> str:
    """A path with ~ for the home folder."""
    home, text = os.path.expanduser("~"), str(path)  # "~" for a user without a home
    return "~" + text[len(home) :] if text.startswith(home + os.sep) else text

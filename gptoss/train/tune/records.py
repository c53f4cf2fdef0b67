"""The rows of a file of conversations or preferences: JSON lines, JSON or Parquet."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss import files
from gptoss.errors import Error, shown
from gptoss.train.data.sources import PARQUET, kind_of

_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"


def read_records(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for each row of `data`, the content of `path`.

    JSON is a record per line, a list of records, or one record over many lines; where it is one of
    the first two is seen from the text, not from the name of the file. `where` is "file:line" or
    "file: record n". Raises Error, naming that place.
    """
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise Error(f"{path}: expected a whole gzip file, found: {error}") from None
    if kind_of(path) in PARQUET:
        yield from _parquet(path, data)
    else:
        yield from _json(path, data.removeprefix(_BOM))


def _json(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    if data.lstrip()[:1] == b"[":
        for number, record in enumerate(files.parse_json(data, str(path)), start=1):
            where = f"{path}: record {number}"
            if not isinstance(record, dict):
                raise Error(f"{where}: expected a JSON object, found {shown(record)}")
            yield where, record
        return
    lines = [(n, line) for n, line in enumerate(data.splitlines(), start=1) if line.strip()]
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            record = files.parse_object(line, where)
        except Error:
            whole = _whole(data, path) if number == lines[0][0] and len(lines) > 1 else None
            if whole is None:
                raise
            yield f"{path}: record 1", whole
            return
        yield where, record


def _whole(data: bytes, path: Path) -> dict[str, Any] | None:
    """The one record that all lines together are, as `gptoss chat` saves it; None: they are not."""
    try:
        return files.parse_object(data, str(path))
    except Error:
        return None


def _parquet(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(data)) as file:
            for batch in file.iter_batches(256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", without_nulls(record)
    except (pyarrow.ArrowException, OSError) as error:
        raise Error(f"{path}: expected a whole Parquet file, found: {error}") from None


def without_nulls(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """`value` without the keys whose value is null, at any depth, but for those named by `keep`.

    A column of structs gives each of them the keys of all, with null for what it does not have.
    """
    if isinstance(value, dict):
        return {
            key: without_nulls(item, keep)
            for key, item in value.items()
            if item is not None or key in keep
        }
    if isinstance(value, list):
        return [without_nulls(item, keep) for item in value]
    return value

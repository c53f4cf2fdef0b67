"""Documents out of files: plain text, JSON lines, Parquet, each plain or gzipped, and folders."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptoss.errors import Error, shown
from gptoss.train.data import hub
from gptoss.train.data.tokenizers import END_OF_TEXT

TEXT, JSONL, PARQUET = (".txt", ".md", ".text"), (".jsonl", ".ndjson", ".json"), (".parquet",)
KNOWN = (*TEXT, *JSONL, *PARQUET)
PROBE = 1 << 16  # bytes that tell text from something else
CHUNK = 1 << 20  # characters read at once
PIECES = 40  # documents that a text without separators is cut into, at least
SHORTEST_PIECE, LONGEST_PIECE = 500, 10_000  # characters of such a document, about

Share = Callable[[float], None]  # told the share of the file that has been read


@dataclass(frozen=True)
class Reading:
    """How to read: `field` of JSON and Parquet; what ends a document in a text."""

    field: str = "text"
    separator: str = END_OF_TEXT


def find_files(place: Path) -> list[Path]:
    """`place` itself, or the files of known kinds below it, in order of their names."""
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.is_file() and kind_of(p) in KNOWN)
        if not found:
            raise Error(f"{place}: expected files ({', '.join(KNOWN)}, also .gz), found none")
        return found
    if not place.exists():
        raise Error(
            f"{place}: expected a file, a folder, or a dataset of the Hugging Face Hub as "
            "owner/name, found nothing there"
        )
    if not place.is_file():  # reading a pipe would wait for ever
        raise Error(f"{place}: expected a file or a folder, found something else")
    return [place]


def names_of(places: Sequence[str]) -> list[str]:
    """A short name for each source, for its shards: the file's or folder's, made different."""
    names: list[str] = []
    for place in places:
        dataset = hub.parse(place) if hub.is_dataset(place) else None
        stem = Path(dataset.name).name if dataset else Path(place).resolve().name
        for suffix in (".gz", *KNOWN):
            stem = stem.removesuffix(suffix)
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem) or "text"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def kind_of(path: Path) -> str:
    """The suffix that says how to read `path`, that of compression left out."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_documents(
    path: Path, reading: Reading, share: Share = lambda share: None
) -> Iterator[str]:
    """The documents of one file, as they are. Raises Error for what is not text."""
    kind = kind_of(path)
    try:
        if kind in PARQUET:
            yield from _parquet(path, reading.field, share)
        elif kind in JSONL:
            yield from _json_lines(path, reading.field, share)
        else:
            yield from _text(path, reading.separator, share)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Error(f"{path}: expected a whole gzip file, found a damaged one ({error})") from None


class _File:
    """A file's bytes, unpacked, and the share of it that has been read."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        self._size = max(1, os.fstat(self._raw.fileno()).st_size)
        zipped = path.suffix.lower() == ".gz"
        self.data: BinaryIO = gzip.GzipFile(fileobj=self._raw) if zipped else self._raw  # type: ignore[assignment]

    def share(self) -> float:
        return min(1.0, self._raw.tell() / self._size)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()
        self._raw.close()


# Plain text.


def _text(path: Path, separator: str, share: Share) -> Iterator[str]:
    encoding = _encoding(path)
    if is_separated(path, encoding, separator):
        yield from _split(_characters(path, encoding, share), separator)
    else:
        yield from _cut(_characters(path, encoding, share), piece_size(path))


def _encoding(path: Path) -> str:
    """ "utf-8-sig", "utf-16", or "cp1252" for old western text. Raises Error for binary files."""
    with _File(path) as file:
        head = file.data.read(PROBE)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        control = sum(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head)
        if control > len(head) * 0.001:
            raise Error(
                f"{path}: expected text, found binary data ({control} control characters in the "
                f"first {len(head)} bytes)"
            )
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(head)
            while part := file.data.read(CHUNK):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def is_separated(path: Path, encoding: str, separator: str) -> bool:
    """Whether `separator` stands anywhere in the text."""
    tail = ""
    for part in _characters(path, encoding, lambda share: None):
        if separator in tail + part:
            return True
        tail = (tail + part)[-len(separator) :]
    return False


def _characters(path: Path, encoding: str, share: Share) -> Iterator[str]:
    with _File(path) as file:
        text = io.TextIOWrapper(file.data, encoding=encoding, errors="replace")
        while part := text.read(CHUNK):
            share(file.share())
            yield part


def _split(parts: Iterator[str], separator: str) -> Iterator[str]:
    """What stands between separators, wherever the parts of the text break them."""
    before: list[str] = []  # the document so far, but for `tail`
    tail = ""  # may hold the beginning of a separator
    for part in parts:
        *whole, rest = (tail + part).split(separator)
        for document in whole:
            yield "".join([*before, document])
            before = []
        cut = max(0, len(rest) - len(separator) + 1)
        before.append(rest[:cut])
        tail = rest[cut:]
    last = "".join([*before, tail])
    if last.strip():  # after the last separator there is mostly just a line end
        yield last


def piece_size(path: Path) -> int:
    """Characters of a document, about, that a text without separators is cut into."""
    return max(SHORTEST_PIECE, min(LONGEST_PIECE, path.stat().st_size // PIECES))


def _cut(parts: Iterator[str], size: int) -> Iterator[str]:
    """A text without separators in pieces of at least `size` characters, four times that at most.

    A piece ends at a blank line if there is one before twice the size, else at a line's end, else
    between two words, else anywhere.
    """
    text = ""
    for part in parts:
        text += part
        start = 0
        while len(text) - start >= 4 * size:
            places = (
                text.find(mark, start + size, start + limit * size)
                for mark, limit in (("\n\n", 2), ("\n", 3), (" ", 4))
            )
            end = next((at for at in places if at >= 0), start + 4 * size)
            yield text[start:end]
            start = end
        text = text[start:]
    while len(text) > 2 * size and (at := text.find("\n\n", size, 2 * size)) >= 0:
        yield text[:at]
        text = text[at:]
    if text.strip():
        yield text


# JSON lines and Parquet.


def _json_lines(path: Path, field: str, share: Share) -> Iterator[str]:
    with _File(path) as file:
        for number, line in enumerate(file.data, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Error(f"{where}: expected a JSON object, found {error}") from None
            if not isinstance(record, dict):
                raise Error(f"{where}: expected a JSON object, found {shown(record)}")
            share(file.share())
            yield _field(record, field, where)


def _field(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        found = "nothing" if value is None else shown(value)
        raise Error(
            f"{where}: expected text in field {field!r}, found {found}; the fields are "
            f"{', '.join(map(str, list(record)[:8])) or 'none'}"
        )
    return value


def _parquet(path: Path, field: str, share: Share) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise Error(
                    f"{path}: expected a column {field!r}, found {', '.join(schema.names[:8])}"
                )
            kind = str(schema.field(field).type)
            if kind not in ("string", "large_string", "string_view"):
                raise Error(f"{path}: column {field!r}: expected strings, found {kind}")
            for number in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[number], columns=[field]):
                    yield from (value or "" for value in batch.column(0).to_pylist())
                share((number + 1) / file.num_row_groups)
    except (pyarrow.ArrowException, OSError) as error:
        raise Error(f"{path}: expected a whole Parquet file, found: {error}") from None

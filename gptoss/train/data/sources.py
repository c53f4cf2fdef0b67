"""Documents out of files: plain text, JSON lines, Parquet, each plain or gzipped, and folders."""

from __future__ import annotations

import codecs
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptoss.errors import Error, shown
from gptoss.train.data.tokenizers import END_OF_TEXT

TEXT, JSONL, PARQUET = (".txt", ".md", ".text"), (".jsonl", ".ndjson", ".json"), (".parquet",)
KNOWN = (*TEXT, *JSONL, *PARQUET)
PROBE = 1 << 16  # bytes that tell text from something else
PIECES = 40  # documents that a text without separators is cut into, at least
LONGEST_PIECE = 10_000  # characters of such a document, about


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
    return [place]


def kind_of(path: Path) -> str:
    """The suffix that says how to read `path`, that of compression left out."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_documents(path: Path, reading: Reading) -> Iterator[str]:
    """The documents of one file, as they stand. Raises Error for what is no text."""
    kind = kind_of(path)
    try:
        if kind in PARQUET:
            yield from _parquet(path, reading.field)
        elif kind in JSONL:
            yield from _json_lines(path, reading.field)
        else:
            yield from _text(path, reading.separator)
    except (gzip.BadGzipFile, EOFError) as error:
        raise Error(f"{path}: expected a whole gzip file, found a damaged one ({error})") from None


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _encoding(path: Path) -> str:
    """ "utf-8-sig", "utf-16", or "cp1252" for old western text. Raises Error for binary files."""
    with _open(path) as file:
        head = file.read(PROBE)
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
            while part := file.read(1 << 20):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def _text(path: Path, separator: str) -> Iterator[str]:
    encoding = _encoding(path)
    with _open(path) as file:
        lines = io.TextIOWrapper(file, encoding=encoding, errors="replace")
        document: list[str] = []
        whole: list[str] | None = []  # what has come before the first separator, if any
        for line in lines:
            *before, last = line.split(separator)
            for part in before:
                document.append(part)
                yield "".join(document)
                document, whole = [], None
            document.append(last)
        if whole is None:
            yield "".join(document)
        else:
            yield from _cut("".join(document))


def _cut(text: str) -> Iterator[str]:
    """A text without separators in pieces that end at blank lines, so that some can be held out."""
    size = max(500, min(LONGEST_PIECE, len(text) // PIECES))
    piece: list[str] = []
    length = 0
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        piece.append(paragraph)
        length += len(paragraph) + 2
        if length >= size:
            yield "\n\n".join(piece)
            piece, length = [], 0
    if piece:
        yield "\n\n".join(piece)


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Error(f"{where}: expected a JSON object, found {error}") from None
            if not isinstance(record, dict):
                raise Error(f"{where}: expected a JSON object, found {shown(record)}")
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


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise Error(
                    f"{path}: expected a column {field!r}, found "
                    f"{', '.join(file.schema_arrow.names[:8])}"
                )
            for number in range(file.num_row_groups):
                for batch in file.iter_batches(1024, row_groups=[number], columns=[field]):
                    for value in batch.column(0).to_pylist():
                        yield _field({field: value}, field, f"{path}: row group {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise Error(f"{path}: expected a Parquet file, found {error}") from None


def names_of(places: Sequence[str]) -> list[str]:
    """A short name for each source, for its shards: the file's or folder's, made different."""
    names: list[str] = []
    for place in places:
        stem = Path(
            place.split(":")[0] if "/" in place and not Path(place).exists() else place
        ).name
        for suffix in (".gz", *KNOWN):
            stem = stem.removesuffix(suffix)
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem) or "text"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names

"""Reading GGUF files, every byte of which may be hostile: mapped, checked, decoded on demand."""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error, shown
from gptoss.files import reason
from gptoss.gguf import types
from gptoss.gguf.types import TENSOR_TYPES, TensorType

_METADATA_LIMIT = 1 << 28  # bytes; the published vocabulary with its merges takes 12 MB
_ITEMS_LIMIT = 1 << 22  # values in all arrays together; that vocabulary has 1.1 million
_KEYS_LIMIT = 1 << 16
_TENSORS_LIMIT = 1 << 16
_KEY_LIMIT = 1 << 10  # bytes of a key or a tensor's name
_DIMENSIONS_LIMIT = 4
_ALIGNMENT_LIMIT = 1 << 20
_MAX_BYTES = 1 << 62
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Field:
    """Where a metadata value lies. count: of an array, None for a single value."""

    type: int
    count: int | None
    offset: int


@dataclass(frozen=True)
class Entry:
    """One tensor. shape: outermost dimension first. begin, end: offsets in the file, in bytes."""

    name: str
    number: int  # of its type
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def type(self) -> TensorType:
        return TENSOR_TYPES[self.number]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, the innermost dimension."""
        return self.shape[-1] // self.type.block * self.type.nbytes


class GgufFile:
    """A mapped file whose header has passed every check of the format.

    fields: metadata, by key. tensors: by name. Raises Error, naming the file, for anything wrong
    with it. Views keep the mapping alive, so they outlive `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None
        if not path.is_file():
            raise Error(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
        try:
            with path.open("rb") as file:
                if file.read(4) != types.MAGIC:
                    raise Error(f"{path}: expected a GGUF file, found other bytes at its start")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, Error):
                raise
            raise Error(f"{path}: cannot be read: {reason(error)}") from None
        cursor = _Cursor(self._map, path)
        count, keys = _read_counts(cursor)
        self.fields: dict[str, Field] = _read_fields(cursor, keys)
        alignment = self.integer(types.ALIGNMENT_KEY, types.DEFAULT_ALIGNMENT)
        if not 0 < alignment <= _ALIGNMENT_LIMIT or alignment & (alignment - 1):
            raise Error(
                f"{path}: {types.ALIGNMENT_KEY}: expected a power of two up to "
                f"{_ALIGNMENT_LIMIT}, found {alignment}"
            )
        self.tensors: dict[str, Entry] = _read_tensors(cursor, count, alignment)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of any width. Raises Error where it is missing without a default."""
        value = self._single(key, "an integer", default)
        if type(value) is not int:
            raise self._mistyped(key, "an integer", value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number. A float32 comes as the shortest decimal that rounds to it: 1e-05."""
        value = self._single(key, "a number", default)
        if type(value) not in (int, float):
            raise self._mistyped(key, "a number", value)
        if key in self.fields and self.fields[key].type == types.F32:
            return float(str(np.float32(value)))
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises Error where it is missing without a default."""
        value = self._single(key, "text", default)
        if not isinstance(value, str):
            raise self._mistyped(key, "text", value)
        return value

    def array(self, key: str) -> list[Any]:
        """The values of an array; empty where the key is missing."""
        field = self.fields.get(key)
        if field is None:
            return []
        if field.count is None:
            raise self._mistyped(key, "an array", self._single(key, "", None))
        return self._values(field, key)

    def _single(self, key: str, expected: str, default: Any) -> Any:
        field = self.fields.get(key)
        if field is None:
            if default is None:
                raise Error(f"{self.path}: {key}: expected {expected}, found no such key")
            return default
        if field.count is not None:
            raise self._mistyped(key, expected, f"an array of {field.count} values")
        return self._values(field, key)[0]

    def _mistyped(self, key: str, expected: str, found: Any) -> Error:
        return Error(f"{self.path}: {key}: expected {expected}, found {shown(found)}")

    def _values(self, field: Field, key: str) -> list[Any]:
        if self._map is None:
            raise Error(f"{self.path}: {key}: the file has been closed")
        count = 1 if field.count is None else field.count
        if field.type == types.TEXT:
            cursor = _Cursor(self._map, self.path, field.offset)
            try:
                return [cursor.octets(key).decode() for _ in range(count)]
            except UnicodeDecodeError as error:
                raise Error(
                    f"{self.path}: {key}: expected UTF-8, found {shown(error.object)}"
                ) from None
        scalar = types.SCALARS[field.type]
        end = field.offset + count * scalar.size
        return [value for (value,) in scalar.iter_unpack(self._map[field.offset : end])]

    def view(self, entry: Entry, begin: int, end: int) -> NDArray[np.uint8]:
        """Bytes [begin, end) of a tensor, read-only, where they lie in the file."""
        if self._map is None:
            raise Error(f"{self.path}: tensor {shown(entry.name)}: the file has been closed")
        return np.frombuffer(
            self._map, dtype=np.uint8, count=end - begin, offset=entry.begin + begin
        )

    def release(self, entry: Entry) -> None:
        """Drop the tensor's pages from this process; touching a view reads them again."""
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this tensor alone
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, length)

    def close(self) -> None:
        self._map = None


class _Cursor:
    """A place in a mapped file that moves on with each value read."""

    def __init__(self, data: mmap.mmap, path: Path, place: int = 0) -> None:
        self.data, self.size, self.path, self.place = data, len(data), path, place

    def advance(self, nbytes: int, what: str) -> int:
        """Pass over nbytes bytes; where they begin."""
        begin, self.place = self.place, self.place + nbytes
        if self.place > self.size:
            raise Error(
                f"{self.path}: {what}: expected {shown(nbytes)} bytes from byte {begin} on, found "
                f"the end of the file at {self.size} (cut short while downloading?)"
            )
        return begin

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.advance(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.advance(8, what))[0])

    def octets(self, what: str) -> bytes:
        """A length and so many bytes."""
        length = self.u64(what)
        begin = self.advance(length, what)
        return self.data[begin : begin + length]

    def name(self, what: str) -> str:
        length = self.u64(what)
        if length > _KEY_LIMIT:
            raise Error(
                f"{self.path}: {what}: expected a name of at most {_KEY_LIMIT} bytes, found "
                f"{length} bytes"
            )
        begin = self.advance(length, what)
        data = self.data[begin : begin + length]
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise Error(f"{self.path}: {what}: expected UTF-8, found {shown(data)}") from None

    def skip_texts(self, count: int, what: str) -> None:
        data, unpack, place, last = self.data, _U64.unpack_from, self.place, self.size - 8
        for _ in range(count):
            if place > last:
                break
            place += 8 + unpack(data, place)[0]
        else:
            self.place = min(place, self.size)
            self.advance(place - self.place, what)
            return
        self.place = min(place, self.size)
        self.advance(8, what)


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """(tensors, keys) of a file whose first four bytes are the magic."""
    cursor.place = 4
    version = cursor.u32("header")
    if version not in types.VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise Error(
            f"{cursor.path}: expected version 2 or 3 of GGUF, little-endian, found "
            + (f"version {swapped}, big-endian" if swapped in types.VERSIONS else f"{version}")
        )
    counts = cursor.u64("header"), cursor.u64("header")
    for count, limit, what in zip(
        counts, (_TENSORS_LIMIT, _KEYS_LIMIT), ("tensors", "keys"), strict=True
    ):
        if count > limit:
            raise Error(f"{cursor.path}: expected at most {limit} {what}, found {count}")
    return counts


def _read_fields(cursor: _Cursor, count: int) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    items, begin = 0, cursor.place
    for number in range(count):
        key = cursor.name(f"metadata key {number}")
        if key in fields:
            raise Error(f"{cursor.path}: metadata: the key {shown(key)} appears twice")
        what = f"metadata {shown(key)}"
        kind, length = cursor.u32(what), None
        if kind == types.ARRAY:
            kind, length = cursor.u32(what), cursor.u64(what)
            items += length
        if kind not in types.SCALARS and kind != types.TEXT:
            raise Error(f"{cursor.path}: {what}: expected a type of GGUF, found number {kind}")
        if items > _ITEMS_LIMIT:
            raise Error(
                f"{cursor.path}: {what}: expected at most {_ITEMS_LIMIT} values in arrays, found "
                f"{shown(items)}"
            )
        fields[key] = Field(kind, length, cursor.place)
        if kind == types.TEXT:
            cursor.skip_texts(1 if length is None else length, what)
        else:
            cursor.advance(types.SCALARS[kind].size * (1 if length is None else length), what)
        if cursor.place - begin > _METADATA_LIMIT:
            raise Error(f"{cursor.path}: expected at most {_METADATA_LIMIT} bytes of metadata")
    return fields


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Entry]:
    described = []
    for number in range(count):
        name = cursor.name(f"tensor {number}")
        what = f"tensor {shown(name)}"
        dimensions = cursor.u32(what)
        if not 0 < dimensions <= _DIMENSIONS_LIMIT:
            raise Error(
                f"{cursor.path}: {what}: expected 1 to {_DIMENSIONS_LIMIT} dimensions, found "
                f"{dimensions}"
            )
        shape = tuple(reversed([cursor.u64(what) for _ in range(dimensions)]))
        described.append((name, shape, cursor.u32(what), cursor.u64(what)))
    start = -(-cursor.place // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, shape, kind, offset in described:
        if name in entries:
            raise Error(f"{cursor.path}: tensor {shown(name)} appears twice")
        entries[name] = _parse_entry(cursor, name, shape, kind, offset, start, alignment)
    _check_overlaps(cursor.path, entries)
    return entries


def _parse_entry(
    cursor: _Cursor,
    name: str,
    shape: tuple[int, ...],
    number: int,
    offset: int,
    start: int,
    alignment: int,
) -> Entry:
    where = f"{cursor.path}: tensor {shown(name)}"
    if number not in TENSOR_TYPES:
        raise Error(f"{where}: expected a type of tensors that is known here, found {number}")
    kind = TENSOR_TYPES[number]
    if math.prod(shape) > _MAX_BYTES or any(size == 0 for size in shape):
        raise Error(f"{where}: shape: absurd sizes: {shown(list(shape))}")
    if shape[-1] % kind.block:
        raise Error(
            f"{where}: expected rows of a multiple of {kind.block} values for {kind.name}, found "
            f"shape {list(shape)}"
        )
    if offset % alignment:
        raise Error(f"{where}: offset: expected a multiple of {alignment}, found {offset}")
    begin = start + offset
    end = begin + math.prod(shape) // kind.block * kind.nbytes
    if end > cursor.size:
        raise Error(
            f"{where}: expected bytes {begin} to {end}, found the end of the file at "
            f"{cursor.size} (cut short while downloading?)"
        )
    return Entry(name, number, shape, begin, end)


def _check_overlaps(path: Path, entries: dict[str, Entry]) -> None:
    before: Entry | None = None
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if before is not None and entry.begin < before.end:
            raise Error(
                f"{path}: tensor {shown(entry.name)} overlaps tensor {shown(before.name)}: "
                f"expected it to start at byte {before.end} or later, found {entry.begin}"
            )
        before = entry


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF does, whatever its name. Raises OSError."""
    with path.open("rb") as file:
        return file.read(4) == types.MAGIC


def open_parts(path: Path) -> list[GgufFile]:
    """The files of the model that `path` is, or is one part of: the first holds the metadata.

    Parts are named as llama.cpp's gguf-split does: `name-00001-of-00003.gguf`. Raises Error.
    """
    opened: list[GgufFile] = []
    try:
        for part in parts_of(path):
            opened.append(GgufFile(part))
        _check_parts(opened)
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def part_names(path: Path) -> list[Path]:
    """The paths of all parts, there or not; `path` alone where its name is not that of a part.

    Raises Error for a part beyond their number.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count:
        raise Error(f"{path}: expected part 1 to {count}, found {number}")
    return [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


def parts_of(path: Path) -> list[Path]:
    """The paths of all parts. Raises Error where one is missing."""
    paths = part_names(path)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise Error(
            f"{path}: expected {len(paths)} parts side by side, missing {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return paths


def _check_parts(files: list[GgufFile]) -> None:
    """Raise Error unless the files are the parts, in order, of one model."""
    for number, file in enumerate(files):
        count, found = file.integer("split.count", 1), file.integer("split.no", 0)
        if max(count, 1) != len(files):
            raise Error(
                f"{file.path}: split.count: expected {len(files)} by its name, found {count}: "
                f"parts are found by names such as model-00001-of-00003.gguf"
            )
        if found != number:
            raise Error(f"{file.path}: split.no: expected {number} by its name, found {found}")
    holders: dict[str, Path] = {}
    for file in files:
        for name in file.tensors:
            if name in holders:
                raise Error(f"{file.path}: tensor {shown(name)} is in {holders[name].name} as well")
            holders[name] = file.path
    total = files[0].integer("split.tensors.count", len(holders))
    if len(files) > 1 and total != len(holders):
        raise Error(f"{files[0].path}: expected {total} tensors in all parts, found {len(holders)}")

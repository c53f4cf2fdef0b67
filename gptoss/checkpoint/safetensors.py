"""Reading and writing safetensors files over NumPy, which has no bfloat16 of its own.

The format: 8 bytes header length (unsigned, little-endian), a JSON header {name: {dtype, shape,
data_offsets}}, then the tensors' bytes, which must fill the rest of the file without gaps or
overlaps. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss import files
from gptoss.errors import Error, shown
from gptoss.files import reason

HEADER_LIMIT = 100_000_000  # bytes, the format's own limit
_MAX_BYTES = 1 << 62
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
_NUMPY: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype(np.uint8),
}  # what can be viewed


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. begin, end: byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A mapped file whose header has passed every check of the format.

    Raises Error, naming the file, for anything wrong with it. Views keep the mapping alive, so
    they outlive `close`. A file that another program shortens while it is mapped cannot be guarded
    against: the operating system then ends the process that touches the missing part.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None
        if not path.is_file():
            raise Error(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                header, start = _read_header(file.read, size, path)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, Error):
                raise
            raise Error(f"{path}: cannot be read: {reason(error)}") from None
        if len(self._map) != size:
            raise Error(f"{path}: its size changed from {size} to {len(self._map)} bytes meanwhile")
        self.metadata: dict[str, str] = _check_metadata(header.pop("__metadata__", {}), path)
        self.entries: dict[str, Entry] = {
            name: _parse_entry(name, value, start, size, path) for name, value in header.items()
        }
        _check_coverage(self.entries, start, size, path)

    def view(self, name: str) -> NDArray[Any]:
        """A read-only view of a BF16 (as uint16), F16, F32 or U8 tensor.

        Copied only if the bytes are not aligned for the dtype.
        """
        if self._map is None:
            raise Error(f"{self.path}: tensor {shown(name)}: the file has been closed")
        entry = self.entries[name]
        array: NDArray[Any] = np.frombuffer(
            self._map, dtype=_NUMPY[entry.dtype], count=math.prod(entry.shape), offset=entry.begin
        ).reshape(entry.shape)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        """Drop the tensor's pages from this process; touching a view reads them again."""
        entry = self.entries[name]
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this tensor alone
        length = entry.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, length)

    def close(self) -> None:
        self._map = None


def _read_header(read: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset at which the tensors' bytes start."""
    if size < 8:
        raise Error(
            f"{path}: expected a safetensors file, which starts with 8 bytes of header length, "
            f"found {'an empty file' if size == 0 else f'a file of {size} bytes'}"
        )
    length = struct.unpack("<Q", read(8))[0]
    if length > HEADER_LIMIT:
        raise Error(
            f"{path}: header length: expected at most {HEADER_LIMIT} bytes, found {length} "
            f"(is this a safetensors file?)"
        )
    if length > size - 8:
        raise Error(
            f"{path}: header length {length} reaches beyond the end of the file: expected at most "
            f"{size - 8} bytes in a file of {size} (cut short while downloading?)"
        )
    return files.parse_object(read(length), f"{path}: header"), 8 + length


def _check_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Error(
            f"{path}: __metadata__: expected an object with text values, found {shown(metadata)}"
        )
    return metadata


def _parse_entry(name: str, value: Any, start: int, size: int, path: Path) -> Entry:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Error(f"{where}: expected dtype, shape and data_offsets, found {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise Error(
            f"{where}: dtype: expected one of {', '.join(_ITEM_BYTES)}, found {shown(dtype)}"
        )
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Error(f"{where}: shape: expected sizes of 0 or more, found {shown(shape)}")
    if len(shape) > 32 or any(n > _MAX_BYTES for n in shape):
        raise Error(f"{where}: shape: absurd sizes: {shown(shape)}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
    ):
        raise Error(
            f"{where}: data_offsets: expected two offsets of 0 or more, found {shown(offsets)}"
        )
    begin, end = offsets
    if begin > end:
        raise Error(f"{where}: data_offsets: expected begin ≤ end, found {shown(offsets)}")
    if end > size - start:
        raise Error(
            f"{where}: data_offsets: expected at most {size - start} (the file has {size} bytes), "
            f"found {shown(offsets)}: the file is truncated or the offset out of range"
        )
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != expected:
        raise Error(
            f"{where}: expected {shown(expected)} bytes for {dtype} {shown(shape)}, found "
            f"{end - begin} between its data_offsets"
        )
    return Entry(name, dtype, tuple(shape), start + begin, start + end)


def _check_coverage(entries: dict[str, Entry], start: int, size: int, path: Path) -> None:
    """Raise Error unless the tensors fill the file from `start` to its end exactly once."""
    position, before, gap = start, "the header", ""
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < position:
            raise Error(
                f"{path}: tensor {shown(entry.name)} overlaps {before}: expected it to start at "
                f"byte {position - start} of the data, found {entry.begin - start}"
            )
        if entry.begin > position and not gap:  # an overlap elsewhere explains more than a gap
            gap = (
                f"{path}: {entry.begin - position} bytes between {before} and tensor "
                f"{shown(entry.name)} belong to no tensor: expected it to start at byte "
                f"{position - start} of the data, found {entry.begin - start}"
            )
        position, before = entry.end, f"tensor {shown(entry.name)}"
    if gap:
        raise Error(gap)
    if position != size:
        raise Error(
            f"{path}: expected the data to end at byte {position} with {before}, found "
            f"{size - position} more bytes that belong to no tensor"
        )


def encode_header(
    tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    """Length and header for (name, dtype, shape) stored one after another in that order.

    Padded with blanks so that the data starts at a multiple of 64 bytes.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text

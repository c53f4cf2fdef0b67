"""Writing GGUF, version 3, little-endian: the header; the caller appends the tensors' bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gptoss.gguf import types

# (key, type of value or of its items, value): a list becomes an array.
Metadata = list[tuple[str, int, Any]]
ALIGNMENT = types.DEFAULT_ALIGNMENT


def tensor_bytes(type_name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor without the padding that follows it."""
    kind = types.TENSOR_TYPES[types.TYPE_NUMBERS[type_name]]
    return math.prod(shape) // kind.block * kind.nbytes


def padding(nbytes: int) -> int:
    """How many bytes follow so many, up to the next multiple of the alignment."""
    return -nbytes % ALIGNMENT


def encode_header(metadata: Metadata, tensors: Sequence[tuple[str, str, Sequence[int]]]) -> bytes:
    """Everything before the first tensor's bytes.

    tensors: (name, "F32", "F16", "BF16", "Q8_0" or "MXFP4", shape with the outermost dimension
    first), whose bytes are to follow in this order, each with its `padding`.
    """
    parts = [types.MAGIC, _scalar(types.U32, 3), _scalar(types.U64, len(tensors))]
    parts.append(_scalar(types.U64, len(metadata)))
    for key, kind, value in metadata:
        parts.append(_text(key))
        if isinstance(value, list):
            parts += [_scalar(types.U32, types.ARRAY), _scalar(types.U32, kind)]
            parts.append(_scalar(types.U64, len(value)))
            parts += [_value(kind, item) for item in value]
        else:
            parts += [_scalar(types.U32, kind), _value(kind, value)]
    offset = 0
    for name, type_name, shape in tensors:
        parts += [_text(name), _scalar(types.U32, len(shape))]
        parts += [_scalar(types.U64, size) for size in reversed(shape)]
        parts.append(_scalar(types.U32, types.TYPE_NUMBERS[type_name]))
        parts.append(_scalar(types.U64, offset))
        nbytes = tensor_bytes(type_name, shape)
        offset += nbytes + padding(nbytes)
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def _scalar(kind: int, value: Any) -> bytes:
    return types.SCALARS[kind].pack(value)


def _text(value: str) -> bytes:
    data = value.encode()
    return _scalar(types.U64, len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    return _text(value) if kind == types.TEXT else _scalar(kind, value)

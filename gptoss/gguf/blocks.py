"""Blocks of 32 values as GGUF stores them, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
BLOCK = 32
Q8_0_BYTES = 34  # a float16 scale and 32 int8
MXFP4_BYTES = 17  # an e8m0 scale and 16 bytes of e2m1 pairs


def dequantize_q8_0(blocks: Bytes) -> NDArray[np.float32]:
    """uint8 [..., 34] → float32 [..., 32], exactly: 8 bits times 11 bits fit into 24."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    values = blocks[..., 2:].view(np.int8).astype(np.float32)
    values *= scales
    return values


def quantize_q8_0(values: NDArray[np.float32]) -> Bytes:
    """float32 [..., 32·n] → uint8 [..., n, 34], as ggml's reference does it.

    The scale is max |x| / 127, rounded to float16 only after the integers have been found.
    """
    blocks = np.ascontiguousarray(values, dtype=np.float32)
    blocks = blocks.reshape(*values.shape[:-1], -1, BLOCK)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
    scaled = blocks * inverse
    # roundf: halves go away from zero
    integers = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    out = np.empty((*blocks.shape[:-1], Q8_0_BYTES), dtype=np.uint8)
    out[..., :2] = scales.astype("<f2").view(np.uint8)
    out[..., 2:] = integers.astype(np.int8).view(np.uint8)
    return out


def pack_mxfp4(blocks: Bytes, scales: Bytes) -> Bytes:
    """Published blocks [..., 16] (values 2i, 2i + 1 in byte i) and scales [...] → ggml's [..., 17].

    In a byte of ggml's lie values i and i + 16.
    """
    out = np.empty((*blocks.shape[:-1], MXFP4_BYTES), dtype=np.uint8)
    out[..., 0] = scales
    low, high = blocks[..., :8], blocks[..., 8:]
    out[..., 1::2] = (low & 15) | (high << 4)
    out[..., 2::2] = (low >> 4) | (high & 0xF0)
    return out

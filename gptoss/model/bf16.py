"""bfloat16 in NumPy, which has no such type: the bits are carried as uint16 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 16  # values worked on at a time: temporaries stay in the cache
_QUIET = np.uint32(0x0040)  # the top bit of bf16's seven mantissa bits marks a quiet NaN


def bf16_to_f32(a: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bf16 bits, exactly: bf16 is the upper half of a float32. Shape is kept."""
    wide = np.asarray(a, dtype=np.uint16).astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def f32_to_bf16(a: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """float32 → bf16 bits, rounded to the nearest, ties to even.

    Infinities are kept, values beyond the largest bf16 become infinite as IEEE 754 asks, and a NaN
    stays a NaN (made quiet). Shape is kept.
    """
    bits = np.ascontiguousarray(a, dtype=np.float32).view(np.uint32)
    out = np.empty(np.shape(a), dtype=np.uint16)
    flat, flat_out = bits.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        _round_bits(flat[start : start + _CHUNK], flat_out[start : start + _CHUNK])
    return out


def _round_bits(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """out [n] = the bf16 nearest to the float32 bits [n]."""
    # half an ulp less one, plus the lowest kept bit: a tie carries only when that bit is odd
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits  # may wrap for some NaN, which are replaced below
    rounded >>= np.uint32(16)
    out[:] = rounded
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():
        out[nan] = (bits[nan] >> np.uint32(16)) | _QUIET


def round_bf16(a: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """float32 values rounded to the nearest bf16, still as float32."""
    return bf16_to_f32(f32_to_bf16(a))

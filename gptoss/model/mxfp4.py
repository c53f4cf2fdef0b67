"""MXFP4 in NumPy: 32 e2m1 values share one e8m0 scale (OCP Microscaling Formats 1.0).

A block of 32 values along the last axis is 16 bytes, the even-indexed value in the low nibble and
the odd-indexed one in the high nibble, and one scale byte s: value = e2m1 × 2^(s − 127).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss.errors import Error, shown

BLOCK = 32  # values per scale
BLOCK_BYTES = 16
SCALE_NAN = 0xFF  # e8m0's NaN: no weight of a usable model has it
_BIAS = 127
_EMAX = 2  # exponent of e2m1's largest binade: 6 = 1.5 · 2^2
_CHUNK = 1 << 19  # values worked on at a time: keeps temporaries at a few MB

# nibble → value; bit 3 is the sign, so nibble 8 is −0
VALUES: NDArray[np.float32] = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
    dtype=np.float32,
)
# byte → its (low nibble, high nibble) values, so that one gather decodes two
_PAIRS: NDArray[np.float32] = np.stack([np.tile(VALUES, 16), np.repeat(VALUES, 16)], axis=1)
# scale byte → 2^(s − 127); 2^-127 is subnormal in float32 and still exact
_SCALES: NDArray[np.float32] = np.full(256, np.nan, dtype=np.float32)
_SCALES[:SCALE_NAN] = np.ldexp(VALUES[2:3], np.arange(SCALE_NAN) - _BIAS)


def quantize(x: ArrayLike, rule: str = "mx") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """float [..., K] → (blocks uint8 [..., K/32, 16], scales uint8 [..., K/32]).

    Elements are rounded to the nearest, ties to the even mantissa, and saturate at ±6 × scale; −0
    and what rounds to it keep their sign. `rule` chooses the scale of a block:

    - "mx": 2^(floor(log2(max |x|)) − 2), the specification's (OCP MX 1.0, section 6.3);
    - "mse": whichever of that, its half and its double gives the least squared error (in a tie the
      first named). No other power of two can do better.

    A block of zeros gets scale byte 0. float16, float32 and float64 input is used as it is,
    anything else as float64. Raises Error for a K that is not a multiple of 32, for NaN and for
    infinities.
    """
    if rule not in ("mx", "mse"):
        raise Error(f"mxfp4 rule: expected 'mx' or 'mse', found {shown(rule)}")
    values: NDArray[np.floating[Any]] = np.asarray(x)
    if values.dtype not in (np.float16, np.float32, np.float64):
        values = values.astype(np.float64)
    if values.ndim == 0 or values.shape[-1] == 0 or values.shape[-1] % BLOCK:
        raise Error(
            f"mxfp4: expected a last axis that is a multiple of {BLOCK}, found shape {values.shape}"
        )
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    blocks = np.empty((*shape, BLOCK_BYTES), dtype=np.uint8)
    scales = np.empty(shape, dtype=np.uint8)
    flat, flat_blocks, flat_scales = (
        values.reshape(-1, BLOCK),
        blocks.reshape(-1, BLOCK_BYTES),
        scales.reshape(-1),
    )
    step = _CHUNK // BLOCK
    for start in range(0, len(flat), step):
        rows = slice(start, start + step)
        part = flat[rows].astype(np.float32 if flat.dtype == np.float16 else flat.dtype, copy=False)
        exponents = _exponents(part)
        codes = _round(part, exponents)
        if rule == "mse":
            exponents, codes = _least_error(part, exponents, codes)
        flat_scales[rows] = exponents + _BIAS
        flat_blocks[rows] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return blocks, scales


def dequantize(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(blocks uint8 [..., n, 16], scales uint8 [..., n]) → float32 [..., 32·n], exactly.

    Products beyond float32's range (scale bytes 253 and 254 only) become infinite. Raises Error for
    mismatched shapes or dtypes and for the scale byte 0xFF.
    """
    blocks, scales = np.asarray(blocks), np.asarray(scales)
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8:
        raise Error(
            f"mxfp4: expected uint8 blocks and scales, found {blocks.dtype} and {scales.dtype}"
        )
    if scales.ndim == 0 or blocks.shape != (*scales.shape, BLOCK_BYTES):
        raise Error(
            f"mxfp4: expected blocks of shape {(*scales.shape, BLOCK_BYTES)} for scales of shape "
            f"{scales.shape}, found {blocks.shape}"
        )
    check_scales(scales, "mxfp4 scales")
    out = np.empty((*scales.shape[:-1], scales.shape[-1] * BLOCK), dtype=np.float32)
    flat_out = out.reshape(-1, BLOCK)
    flat_blocks, flat_scales = blocks.reshape(-1, BLOCK_BYTES), scales.reshape(-1)
    step = _CHUNK // BLOCK
    for start in range(0, len(flat_out), step):
        rows = slice(start, start + step)
        pairs = flat_out[rows].reshape(-1, BLOCK_BYTES, 2)
        np.take(_PAIRS, flat_blocks[rows], axis=0, out=pairs, mode="clip")
        with np.errstate(over="ignore"):
            flat_out[rows] *= _SCALES[flat_scales[rows], None]
    return out


def check_scales(scales: NDArray[np.uint8], what: str) -> None:
    """Raise Error, naming `what` and the place, when a scale byte is 0xFF (NaN)."""
    if scales.size and int(scales.max()) == SCALE_NAN:
        place = np.unravel_index(int(scales.argmax()), scales.shape)
        raise Error(
            f"{what}: expected MXFP4 scale bytes 0..254, found 0xFF (NaN) at "
            f"{[int(i) for i in place]}"
        )


def _exponents(x: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """The specification's shared exponent of each row of x [n, 32], within −127..127: int32 [n]."""
    top = np.maximum(x.max(axis=1), -x.min(axis=1))
    if not np.isfinite(top).all():
        raise Error("mxfp4: expected finite values, found NaN or infinity")
    exponents = np.frexp(top)[1].astype(np.int32) - np.int32(1 + _EMAX)
    exponents[top == 0] = -_BIAS
    if int(exponents.max(initial=0)) > _BIAS:  # only float64 reaches this
        raise Error(f"mxfp4: expected values below 2^130, found {float(top.max()):g}")
    return np.maximum(exponents, np.int32(-_BIAS), out=exponents)


def _round(x: NDArray[np.floating[Any]], exponents: NDArray[np.int32]) -> NDArray[np.uint8]:
    """e2m1 codes uint8 [n, 32] of x [n, 32] divided by 2^exponents [n]."""
    # multiplying by a power of two is exact but for results far below e2m1's smallest step
    size = np.abs(x)
    size *= np.ldexp(np.ones(1, dtype=x.dtype), -exponents)[:, None]
    # Midpoints between neighbours; a tie goes to the code with an even mantissa, so each second
    # comparison includes equality.
    codes = (size > 0.25).view(np.uint8)
    codes += size >= 0.75
    codes += size > 1.25
    codes += size >= 1.75
    codes += size > 2.5
    codes += size >= 3.5
    codes += size > 5.0
    codes |= np.signbit(x).view(np.uint8) << np.uint8(3)
    return codes


def _least_error(
    x: NDArray[np.floating[Any]], exponents: NDArray[np.int32], codes: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Exponents and codes with the least squared error among `exponents` and their neighbours.

    Half the scale can help where few values are cut off and many small ones gain a bit; double the
    scale helps where the largest lies in (7, 8) steps and would be cut off to 6. A quarter cuts off
    more than it can gain, and four times the scale has no value that twice it lacks.
    """
    best, best_codes = exponents.copy(), codes.copy()
    least = _error(x, exponents, codes)
    for shift in (-1, 1):
        tried = np.clip(exponents + np.int32(shift), -_BIAS, _BIAS).astype(np.int32)
        tried_codes = _round(x, tried)
        error = _error(x, tried, tried_codes)
        better = (error < least) & (tried != exponents)
        best[better], best_codes[better], least[better] = (
            tried[better],
            tried_codes[better],
            error[better],
        )
    return best, best_codes


def _error(
    x: NDArray[np.floating[Any]], exponents: NDArray[np.int32], codes: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Squared error of each row: float64 [n]."""
    # float64, where squares of values near float32's limits neither overflow nor vanish
    approximate = np.ldexp(VALUES.astype(np.float64)[codes], exponents[:, None])
    difference: NDArray[np.float64] = approximate - x
    return np.einsum("ij,ij->i", difference, difference)

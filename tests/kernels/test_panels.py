"""Packing: every weight in its place, whatever the shape; q8 within half a step."""

import numpy as np
import pytest
from panels import BLOCK, block_scales, random_bf16, random_mxfp4, random_q8_0, unpack

from gptoss.errors import Error
from gptoss.model.bf16 import bf16_to_f32
from gptoss.model.mxfp4 import dequantize
from gptoss.native import _core, _kernels

SHAPES = [
    (1, 1),
    (5, 31),
    (16, 32),
    (17, 33),
    (33, 545),
    (40, 96),
    (16, 512),
    (16, 513),
    (18, 2881),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (16, 64), (17, 96), (40, 2880), (33, 544)])
def test_mxfp4(random, rows, cols, threads):
    blocks, scales = random_mxfp4(random, rows, cols, (0, 255))
    packed = _kernels.pack("mxfp4", blocks=blocks, scales=scales, threads=threads)
    found = unpack(packed)
    with np.errstate(over="ignore"):
        exact = dequantize(blocks, scales)
        assert np.array_equal(found[:rows].astype(np.float32), exact)
    assert not found[rows:].any()


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_bf16(random, rows, cols):
    w = random_bf16(random, rows, cols)
    found = unpack(_kernels.pack("bf16", weight=w, threads=2))
    assert np.array_equal(found[:rows, :cols], bf16_to_f32(w))
    assert not found[rows:].any()
    assert not found[:, cols:].any()


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_q8_errs_by_half_a_step_at_most(random, rows, cols):
    w = random_bf16(random, rows, cols)
    w[0, -1] = 0
    packed = _kernels.pack("q8", weight=w)
    found = unpack(packed)
    blocks = -(-cols // BLOCK)
    scales = block_scales(packed, packed.data[:, blocks * 512 :], blocks)
    # The quotient is rounded to float32 before it is rounded to an integer.
    half = np.repeat(scales, BLOCK, 1)[:rows, :cols] / 2 * (1 + 127 * 2.0**-23)
    assert np.all(np.abs(found[:rows, :cols] - bf16_to_f32(w)) <= half)
    assert not found[rows:].any()
    assert not found[:, cols:].any()
    # A scale is the smallest bf16 that reaches the block's largest magnitude with 127 steps.
    largest = np.zeros((rows, blocks * BLOCK))
    largest[:, :cols] = np.abs(bf16_to_f32(w))
    largest = largest.reshape(rows, blocks, BLOCK).max(2) / 127
    assert np.all((largest <= scales[:rows]) & (scales[:rows] <= largest * (1 + 2.0**-7)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (16, 64), (17, 96), (40, 2880)])
def test_q8_0_is_kept_as_it_is(random, rows, cols, threads):
    """Integers and float16 scales, subnormal ones too: the exact products."""
    blocks = random_q8_0(random, rows, cols)
    found = unpack(_kernels.pack("q8_0", blocks=blocks, threads=threads))
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float64)
    exact = (blocks[..., 2:].view(np.int8) * scales).reshape(rows, cols)
    assert np.array_equal(found[:rows], exact)
    assert not found[rows:].any()


def test_q8_keeps_what_is_no_number_visible():
    w = np.zeros((2, 64), np.uint16)
    w[0, 3], w[1, 40] = 0x7FC0, 0xFF80  # NaN, -infinity
    found = unpack(_kernels.pack("q8", weight=w))
    assert np.isnan(found[0, :32]).all()
    assert not found[0, 32:].any()
    assert np.isnan(found[1, 32:]).all()


def test_the_engines_packing_is_the_same(random):
    blocks, scales = random_mxfp4(random, 40, 96)
    w = random_bf16(random, 21, 70)
    for format, tensors in (
        ("mxfp4", {"blocks": blocks, "scales": scales}),
        ("bf16", {"weight": w}),
        ("q8", {"weight": w}),
        ("q8_0", {"blocks": random_q8_0(random, 40, 96)}),
    ):
        packed = _core.pack(format, **tensors)
        assert np.array_equal(packed, _kernels.pack(format, **tensors).data)
        rows, cols = (40, 96) if "blocks" in tensors else (21, 70)
        assert packed.shape == _core.panel_shape(format, rows, cols)
        assert packed.ctypes.data % 64 == 0


def test_formats_that_do_not_fit(random):
    with pytest.raises(Error, match="asked for 'mxfp4'"):
        _core.pack("mxfp4", weight=random_bf16(random, 16, 32))
    with pytest.raises(Error, match="asked for 'q4'"):
        _core.pack("q4", weight=random_bf16(random, 16, 32))
    blocks, scales = random_mxfp4(random, 16, 64)
    with pytest.raises(Error, match="differ in shape"):
        _core.pack("mxfp4", blocks=blocks, scales=scales[:, :1])

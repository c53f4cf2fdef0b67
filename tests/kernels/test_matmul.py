"""matmul, unpack_mxfp4 and the oneDNN product against float64.

Tolerance of a dot product of n float32 terms, in any order: n · eps · Σ|a||b| (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1); sixteen partial sums do better, so n / 8 is asked for.
"""

import numpy as np
import pytest

from gptoss import _kernels
from gptoss.dtypes import bf16_to_f32, f32_to_bf16
from gptoss.mxfp4 import dequantize

EPS = np.finfo(np.float32).eps
MXFP4_SCALES = (119, 128)  # around one: 2^-8 … 2^0


def random_bf16(random, *shape):
    """Both signs, magnitudes over six orders."""
    values = random.standard_normal(shape) * 10.0 ** random.integers(-3, 3, shape)
    return f32_to_bf16(values.astype(np.float32))


def random_mxfp4(random, rows, cols):
    blocks = random.integers(0, 256, (rows, cols // 32, 16), np.uint8)
    return blocks, random.integers(*MXFP4_SCALES, (rows, cols // 32), np.uint8)


def random_rows(random, *shape):
    values = random.standard_normal(shape) * 10.0 ** random.integers(-2, 2, shape)
    return values.astype(np.float32)


def check_product(found, x, w, bias=None):
    """found [rows, N] is x [rows, K] · w [N, K]ᵀ + bias within the bound; NaN fails."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    exact = x @ w.T + (0 if bias is None else bias)
    terms = max(8, x.shape[1]) / 8 + 4
    magnitude = np.abs(x) @ np.abs(w).T + (0 if bias is None else np.abs(bias))
    bound = terms * EPS * magnitude
    assert np.all(np.abs(found - exact) <= bound)


ROWS = [1, 2, 3, 4, 5, 31, 32, 33, 67]  # single token, partial last tiles, row blocks


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cols", [1, 16, 31, 96, 100])
def test_bf16_weights(isa, random, rows, cols):
    x, w = random_rows(random, rows, cols), random_bf16(random, 9, cols)
    bias = random_bf16(random, 9)
    found = _kernels.matmul(x, isa=isa, weight=w, bias=bias)
    check_product(found, x, bf16_to_f32(w), bf16_to_f32(bias))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cols", [32, 96])
def test_mxfp4_weights(isa, random, rows, cols):
    x = random_rows(random, rows, cols)
    blocks, scales = random_mxfp4(random, 9, cols)
    bias = random_bf16(random, 9)
    found = _kernels.matmul(x, isa=isa, blocks=blocks, scales=scales, bias=bias)
    check_product(found, x, dequantize(blocks, scales), bf16_to_f32(bias))


@pytest.mark.parametrize("packed", [False, True])
def test_inner_dimension_of_the_20b(isa, random, packed):
    x = random_rows(random, 3, 2880)
    if packed:
        blocks, scales = random_mxfp4(random, 66, 2880)
        found = _kernels.matmul(x, isa=isa, blocks=blocks, scales=scales)
        check_product(found, x, dequantize(blocks, scales))
    else:
        w = random_bf16(random, 66, 2880)
        check_product(_kernels.matmul(x, isa=isa, weight=w), x, bf16_to_f32(w))


@pytest.mark.parametrize("n", range(1, 10))
def test_partial_last_columns(isa, random, n):
    x, w = random_rows(random, 5, 48), random_bf16(random, n, 48)
    check_product(_kernels.matmul(x, isa=isa, weight=w), x, bf16_to_f32(w))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (3, 3), (1, 6), (5, 9), (0, 9)])
def test_only_its_share_is_written(isa, random, begin, end, packed):
    x, w = random_rows(random, 6, 64), random_bf16(random, 9, 64)
    weights = {"weight": w}
    if packed:
        blocks, scales = random_mxfp4(random, 9, 64)
        weights = {"blocks": blocks, "scales": scales}
    found = _kernels.matmul(x, isa=isa, begin=begin, end=end, **weights)
    whole = _kernels.matmul(x, isa=isa, **weights)
    assert np.array_equal(found[:, begin:end], whole[:, begin:end])
    assert np.isnan(found[:, :begin]).all()
    assert np.isnan(found[:, end:]).all()


@pytest.mark.parametrize("packed", [False, True])
def test_rows_do_not_depend_on_their_neighbours(isa, random, packed):
    """Bit for bit: the promise behind chunk and batch invariance."""
    x = random_rows(random, 37, 160)
    if packed:
        blocks, scales = random_mxfp4(random, 11, 160)
        weights = {"blocks": blocks, "scales": scales}
    else:
        weights = {"weight": random_bf16(random, 11, 160)}
    whole = _kernels.matmul(x, isa=isa, **weights)
    for row in range(len(x)):
        alone = _kernels.matmul(x[row : row + 1], isa=isa, **weights)
        assert np.array_equal(alone[0], whole[row])


def test_rows_by_number(isa, random):
    """An expert's tokens: any order, with repeats."""
    x, w = random_rows(random, 7, 64), random_bf16(random, 5, 64)
    ids = np.array([6, 0, 0, 3, 6, 2, 1, 5, 5], np.int32)
    found = _kernels.matmul(x, isa=isa, weight=w, row_ids=ids)
    assert np.array_equal(found, _kernels.matmul(x, isa=isa, weight=w)[ids])


@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_nan_spreads_to_what_it_touches_and_no_further(isa, random, where):
    x, w, bias = random_rows(random, 6, 40), random_bf16(random, 9, 40), random_bf16(random, 9)
    if where == "x":
        x[2, 39] = np.nan
    elif where == "weight":
        w[4, 0] = 0x7FC0
    else:
        bias[4] = 0x7FC0
    found = np.isnan(_kernels.matmul(x, isa=isa, weight=w, bias=bias))
    wanted = np.zeros((6, 9), bool)
    wanted[(2, slice(None)) if where == "x" else (slice(None), 4)] = True
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_unpacking_is_exact_for_every_nibble_and_scale(isa, packed):
    """All 16 values under all 255 scales, as bf16 and inside a product with one."""
    nibbles = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)  # every byte, 16 blocks
    for scale in range(255):
        scales = np.full((1, 16), scale, np.uint8)
        with np.errstate(over="ignore"):
            exact = dequantize(nibbles, scales)
        if packed:
            assert np.array_equal(_kernels.unpack_mxfp4(nibbles, scales, isa=isa), to_bits(exact))
        else:
            x = np.ascontiguousarray(np.eye(512, dtype=np.float32)[::37])
            found = _kernels.matmul(x, isa=isa, blocks=nibbles, scales=scales)
            # 6 · 2^127 is out of float32's range: infinity times a zero of x would be NaN.
            if np.isfinite(exact).all():
                assert np.array_equal(found[:, 0], exact[0, ::37])


def to_bits(values):
    """bf16 patterns of float32 values that are bf16 values, or overflow to infinity."""
    bits = values.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
@pytest.mark.parametrize(("n", "cols"), [(64, 32), (101, 96), (320, 224), (1000, 2880)])
def test_onednn_product(random, rows, n, cols, threads):
    x, w = random_bf16(random, rows, cols), random_bf16(random, n, cols)
    found = _kernels.gemm_onednn(x, w, threads)
    if found is None:
        pytest.skip("this CPU or build has no oneDNN bf16 product")
    check_product(found, bf16_to_f32(x), bf16_to_f32(w))

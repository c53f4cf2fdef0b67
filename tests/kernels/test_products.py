"""The three products on panels against float64, on every instruction set.

A dot product of n float32 terms in any order errs by at most n · eps · Σ|a||b| (Higham, Accuracy
and Stability of Numerical Algorithms, 3.1); partial sums do better, so n / 8 is asked for.
"""

import numpy as np
import pytest
from panels import BLOCK, FORMATS, fits, random_bf16, random_packed, unpack

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.native import _kernels

EPS = np.finfo(np.float32).eps
ROWS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 100]  # single token, partial last tiles
COUNTS = [1, 15, 16, 17, 48, 66]  # output rows: partial last panel, odd numbers of panels
# (instruction set, product), and the formats that the product takes
KERNELS = [(isa, product) for isa in _kernels.isas() for product in _kernels.products(isa)]
CASES = [
    (isa, product, format)
    for isa, product in KERNELS
    for format in FORMATS
    if not (product == "i16" and format == "bf16")
]
each_case = pytest.mark.parametrize(("isa", "product", "format"), CASES)
each_kernel = pytest.mark.parametrize(("isa", "product"), KERNELS)


def random_rows(random, *shape):
    """bf16 values, as the engine's operands are, over some orders of magnitude."""
    values = random.standard_normal(shape) * 10.0 ** random.integers(-2, 2, shape)
    return bf16_to_f32(f32_to_bf16(values.astype(np.float32)))


def multiply(product, isa, x, packed, row_ids=None, **options):
    """The product of float32 rows x."""
    if product == "f32":
        return _kernels.matmul_f32(x, packed, isa=isa, row_ids=row_ids, **options)
    if product == "i16":
        q, scale = _kernels.quantize(x, isa=isa)
        return _kernels.matmul_i16(q, scale, packed, isa=isa, row_ids=row_ids, **options)
    return _kernels.matmul_bf16(_kernels.to_tiles(x, isa=isa), len(x), packed, isa=isa, **options)


def check(product, format, found, x, w, bias=None):
    """Within the bound of the product; NaN fails."""
    x = x.astype(np.float64)
    bias = 0 if bias is None else bias.astype(np.float64)
    magnitude = np.abs(x) @ np.abs(w).T + np.abs(bias)
    bound = (max(8, x.shape[1]) / 8 + 4) * EPS * magnitude
    if product == "i16":  # operand: half a step of at most 2^-15 of the block's largest
        padded = np.zeros((len(x), -(-x.shape[1] // BLOCK) * BLOCK))
        padded[:, : x.shape[1]] = np.abs(x)
        step = padded.reshape(len(x), -1, BLOCK).max(2) * 2.0**-14
        bound += (np.repeat(step, BLOCK, 1)[:, : x.shape[1]] / 2) @ np.abs(w).T
    if product == "bf16" and format in ("q8", "q8_0"):  # weights are rounded to bf16
        bound += 2.0**-8 * magnitude
    assert np.all(np.abs(found - (x @ w.T + bias)) <= bound)


@each_case
@pytest.mark.parametrize("rows", ROWS)
def test_rows(isa, random, product, format, rows):
    x, (packed, w) = random_rows(random, rows, 96), random_packed(random, format, 66, 96)
    bias = random_bf16(random, 66)
    found = multiply(product, isa, x, packed, bias=bias)
    check(product, format, found, x, w, bf16_to_f32(bias))


@each_case
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("cols", [1, 32, 100, 2880, 3200])
def test_shapes(isa, random, product, format, count, cols):
    cols = cols if fits(format, cols) else -(-cols // BLOCK) * BLOCK
    x, (packed, w) = random_rows(random, 9, cols), random_packed(random, format, count, cols)
    bias = random_bf16(random, count)
    found = multiply(product, isa, x, packed, bias=bias)
    check(product, format, found, x, w, bf16_to_f32(bias))


@each_case
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (2, 2), (0, 1), (1, 4), (3, 5), (0, 5)])
def test_only_its_share_is_written(isa, random, product, format, begin, end):
    x, (packed, _) = random_rows(random, 6, 64), random_packed(random, format, 66, 64)
    found = multiply(product, isa, x, packed, begin=begin, end=end)
    whole = multiply(product, isa, x, packed)
    first, last = 16 * begin, min(66, 16 * end)
    assert np.array_equal(found[:, first:last], whole[:, first:last])
    assert np.isnan(found[:, :first]).all()
    assert np.isnan(found[:, last:]).all()


@each_case
def test_rows_do_not_depend_on_their_neighbours(isa, random, product, format):
    """Bit for bit: the promise behind chunk and batch invariance."""
    x, (packed, _) = random_rows(random, 37, 320), random_packed(random, format, 50, 320)
    whole = multiply(product, isa, x, packed)
    for row in range(len(x)):
        assert np.array_equal(multiply(product, isa, x[row : row + 1], packed)[0], whole[row])


@pytest.mark.parametrize(("isa", "product"), [kernel for kernel in KERNELS if "bf16" not in kernel])
def test_rows_by_number(isa, random, product):
    """An expert's tokens: any order, with repeats."""
    x, (packed, _) = random_rows(random, 7, 64), random_packed(random, "mxfp4", 18, 64)
    ids = np.array([6, 0, 0, 3, 6, 2, 1, 5, 5, 4, 1], np.int32)
    found = multiply(product, isa, x, packed, row_ids=ids)
    assert np.array_equal(found, multiply(product, isa, x, packed)[ids])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_case
def test_what_is_no_number_spoils_its_row_alone(isa, random, product, format, value):
    x, (packed, _) = random_rows(random, 9, 64), random_packed(random, format, 20, 64)
    good = multiply(product, isa, x, packed)
    x[4, 63] = value
    found = multiply(product, isa, x, packed)
    others = np.arange(9) != 4
    assert np.array_equal(found[others], good[others])
    assert not np.isfinite(found[4]).any()


@pytest.mark.parametrize("scale", [0, 1, 2, 3, 60, 127, 250, 251, 254])
@each_kernel
def test_every_code_under_scales_at_the_ends(isa, product, scale):
    """All 16 values in all places: exact, but for what is too large or too small to hold."""
    codes = np.arange(512).reshape(32, 16) % 256 * 7 % 256  # every byte, and rows without a 6
    codes[-1] = 0x3A
    blocks = codes.astype(np.uint8).reshape(32, 1, 16)
    packed = _kernels.pack("mxfp4", blocks=blocks, scales=np.full((32, 1), scale, np.uint8))
    w = unpack(packed)
    found = multiply(product, isa, np.eye(32, dtype=np.float32), packed)
    # vdpbf16ps and tiles take subnormal numbers for zero.
    tiny = 2.0**-126 if product == "bf16" else 0.0
    held = np.all(np.abs(w) < 2.0**128, axis=1)  # beyond it, infinity times the zeros of x is NaN
    assert held.any()
    assert np.all(np.abs(found[:, held] - w.T[:, held]) <= tiny)
    if not held.all():
        assert not np.isfinite(found[:, ~held][np.abs(w.T[:, ~held]) >= 2.0**128]).any()


@pytest.mark.parametrize("cols", [32, 33, 96, 1000])
def test_quantize(isa, random, cols):
    """A power of two as the scale, the smallest that fits; half a step of error."""
    x = random.standard_normal((8, cols)) * 10.0 ** random.integers(-30, 30, (8, 1))
    x = x.astype(np.float32)
    x[1] = 0
    x[2, 0] = 2.0**-149
    q, scale = _kernels.quantize(x, isa=isa)
    padded = np.zeros((8, q.shape[1]))
    padded[:, :cols] = x
    steps = np.repeat(scale.astype(np.float64), BLOCK, axis=1)
    assert np.all(np.abs(padded - q * steps) <= steps / 2)
    assert np.all(np.frexp(scale[scale > 0])[0] == 0.5)
    largest = np.abs(padded).reshape(8, -1, BLOCK).max(2)
    counted = largest > 2.0**-110
    assert np.abs(q.astype(int)).max() <= 32767
    assert np.all((largest / scale)[counted] > 16383)


def test_quantize_keeps_bf16_values_near_the_largest(isa, random):
    """Within a factor of 2^7 of the block's largest they are exact."""
    x = random.uniform(1.0, 127.0, (4, 320)) * random.choice([-1, 1], (4, 320))
    x = bf16_to_f32(f32_to_bf16(x.astype(np.float32)))
    q, scale = _kernels.quantize(x, isa=isa)
    assert np.array_equal(q * np.repeat(scale, BLOCK, axis=1), x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantize_what_is_no_number(isa, value):
    x = np.ones((1, 64), np.float32)
    x[0, 40] = value
    q, scale = _kernels.quantize(x, isa=isa)
    assert np.isnan(scale[0, 1])
    assert not q[0, 32:].any()
    assert np.all(q[0, :32] * scale[0, 0] == 1)


@pytest.mark.parametrize("cols", [1, 32, 100])
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_tiles(isa, random, rows, cols):
    x = random.standard_normal((rows, cols)).astype(np.float32)
    tiles = _kernels.to_tiles(x, isa=isa)
    flat = tiles.transpose(0, 2, 1, 3).reshape(-1, tiles.shape[1] * BLOCK)
    assert np.array_equal(flat[:rows, :cols], f32_to_bf16(x))
    assert not flat[:, cols:].any()

"""matmul_bf16 against float64, on every instruction set that has it.

Products of two bf16 values are exact in float32; what remains is the rounding of a chain of K
additions, at most K · eps · Σ|a||b| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
Roundings go both ways, so an eighth of that is asked for. The instructions take subnormal operands
for zero, and so do the references here.
"""

import numpy as np
import pytest

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.model.mxfp4 import dequantize
from gptoss.native import _kernels

EPS = np.finfo(np.float32).eps
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
FORMATS = ["bf16", "mxfp4", "q8"]
TILE = 16  # rows of an operand tile, and weight rows of a panel
BLOCK = 32


@pytest.fixture(params=[name for name in _kernels.isas() if "bf16" in _kernels.products(name)])
def isa(request):
    return request.param


def bf16_values(random, *shape):
    """float32 values that are bf16 values: both signs, magnitudes over four orders."""
    values = random.standard_normal(shape) * 10.0 ** random.integers(-2, 2, shape)
    return bf16_to_f32(f32_to_bf16(values.astype(np.float32)))


def q8_values(weight):
    """What q8 panels of bf16 weights [N, K] stand for: float32 [N, K], rounded to bf16 once."""
    n, k = weight.shape
    padded = np.zeros((n, -(-k // BLOCK) * BLOCK), np.float32)
    padded[:, :k] = bf16_to_f32(weight)
    blocks = padded.reshape(n, -1, BLOCK)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    up = (largest / np.float32(127)).astype(np.float32).view(np.uint32) + np.uint32(0xFFFF)
    scale = (up & np.uint32(0xFFFF0000)).view(np.float32)
    steps = np.rint(blocks / np.where(scale > 0, scale, 1)).clip(-127, 127)
    return bf16_to_f32(f32_to_bf16((steps * scale).reshape(n, -1)[:, :k]))


def make_weights(random, format, n, k):
    """(Packed, the float32 [N, K] that it stands for)."""
    if format == "mxfp4":
        blocks = random.integers(0, 256, (n, k // BLOCK, BLOCK // 2), np.uint8)
        scales = random.integers(119, 128, (n, k // BLOCK), np.uint8)
        return _kernels.pack(format, blocks=blocks, scales=scales), dequantize(blocks, scales)
    weight = f32_to_bf16(bf16_values(random, n, k))
    values = bf16_to_f32(weight) if format == "bf16" else q8_values(weight)
    return _kernels.pack(format, weight=weight), values


def tiles_of(x):
    """Operand tiles uint16 [ceil(rows / 16), ceil(K / 32), 16, 32] of bf16 values x [rows, K]."""
    rows, k = x.shape
    padded = np.zeros((-(-rows // TILE) * TILE, -(-k // BLOCK) * BLOCK), np.uint16)
    padded[:rows, :k] = f32_to_bf16(x)
    return np.ascontiguousarray(
        padded.reshape(-1, TILE, padded.shape[1] // BLOCK, BLOCK).swapaxes(1, 2)
    )


def product(x, packed, isa, bias=None, **share):
    return _kernels.matmul_bf16(tiles_of(x), len(x), packed, isa=isa, bias=bias, **share)


def check_product(found, x, w, bias=None):
    """found [rows, N] is x [rows, K] · w [N, K]ᵀ + bias within the bound; NaN fails."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    bias = 0 if bias is None else bf16_to_f32(bias).astype(np.float64)
    magnitude = np.abs(x) @ np.abs(w).T + np.abs(bias)
    bound = (x.shape[1] / 8 + 4) * EPS * magnitude
    assert np.all(np.abs(found - (x @ w.T + bias)) <= bound)


COLUMNS = [1, 32, 96, 100]  # partial_last_pair, partial_last_block; MXFP4 has whole blocks only
SHAPES = [(f, k) for f in FORMATS for k in COLUMNS if f != "mxfp4" or k % BLOCK == 0]


@pytest.mark.parametrize(("format", "k"), SHAPES)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 64, 100])  # partial_last_tile
def test_rows(isa, random, format, rows, k):
    x, (packed, w) = bf16_values(random, rows, k), make_weights(random, format, 48, k)
    bias = f32_to_bf16(bf16_values(random, 48))
    check_product(product(x, packed, isa, bias), x, w, bias)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 48, 64, 66, 81])  # partial_last_panel
@pytest.mark.parametrize("with_bias", [False, True])
def test_columns(isa, random, format, n, with_bias):
    x, (packed, w) = bf16_values(random, 21, 64), make_weights(random, format, n, 64)
    bias = f32_to_bf16(bf16_values(random, n)) if with_bias else None
    check_product(product(x, packed, isa, bias), x, w, bias)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [5, 33])
def test_inner_dimension_of_the_20b(isa, random, format, rows):
    """More columns than are decoded at a time."""
    x, (packed, w) = bf16_values(random, rows, 2880), make_weights(random, format, 50, 2880)
    bias = f32_to_bf16(bf16_values(random, 50))
    check_product(product(x, packed, isa, bias), x, w, bias)


@pytest.mark.parametrize("format", FORMATS)
def test_an_operand_beyond_the_cache(isa, random, format):
    """More rows, and more bytes of them, than are gone through at a time."""
    x, (packed, w) = bf16_values(random, 530, 800), make_weights(random, format, 40, 800)
    bias = f32_to_bf16(bf16_values(random, 40))
    whole = product(x, packed, isa, bias)
    check_product(whole, x, w, bias)
    for first, last in [(0, 3), (500, 530)]:
        assert np.array_equal(product(x[first:last], packed, isa, bias), whole[first:last])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (3, 3), (1, 2), (1, 5), (2, 7), (0, 7)])
def test_only_its_share_is_written(isa, random, format, begin, end):
    """Panels begin..end, to the bit as in the whole product; the rest stays as it was."""
    x, (packed, _) = bf16_values(random, 19, 352), make_weights(random, format, 7 * TILE - 5, 352)
    found = product(x, packed, isa, begin=begin, end=end)
    whole = product(x, packed, isa)
    columns = slice(begin * TILE, end * TILE)
    assert not np.isnan(whole).any()
    assert np.array_equal(found[:, columns], whole[:, columns])
    found[:, columns] = np.nan
    assert np.isnan(found).all()


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_their_neighbours(isa, random, format):
    """Bit for bit: the promise behind chunk and batch invariance."""
    x, (packed, _) = bf16_values(random, 67, 352), make_weights(random, format, 40, 352)
    bias = f32_to_bf16(bf16_values(random, 40))
    whole = product(x, packed, isa, bias)
    for first, last in [(0, 1), (66, 67), (3, 20), (16, 49), (1, 67)]:
        part = product(x[first:last], packed, isa, bias)
        assert np.array_equal(part, whole[first:last])


def flushed(values):
    """Subnormal numbers as the instructions take them: zero."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.float32(0), values)


def each_column(packed, isa):
    """The weights [N, K] as products with rows of the identity, 64 at a time: exact."""
    eye = np.eye(packed.cols, dtype=np.float32)
    parts = [product(eye[k : k + 64], packed, isa) for k in range(0, packed.cols, 64)]
    return np.concatenate(parts).T


@pytest.mark.parametrize("scale", [0, 1, 2, 3, 4, 126, 127, 128, 249, 250, 251, 252])
def test_every_mxfp4_code_under_extreme_scales(isa, random, scale):
    """Each code in each place of a block; on either side of where exponents are just added."""
    blocks = random.integers(0, 256, (17, 5, BLOCK // 2), np.uint8)
    blocks[:16, 0] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scales = np.full((17, 5), scale, np.uint8)
    found = each_column(_kernels.pack("mxfp4", blocks=blocks, scales=scales), isa)
    assert np.array_equal(found, flushed(dequantize(blocks, scales)))


def test_mxfp4_scales_of_each_row_and_block(isa, random):
    """Neighbours with scales of both kinds, those that are added and those that are multiplied."""
    blocks = random.integers(0, 256, (33, 12, BLOCK // 2), np.uint8)
    scales = random.choice(np.array([0, 1, 2, 3, 100, 127, 200, 250, 251, 252], np.uint8), (33, 12))
    scales[:TILE, 5] = random.integers(3, 251, TILE)  # a block of a panel with only the first kind
    found = each_column(_kernels.pack("mxfp4", blocks=blocks, scales=scales), isa)
    assert np.array_equal(found, flushed(dequantize(blocks, scales)))


@pytest.mark.parametrize("scale", [253, 254])
def test_mxfp4_values_beyond_float32_are_infinite(isa, scale):
    """6 · 2^126 is; with an operand of ones in one column, infinity or the weight itself."""
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 1, 16)
    scales = np.full((16, 1), scale, np.uint8)
    packed = _kernels.pack("mxfp4", blocks=blocks, scales=scales)
    with np.errstate(over="ignore"):
        w = dequantize(blocks, scales)
    assert np.isinf(w).any()
    for k in range(BLOCK):
        found = product(np.eye(1, BLOCK, k, dtype=np.float32), packed, isa)[0]
        others_finite = np.isfinite(np.delete(w, k, axis=1)).all(axis=1)  # else infinity · 0 = NaN
        assert np.array_equal(np.isnan(found), ~others_finite)
        assert np.array_equal(found[others_finite], w[others_finite, k])


def test_every_q8_step(isa, random):
    """Each int8 of each row is its scale times the step, rounded to bf16 once."""
    weight = f32_to_bf16(np.arange(-128, 128, dtype=np.float32).reshape(8, BLOCK).repeat(3, axis=0))
    weight = np.concatenate([weight, f32_to_bf16(bf16_values(random, 5, BLOCK))])
    found = each_column(_kernels.pack("q8", weight=weight), isa)
    assert np.array_equal(found, q8_values(weight))


@pytest.mark.parametrize("format", ["bf16", "q8"])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_nan_spreads_to_what_it_touches_and_no_further(isa, random, format, where):
    x, weight = bf16_values(random, 37, 96), f32_to_bf16(bf16_values(random, 40, 96))
    bias = f32_to_bf16(bf16_values(random, 40))
    if where == "x":
        x[18, 95] = np.nan
    elif where == "weight":
        weight[34, 0] = 0x7FC0
    else:
        bias[34] = 0x7FC0
    found = np.isnan(product(x, _kernels.pack(format, weight=weight), isa, bias))
    wanted = np.zeros((37, 40), bool)
    wanted[(18, slice(None)) if where == "x" else (slice(None), 34)] = True
    assert np.array_equal(found, wanted)


def test_subnormal_operands_are_zero(isa):
    """On either side of the product; a documented difference from matmul_f32."""
    tiny, huge = np.float32(2.0**-127), np.float32(2.0**100)
    one = _kernels.pack("bf16", weight=f32_to_bf16(np.array([[tiny, huge]], np.float32)))
    found = product(np.array([[huge, 0], [0, tiny], [0, 1]], np.float32), one, isa)
    assert np.array_equal(found[:, 0], np.array([0, 0, huge], np.float32))


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("k", [32, 45, 100])
def test_tiles_of_rows(random, rows, k):
    """to_tiles rounds to bf16 and lays rows out as the product reads them, zeros around."""
    x = random.standard_normal((rows, k)).astype(np.float32)
    for name in _kernels.isas():
        assert np.array_equal(_kernels.to_tiles(x, isa=name), tiles_of(x))

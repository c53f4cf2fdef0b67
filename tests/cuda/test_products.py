"""Bounds come from arithmetic: a float32 sum of n products differs from the exact one by at most
about n · 2^-24 of the sum of their magnitudes (Higham 2002, section 4.2), a result in bf16 by
2^-8."""

import numpy as np
import pytest
from cuda_calls import bf16, experts, f64, gemm, group, halves, pack

from gptoss import Error
from gptoss.model import mxfp4
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16

SHAPES = [
    (1, 1, 8),
    (1, 64, 32),
    (2, 63, 40),
    (7, 130, 96),
    (9, 17, 2880),
    (15, 65, 64),
    (16, 128, 72),
    (17, 100, 104),
    (64, 64, 128),
    (65, 129, 48),
    (130, 200, 88),
]
KERNELS = ["gemv_bf16", "gemm_bf16", "gemm_hopper"]
EXPERT_KERNELS = ["experts_few", "experts_tiles", "experts_hopper"]


def on_this(cuda, kernel):
    """Hopper's kernels run on Hopper."""
    if kernel.endswith("_hopper") and cuda.library:
        try:
            gemm(cuda, "gemm_hopper", halves(1, 8), halves(1, 8))
        except Error as error:
            pytest.skip(str(error))


def operands(random, m, n, k):
    return bf16(random.normal(size=(m, k))), bf16(random.normal(size=(n, k)))


def exact_product(x, w, bias=None):
    """In float64, and the largest error that float32 sums may have."""
    x, w = f64(x), f64(w)
    y, magnitude = x @ w.T, np.abs(x) @ np.abs(w).T
    if bias is not None:
        y, magnitude = y + bf16_to_f32(bias), magnitude + np.abs(bf16_to_f32(bias))
    return y, (x.shape[1] + 2) * 2.0**-24 * magnitude + 1e-30


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(cuda, random, kernel, shape):
    on_this(cuda, kernel)
    if kernel == "gemv_bf16" and shape[0] > 16:
        shape = (shape[0] % 16 + 1, *shape[1:])
    x, w = operands(random, *shape)
    exact, bound = exact_product(x, w)
    assert np.all(np.abs(gemm(cuda, kernel, x, w) - exact) <= bound)


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
@pytest.mark.parametrize("shape", [(150, 600, 64), (300, 200, 136), (3, 700, 64)], ids=str)
def test_product_on_other_gpus(cuda, random, shape, multiprocessors):
    """Other tiles, and several of them per block."""
    kernel = "gemm_hopper" if shape[0] > 16 else "gemv_bf16"
    on_this(cuda, kernel)
    x, w = operands(random, *shape)
    exact, bound = exact_product(x, w)
    found = gemm(cuda, kernel, x, w, multiprocessors=multiprocessors)
    assert np.all(np.abs(found - exact) <= bound)


@pytest.mark.parametrize("kernel", KERNELS)
def test_product_with_bias_added_to_what_is_there(cuda, random, kernel):
    on_this(cuda, kernel)
    x, w = operands(random, 13, 70, 48)
    bias = bf16(random.normal(size=70))
    before = random.normal(size=(13, 70)).astype(np.float32)
    exact, bound = exact_product(x, w, bias)
    assert np.all(np.abs(gemm(cuda, kernel, x, w, bias) - exact) <= bound)
    found = gemm(cuda, kernel, x, w, bias, add_to=before)
    assert np.all(np.abs(found - (exact + before)) <= bound + 2.0**-22 * np.abs(before))


@pytest.mark.parametrize("kernel", KERNELS)
def test_product_of_strange_numbers(cuda, random, kernel):
    on_this(cuda, kernel)
    x, w = operands(random, 5, 40, 64)
    x[1, 3], x[2, 7], w[5, 0] = 0x7F80, 0x7FC0, 0xFF80  # infinity, NaN, -infinity
    with np.errstate(invalid="ignore"):
        exact, bound = exact_product(x, w)
    found = gemm(cuda, kernel, x, w)
    whole = np.isfinite(exact)
    assert np.array_equal(np.isfinite(found), whole)
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    assert np.all(np.abs(found[whole] - exact[whole]) <= bound[whole])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_does_not_depend_on_its_company(cuda, random, kernel):
    on_this(cuda, kernel)
    x, w = operands(random, 12, 70, 200)
    together = gemm(cuda, kernel, x, w)
    for row in (0, 7, 11):
        alone = gemm(cuda, kernel, np.ascontiguousarray(x[row : row + 1]), w)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("kernel", KERNELS)
def test_shapes_that_no_kernel_takes_are_named(cuda, kernel):
    on_this(cuda, kernel)
    with pytest.raises(Error, match=r"multiples of 8.*\[2, 12\].*\[3, 12\]"):
        gemm(cuda, kernel, np.zeros((2, 12), np.uint16), np.zeros((3, 12), np.uint16))
    if kernel == "gemv_bf16":
        with pytest.raises(Error, match="1 to 16 rows"):
            gemm(cuda, kernel, np.zeros((17, 16), np.uint16), np.zeros((3, 16), np.uint16))


def test_what_a_gpu_lacks_is_named(cuda, random):
    if cuda.library:
        pytest.skip("a GPU is what it is")
    x, w = operands(random, 16, 20, 4096)
    with pytest.raises(Error, match="shared memory"):
        gemm(cuda, "gemv_bf16", x, w, shared_bytes=99 << 10)
    with pytest.raises(Error, match="compute capability 9, found 8"):
        gemm(cuda, "gemm_hopper", x, w, major=8)


def weights(random, count, n, k, low=118, high=128):
    blocks = random.integers(0, 256, (count, n, k // 32, 16), np.uint8)
    scales = random.integers(low, high, (count, n, k // 32), np.uint8)
    return blocks, scales


def as_f64(blocks, scales):
    """As the published model unpacks: in bf16."""
    with np.errstate(over="ignore"):
        values = bf16_to_f32(f32_to_bf16(mxfp4.dequantize(blocks, scales)))
    return values.reshape(*scales.shape[:2], -1).astype(np.float64)


@pytest.mark.parametrize("kernel", EXPERT_KERNELS)
@pytest.mark.parametrize("columns", [32, 64, 96])
def test_every_weight_of_an_expert_is_exact(cuda, random, kernel, columns):
    """Rows of the identity bring out the columns of the matrix."""
    on_this(cuda, kernel)
    blocks, scales = weights(random, 2, 48, columns, 1, 254)
    # What must not happen: sums with others' zeros make −0 into 0, and infinity · 0 is NaN.
    wanted = as_f64(blocks, scales)
    scales[~np.isfinite(wanted).reshape(*scales.shape, 32).all(-1)] = 200
    wanted = as_f64(blocks, scales)
    ids = np.repeat(np.arange(2, dtype=np.int32), columns)
    x = bf16(np.tile(np.eye(columns), (2, 1)))
    packed = pack(cuda, blocks, scales, False)
    bias = np.zeros((2, 48), np.uint16)
    grouped = group(cuda, ids, 2)
    found = experts(cuda, kernel, x, packed, bias, grouped, 1, paired=False)
    assert np.array_equal(found.reshape(2, columns, 48).transpose(0, 2, 1), wanted)


def assignments(random):
    """Experts of pairs: at random, all to one, none to some, one alone."""
    return [
        random.integers(0, 5, 40),
        np.full(37, 3),
        random.choice([0, 4], 19),
        np.array([2]),
        np.repeat(np.arange(5), 70),
    ]


@pytest.mark.parametrize("kernel", EXPERT_KERNELS)
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("paired", [False, True])
def test_experts(cuda, random, kernel, which, paired):
    on_this(cuda, kernel)
    n, k, a_row = (80, 96, 1) if which % 2 else (144, 160, 1)
    ids = np.ascontiguousarray(assignments(random)[which], np.int32)
    blocks, scales = weights(random, 5, n, k)
    bias = bf16(random.normal(size=(5, n)))
    x = bf16(random.normal(size=(len(ids), k)))
    packed = pack(cuda, blocks, scales, paired)
    grouped = group(cuda, ids, 5)
    found = experts(cuda, kernel, x, packed, bias, grouped, a_row, paired=paired)
    w, xs = as_f64(blocks, scales), f64(x)
    for row, pair in enumerate(grouped[2]):
        expert = ids[pair]
        exact = w[expert] @ xs[pair] + f64(bias[expert])
        bound = (k + 2) * 2.0**-24 * (np.abs(w[expert]) @ np.abs(xs[pair])) + 1e-6
        if paired:
            glu, linear = np.minimum(exact[::2], 7.0), np.clip(exact[1::2], -7.0, 7.0)
            exact = glu / (1 + np.exp(-1.702 * glu)) * (linear + 1)
            error = bf16_to_f32(found[row]) - exact
            assert np.all(np.abs(error) <= 2.0**-8 * np.abs(exact) + 20 * bound.max())
        else:
            assert np.all(np.abs(found[row] - exact) <= bound)


@pytest.mark.parametrize("kernel", EXPERT_KERNELS)
def test_several_pairs_of_a_row(cuda, random, kernel):
    """Each row of x went to three experts."""
    on_this(cuda, kernel)
    ids = np.array([random.permutation(4)[:3] for _ in range(11)], np.int32)
    blocks, scales = weights(random, 4, 32, 64)
    x = bf16(random.normal(size=(11, 64)))
    packed = pack(cuda, blocks, scales, False)
    grouped = group(cuda, ids.reshape(-1), 4)
    bias = np.zeros((4, 32), np.uint16)
    found = experts(cuda, kernel, x, packed, bias, grouped, 3, paired=False)
    w = as_f64(blocks, scales)
    for row, pair in enumerate(grouped[2]):
        token, expert = pair // 3, ids.reshape(-1)[pair]
        exact = w[expert] @ f64(x[token])
        magnitude = np.abs(w[expert]) @ np.abs(f64(x[token]))
        assert np.all(np.abs(found[row] - exact) <= 66 * 2.0**-24 * magnitude)


@pytest.mark.parametrize(
    ("pairs", "count", "first"), [(1, 1, 0), (70, 6, 0), (70, 4, 3), (9, 256, 0)]
)
def test_grouping(cuda, random, pairs, count, first):
    ids = random.integers(0, count + 2 * first, pairs).astype(np.int32)
    start, active, pair_of_row, row_of_pair = group(cuda, ids, count, first)
    local = ids - first
    order = np.argsort(local, kind="stable")
    order = order[(local[order] >= 0) & (local[order] < count)]
    counts = np.bincount(local[order], minlength=count)
    assert np.array_equal(start, np.concatenate([[0], np.cumsum(counts)]))
    assert np.array_equal(pair_of_row[: len(order)], order)
    wanted = np.full(pairs, -1)
    wanted[order] = np.arange(len(order))
    assert np.array_equal(row_of_pair, wanted)
    present = np.flatnonzero(counts)
    assert active[0] == len(present) and np.array_equal(active[1 : 1 + len(present)], present)


def test_unpacking_is_exact_for_every_code_and_scale(cuda):
    codes = np.arange(256, dtype=np.uint8)  # every byte: every pair of codes
    blocks = np.tile(codes.reshape(16, 16), (255, 1))
    scales = np.repeat(np.arange(255, dtype=np.uint8), 16)
    out = halves(len(blocks), 32)
    cuda("unpack_mxfp4", [(blocks, "in"), (scales, "in"), (out, "out")], [len(blocks)])
    found = bf16_to_f32(out)
    low, high = mxfp4.VALUES[blocks & 15], mxfp4.VALUES[blocks >> 4]
    exact = np.stack([low, high], -1).reshape(-1, 32) * 2.0 ** (scales[:, None] - 127.0)
    with np.errstate(over="ignore"):
        wanted = bf16_to_f32(f32_to_bf16(exact.astype(np.float32)))
    assert np.array_equal(found, wanted)
    inside = (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 2.0**128)
    assert np.array_equal(found[inside], exact[inside])  # no rounding at all


@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_unpacking_any_number_of_blocks(cuda, random, count):
    blocks = random.integers(0, 256, (count, 16), np.uint8)
    scales = random.integers(100, 140, count, np.uint8)
    out = halves(count, 32)
    cuda("unpack_mxfp4", [(blocks, "in"), (scales, "in"), (out, "out")], [count])
    assert np.array_equal(bf16_to_f32(out), mxfp4.dequantize(blocks, scales).reshape(-1, 32))


def test_a_library_that_is_not_there_is_named(cuda):
    from gptoss.native import _kernels

    with pytest.raises(Error, match=r"nowhere\.so"):
        _kernels.cuda("embed", [], [], library="/nowhere.so")


def test_calls_that_make_no_sense_are_named(cuda):
    with pytest.raises(Error, match="no CUDA kernel is called nothing"):
        cuda("nothing", [], [])
    with pytest.raises(Error, match="array 0 has 2 bytes, expected 16"):
        cuda("gemm_bf16", [(halves(1), "in")] * 4, [1, 1, 8, 0])

"""Bounds come from arithmetic: a float32 sum of n products differs from the exact one by at most
about n · 2^-24 of the sum of their magnitudes (Higham 2002, section 4.2), a result in bf16 by
2^-8."""

import numpy as np
import pytest

from gptoss import Error, _kernels, mxfp4, reference
from gptoss.dtypes import bf16_to_f32, f32_to_bf16

SHAPES = [
    (1, 1, 8),
    (1, 64, 32),
    (2, 63, 40),
    (3, 130, 96),
    (4, 17, 2880),
    (15, 65, 64),
    (16, 128, 72),
    (17, 100, 104),
    (64, 64, 128),
    (65, 129, 48),
    (130, 200, 88),
]


def operands(random, m, n, k):
    x, w = random.normal(size=(m, k)), random.normal(size=(n, k))
    return f32_to_bf16(x.astype(np.float32)), f32_to_bf16(w.astype(np.float32))


def exact_product(x, w, bias=None):
    """In float64, and the largest error that float32 sums may have."""
    x, w = bf16_to_f32(x).astype(np.float64), bf16_to_f32(w).astype(np.float64)
    y, magnitude = x @ w.T, np.abs(x) @ np.abs(w).T
    if bias is not None:
        y, magnitude = y + bf16_to_f32(bias), magnitude + np.abs(bf16_to_f32(bias))
    return y, (x.shape[1] + 2) * 2.0**-24 * magnitude + 1e-30


def few_rows_too(m):
    return [False, True] if m <= 4 else [False]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(library, random, shape):
    x, w = operands(random, *shape)
    exact, bound = exact_product(x, w)
    for few_rows in few_rows_too(shape[0]):
        found = _kernels.cuda_gemm(x, w, library=library, few_rows=few_rows)
        assert np.all(np.abs(found - exact) <= bound)


@pytest.mark.parametrize("shape", [(3, 70, 48), (20, 70, 48)], ids=str)
def test_product_with_bias_added_to_what_is_there(library, random, shape):
    x, w = operands(random, *shape)
    bias = f32_to_bf16(random.normal(size=shape[1]).astype(np.float32))
    before = random.normal(size=shape[:2]).astype(np.float32)
    exact, bound = exact_product(x, w, bias)
    for few_rows in few_rows_too(shape[0]):
        options = {"library": library, "few_rows": few_rows, "bias": bias}
        found = _kernels.cuda_gemm(x, w, **options)
        assert np.all(np.abs(found - exact) <= bound)
        found = _kernels.cuda_gemm(x, w, add_to=before, **options)
        assert np.all(np.abs(found - (exact + before)) <= bound + 2.0**-22 * np.abs(before))


def test_product_of_strange_numbers(library, random):
    x, w = operands(random, 5, 40, 64)
    x[1, 3], x[2, 7], w[5, 0] = 0x7F80, 0x7FC0, 0xFF80  # infinity, NaN, -infinity
    with np.errstate(invalid="ignore"):
        exact, bound = exact_product(x, w)
    found = _kernels.cuda_gemm(x, w, library=library)
    whole = np.isfinite(exact)
    assert np.array_equal(np.isfinite(found), whole)
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    assert np.all(np.abs(found[whole] - exact[whole]) <= bound[whole])


def test_a_row_does_not_depend_on_its_company(library, random):
    x, w = operands(random, 12, 70, 200)
    together = _kernels.cuda_gemm(x, w, library=library)
    for row in (0, 7, 11):
        alone = _kernels.cuda_gemm(x[row : row + 1], w, library=library)
        assert np.array_equal(alone[0], together[row])


@pytest.mark.parametrize("few_rows", [False, True])
def test_shapes_that_no_kernel_takes_are_named(library, few_rows):
    x, w = np.zeros((2, 12), np.uint16), np.zeros((3, 12), np.uint16)
    with pytest.raises(Error, match=r"multiples of 8.*\[2, 12\].*\[3, 12\]"):
        _kernels.cuda_gemm(x, w, library=library, few_rows=few_rows)
    if few_rows:
        x, w = np.zeros((5, 16), np.uint16), np.zeros((3, 16), np.uint16)
        with pytest.raises(Error, match="1 to 4 rows"):
            _kernels.cuda_gemm(x, w, library=library, few_rows=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (3, 257), (2, 2880)], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_rms_norm(library, random, shape, size):
    x = (size * random.normal(size=shape)).astype(np.float32)
    scale = f32_to_bf16((1 + 0.1 * random.normal(size=shape[1])).astype(np.float32))
    exact = reference.rms_norm(x.astype(np.float64), bf16_to_f32(scale).astype(np.float64), 1e-5)
    found = bf16_to_f32(_kernels.cuda_rms_norm(x, scale, 1e-5, library=library))
    assert np.all(np.abs(found - exact) <= (2.0**-8 + 2.0**-16) * np.abs(exact) + 1e-38)


def test_unpacking_is_exact_for_every_code_and_scale(library):
    codes = np.arange(256, dtype=np.uint8)  # every byte: every pair of codes
    blocks = np.tile(codes.reshape(16, 16), (255, 1))
    scales = np.repeat(np.arange(255, dtype=np.uint8), 16)
    found = bf16_to_f32(_kernels.cuda_unpack_mxfp4(blocks, scales, library=library))
    low, high = mxfp4.VALUES[blocks & 15], mxfp4.VALUES[blocks >> 4]
    exact = np.stack([low, high], -1).reshape(-1, 32) * 2.0 ** (scales[:, None] - 127.0)
    with np.errstate(over="ignore"):
        wanted = bf16_to_f32(f32_to_bf16(exact.astype(np.float32)))
    assert np.array_equal(found, wanted)
    inside = (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 2.0**128)
    assert np.array_equal(found[inside], exact[inside])  # no rounding at all


@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_unpacking_any_number_of_blocks(library, random, count):
    blocks = random.integers(0, 256, (count, 16), np.uint8)
    scales = random.integers(100, 140, count, np.uint8)
    found = bf16_to_f32(_kernels.cuda_unpack_mxfp4(blocks, scales, library=library))
    assert np.array_equal(found, mxfp4.dequantize(blocks, scales).reshape(-1, 32))


@pytest.mark.parametrize(
    ("rows", "experts", "chosen"),
    [(1, 1, 1), (1, 32, 4), (5, 8, 4), (3, 33, 2), (6, 128, 4), (2, 256, 8)],
)
def test_routing(library, random, rows, experts, chosen):
    logits = random.normal(size=(rows, experts)).astype(np.float32)
    ids, weights = _kernels.cuda_route(logits, chosen, library=library)
    wanted, shares = reference.router_topk(logits.astype(np.float64), chosen)
    assert np.array_equal(ids, wanted)
    assert np.all(np.abs(weights - shares) <= 8 * 2.0**-23)


def test_equal_logits_go_to_the_lowest_expert(library):
    logits = np.zeros((2, 40), np.float32)
    logits[1, [5, 37]] = 3
    ids, weights = _kernels.cuda_route(logits, 4, library=library)
    assert ids.tolist() == [[0, 1, 2, 3], [5, 37, 0, 1]]
    assert np.allclose(weights[0], 0.25)


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(Error, match="nowhere.so"):
        _kernels.cuda_route(np.zeros((1, 4), np.float32), 2, library="/nowhere.so")

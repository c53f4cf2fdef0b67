from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss.errors import Error
from gptoss.model import mxfp4

# the table of the OCP specification, nibble 0..15
TABLE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
TABLE += [-value for value in TABLE]


def block(values: list[float]) -> np.ndarray:
    return np.array(values + [0.0] * (32 - len(values)), dtype=np.float32)


def nearest_error(x: np.ndarray, scale: float) -> np.ndarray:
    """Squared distances of x [n] to the nearest representable values, by trying all of them."""
    table = np.array(TABLE) * scale
    return ((x[:, None].astype(np.float64) - table) ** 2).min(axis=1)


def test_every_nibble_with_every_scale() -> None:
    nibbles = np.arange(16, dtype=np.uint8)
    packed = nibbles[0::2] | (nibbles[1::2] << 4)  # even index in the low nibble
    for scale in range(255):
        blocks = np.concatenate([packed, packed])[None]
        found = mxfp4.dequantize(blocks, np.array([scale], dtype=np.uint8))
        with np.errstate(over="ignore"):
            expected = np.ldexp(np.array(TABLE * 2), scale - 127).astype(np.float32)
        assert np.array_equal(found, expected)
        assert np.array_equal(np.signbit(found), np.signbit(expected))


def test_low_nibble_is_the_even_index() -> None:
    blocks = np.zeros((1, 16), dtype=np.uint8)
    blocks[0, 3] = 0x72
    found = mxfp4.dequantize(blocks, np.array([127], dtype=np.uint8))
    assert found[6] == 1.0
    assert found[7] == 6.0


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (0.25, 0), (0.2500001, 1), (0.75, 2), (0.7499999, 1), (1.25, 2), (1.2500001, 3),
        (1.75, 4), (1.7499999, 3), (2.5, 4), (2.5000002, 5), (3.5, 6), (3.4999998, 5),
        (5.0, 6), (5.0000005, 7), (6.0, 7), (7.0, 7), (7.9999995, 7), (0.0, 0),
    ],
)  # fmt: skip
def test_midpoints_round_to_even_and_the_top_saturates(x: float, code: int) -> None:
    # 4 in the last place fixes the scale at 1
    values = block([x, -x])
    values[31] = 4.0
    blocks, scales = mxfp4.quantize(values)
    assert scales.tolist() == [127]
    assert blocks[0, 0] & 15 == code
    assert blocks[0, 0] >> 4 == code + 8  # the sign is kept, also of what becomes zero


def test_scale_by_the_specification() -> None:
    for exponent in (-124, -100, -1, 0, 1, 77, 124):
        for factor, shift in ((4.0, 0), (5.9, 0), (7.99, 0), (8.0, 1), (3.99, -1)):
            x = block([factor * 2.0**exponent])
            assert mxfp4.quantize(x)[1].tolist() == [127 + exponent + shift]


def test_zeros_and_the_smallest_values() -> None:
    blocks, scales = mxfp4.quantize(block([0.0, -0.0]))
    assert scales.tolist() == [0]
    assert blocks[0].tolist() == [0x80] + [0] * 15
    subnormal = np.float32(2.0**-149)
    blocks, scales = mxfp4.quantize(block([subnormal]))
    assert scales.tolist() == [0]  # the smallest scale, 2^-127, cannot be undercut
    assert not blocks.any()
    x = block([2.0**-127, 1.5 * 2.0**-126, -(2.0**-128)])
    blocks, scales = mxfp4.quantize(x)
    assert scales.tolist() == [0]
    assert np.array_equal(mxfp4.dequantize(blocks, scales), x)


def test_the_largest_values() -> None:
    x = block([float(np.finfo(np.float32).max), 2.0**127])
    blocks, scales = mxfp4.quantize(x)
    assert scales.tolist() == [252]
    assert mxfp4.dequantize(blocks, scales)[:2].tolist() == [6 * 2.0**125, 4 * 2.0**125]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 95])
def test_nan_and_infinity_are_refused(bad: float, place: int) -> None:
    x = np.ones((3, 32), dtype=np.float32)
    x.reshape(-1)[place] = bad
    for rule in ("mx", "mse"):
        with pytest.raises(Error, match="NaN or infinity"):
            mxfp4.quantize(x, rule)


@pytest.mark.parametrize("shape", [(), (0,), (31,), (32, 33), (4, 0)])
def test_bad_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Error, match="multiple of 32"):
        mxfp4.quantize(np.zeros(shape, dtype=np.float32))


def test_bad_arguments_are_refused() -> None:
    ok = np.zeros((2, 16), dtype=np.uint8), np.zeros(2, dtype=np.uint8)
    with pytest.raises(Error, match="rule: expected 'mx' or 'mse', found 'best'"):
        mxfp4.quantize(np.zeros(32), "best")
    with pytest.raises(Error, match="uint8"):
        mxfp4.dequantize(ok[0].astype(np.int8), ok[1])  # type: ignore[arg-type]
    with pytest.raises(Error, match="shape"):
        mxfp4.dequantize(ok[0][:, :8], ok[1])
    with pytest.raises(Error, match=r"0xFF \(NaN\) at \[1\]"):
        mxfp4.dequantize(ok[0], np.array([0, 255], dtype=np.uint8))
    with pytest.raises(Error, match="below 2\\^130"):
        mxfp4.quantize(np.full(32, 1e200))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_shapes_dtypes_and_chunks(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 96)).astype(dtype)
    blocks, scales = mxfp4.quantize(x)
    assert blocks.shape == (3, 5, 3, 16)
    assert scales.shape == (3, 5, 3)
    monkeypatch.setattr(mxfp4, "_CHUNK", 64)  # pieces that do not divide the whole
    assert np.array_equal(mxfp4.quantize(x)[0], blocks)
    assert mxfp4.dequantize(blocks, scales).shape == x.shape
    # rows are independent of each other and of strides
    assert np.array_equal(mxfp4.quantize(x[::-1, ::2])[0], blocks[::-1, ::2])


def test_float64_is_not_rounded_to_float32_first() -> None:
    x = block([0.25]).astype(np.float64)
    x[0] += 2.0**-40
    x[31] = 4.0
    assert mxfp4.quantize(x)[0][0, 0] & 15 == 1


finite_blocks = hnp.arrays(
    np.float32,
    (4, 32),
    elements=st.one_of(
        st.floats(-8, 8, width=32),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.sampled_from([0.0, -0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 2.0**-149]),
    ),
)


@given(finite_blocks)
@settings(max_examples=150, deadline=None)
def test_every_element_is_the_nearest(x: np.ndarray) -> None:
    for rule in ("mx", "mse"):
        blocks, scales = mxfp4.quantize(x, rule)
        found = np.ldexp(_codes(blocks), scales.astype(int) - 127)
        for row in range(len(x)):
            expected = nearest_error(x[row], 2.0 ** (int(scales[row, 0]) - 127))
            assert np.array_equal((found[row] - x[row].astype(np.float64)) ** 2, expected)
        assert np.array_equal(np.signbit(found), np.signbit(x))


@given(finite_blocks)
@settings(max_examples=60, deadline=None)
def test_mse_rule_is_the_best_of_all_scales(x: np.ndarray) -> None:
    _, scales = mxfp4.quantize(x, "mse")
    for row in range(len(x)):
        errors = [nearest_error(x[row], 2.0**e).sum() for e in range(-127, 128)]
        assert errors[int(scales[row, 0])] <= min(errors) * (1 + 1e-12)


@given(
    hnp.arrays(np.uint8, (3, 2, 16)),
    hnp.arrays(np.uint8, (3, 2), elements=st.integers(0, 252)),
)
@settings(max_examples=100, deadline=None)
def test_representable_values_survive_exactly(blocks: np.ndarray, scales: np.ndarray) -> None:
    values = mxfp4.dequantize(blocks, scales)
    for rule in ("mx", "mse"):
        again = mxfp4.dequantize(*mxfp4.quantize(values, rule))
        assert np.array_equal(again, values)
        assert np.array_equal(np.signbit(again), np.signbit(values))


def test_mse_rule_beats_the_specification_on_random_weights() -> None:
    x = np.random.default_rng(1).standard_normal((256, 2880)).astype(np.float32)
    errors = {
        rule: float(((mxfp4.dequantize(*mxfp4.quantize(x, rule)) - x) ** 2).mean())
        for rule in ("mx", "mse")
    }
    assert errors["mse"] < 0.96 * errors["mx"]
    assert errors["mx"] < 0.014


def _codes(blocks: np.ndarray) -> np.ndarray:
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-2], -1)
    return np.array(TABLE)[nibbles]

from __future__ import annotations

import numpy as np
import pytest

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16, round_bf16

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def test_every_bf16_survives_the_round_trip() -> None:
    values = bf16_to_f32(ALL_BITS)
    back = f32_to_bf16(values)
    number = ~np.isnan(values)
    assert np.array_equal(back[number], ALL_BITS[number])
    assert np.isnan(bf16_to_f32(back[~number])).all()


def test_known_values() -> None:
    bits = np.array([0x3F80, 0xC000, 0x0000, 0x8000, 0x7F80, 0x0001], dtype=np.uint16)
    expected = np.array([1.0, -2.0, 0.0, -0.0, np.inf, 2.0**-133], dtype=np.float32)
    found = bf16_to_f32(bits)
    assert np.array_equal(found, expected)
    assert np.signbit(found[3])


def test_rounds_to_the_nearest_and_ties_to_even() -> None:
    ulp = 2.0**-7  # of bf16 in [1, 2)
    cases = {
        1 + 0.49 * ulp: 1.0,
        1 + 0.50 * ulp: 1.0,
        1 + 0.51 * ulp: 1 + ulp,
        1 + 1.50 * ulp: 1 + 2 * ulp,
        1 + 2.50 * ulp: 1 + 2 * ulp,
        -(1 + 1.50 * ulp): -(1 + 2 * ulp),
        2 - 0.25 * ulp: 2.0,
    }
    found = round_bf16(np.array(list(cases), dtype=np.float32))
    assert found.tolist() == list(cases.values())


def test_nearest_of_all_neighbours() -> None:
    """Against float64 distances to the two bf16 values around each of a million floats."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 0x7F000000, 1 << 20, dtype=np.uint32)
    x = bits.view(np.float32)
    below = (bits >> 16).astype(np.uint16)
    low, high = (bf16_to_f32(below + np.uint16(i)).astype(np.float64) for i in (0, 1))
    to_low, to_high = x - low, high - x
    even_low = below % 2 == 0
    expected = np.where((to_low < to_high) | ((to_low == to_high) & even_low), low, high)
    assert np.array_equal(round_bf16(x), expected.astype(np.float32))
    assert np.array_equal(round_bf16(-x), -expected.astype(np.float32))


def test_infinity_nan_and_overflow() -> None:
    x = np.array([np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 3.3895314e38], dtype=np.float32)
    assert round_bf16(x).tolist() == [np.inf, -np.inf, np.inf, -np.inf, float(x[4])]
    # a NaN with only low mantissa bits would become infinity if it were cut off
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)
    assert np.isnan(round_bf16(nans.view(np.float32))).all()
    mixed = np.ones(200_000, dtype=np.float32)
    mixed[::7] = np.nan
    assert np.array_equal(round_bf16(mixed), mixed, equal_nan=True)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_shape_is_kept(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, dtype=np.float32)
    assert f32_to_bf16(x).shape == shape
    assert f32_to_bf16(x).dtype == np.uint16
    assert bf16_to_f32(f32_to_bf16(x)).shape == shape


def test_strided_input() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3]
    assert np.array_equal(round_bf16(x), x)
    assert np.array_equal(bf16_to_f32(f32_to_bf16(x).T), x.T)

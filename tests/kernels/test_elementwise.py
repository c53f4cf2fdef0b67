"""Norm, activation, roundings, routing against float64."""

import numpy as np
import pytest

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.native import _kernels

EPS = np.finfo(np.float32).eps
ALL_BF16 = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 128, 2880])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e15])
def test_rms_norm(isa, random, n, size):
    x = (random.standard_normal(n) * size).astype(np.float32)
    scale = f32_to_bf16(random.standard_normal(n).astype(np.float32))
    found = _kernels.rms_norm(x, scale, 1e-5, isa=isa)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean() + np.float32(1e-5)) * bf16_to_f32(scale)
    # The sum of n squares, halved by the root, then a division and three products.
    assert np.all(np.abs(found - exact) <= (n / 32 + 6) * EPS * np.abs(exact) + 1e-44)


def test_rms_norm_of_zeros_and_nan(isa):
    scale = f32_to_bf16(np.ones(20, np.float32))
    assert not _kernels.rms_norm(np.zeros(20, np.float32), scale, 1e-5, isa=isa).any()
    x = np.ones(20, np.float32)
    x[3] = np.nan
    assert np.isnan(_kernels.rms_norm(x, scale, 1e-5, isa=isa)).all()


def swiglu(u, limit, dtype):
    glu, linear = u[0::2].astype(dtype), u[1::2].astype(dtype)
    glu = np.minimum(glu, dtype(limit))
    linear = np.clip(linear, -dtype(limit), dtype(limit))
    with np.errstate(over="ignore"):
        return glu / (1 + np.exp(dtype(-1.702) * glu)) * (linear + 1)


@pytest.mark.parametrize("n", [1, 7, 16, 33, 1000])
def test_swiglu(isa, random, n):
    u = (random.standard_normal(2 * n) * 6).astype(np.float32)
    found = _kernels.swiglu(u, 7.0, isa=isa)
    exact = swiglu(u, 7.0, np.float64)
    # exp of an argument of size a carries a · eps.
    size = 1 + 1.702 * np.abs(np.minimum(u[0::2], 7))
    assert np.all(np.abs(found - exact) <= 8 * EPS * size * np.abs(exact) + 1e-30)


def test_swiglu_limits(isa):
    """glu is bounded above alone, linear on both sides; NaN passes."""
    pairs = [(7, 7), (8, 7), (1e30, 9), (3, -7), (3, -8), (3, -1e30), (-200, 2), (-1e30, 2)]
    u = np.array(pairs, np.float32).ravel()
    found = _kernels.swiglu(u, 7.0, isa=isa)
    exact = swiglu(u, 7.0, np.float64)
    assert np.allclose(found, exact, rtol=1e-5, atol=1e-30)
    assert found[0] == found[1]
    assert found[3] == found[4] == found[5]
    assert np.isnan(_kernels.swiglu(np.array([np.nan, 1.0], np.float32), 7.0, isa=isa)).all()
    assert np.isnan(_kernels.swiglu(np.array([1.0, np.nan], np.float32), 7.0, isa=isa)).all()


def test_swiglu_rounded(isa, random):
    u = random.standard_normal(66).astype(np.float32)
    plain = _kernels.swiglu(u, 7.0, isa=isa)
    rounded = _kernels.swiglu(u, 7.0, isa=isa, round=True)
    assert np.array_equal(rounded, bf16_to_f32(f32_to_bf16(plain)))


def test_bf16_round_trip_of_every_value(isa):
    values = bf16_to_f32(ALL_BF16)
    back = _kernels.to_bf16(values, isa=isa)
    nan = np.isnan(values)
    assert np.array_equal(back[~nan], ALL_BF16[~nan])
    assert np.isnan(bf16_to_f32(back[nan])).all()
    assert np.array_equal(_kernels.round_bf16(values[~nan], isa=isa), values[~nan])


def test_bf16_rounds_to_nearest_even(isa, random):
    bits = random.integers(0, 1 << 32, 100_000, np.uint32)
    halfway = (random.integers(0, 1 << 16, 10_000, np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, halfway, halfway - 1, halfway + 1]).view(np.float32)
    found = _kernels.to_bf16(values, isa=isa)
    # Independent of the implementation: the nearer neighbour, the even one when both are as near.
    with np.errstate(invalid="ignore"):  # NaN among them
        below = bf16_to_f32((values.view(np.uint32) >> 16).astype(np.uint16)).astype(np.float64)
        above_bits = ((values.view(np.uint32) >> 16) + 1).astype(np.uint16)
        above = bf16_to_f32(above_bits).astype(np.float64)
    finite = np.isfinite(values) & np.isfinite(above)
    assert np.isnan(bf16_to_f32(found[np.isnan(values)])).all()
    found, values, below, above = found[finite], values[finite], below[finite], above[finite]
    above_bits = above_bits[finite]
    up = np.abs(above - values) < np.abs(values - below)
    tie = np.abs(above - values) == np.abs(values - below)
    even = ((values.view(np.uint32) >> 16) & 1) == 0
    wanted = np.where(up | (tie & ~even), above_bits, above_bits - np.uint16(1))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_add_scaled(isa, random, n):
    y, x = random.standard_normal((2, n)).astype(np.float32)
    found = _kernels.add_scaled(y, x, 0.3, isa=isa)
    exact = y + np.float64(np.float32(0.3)) * x
    assert np.all(np.abs(found - exact) <= 2 * EPS * (np.abs(y) + np.abs(x)))


def test_route_takes_the_largest(random):
    for _ in range(50):
        logits = random.standard_normal(32).astype(np.float32)
        experts, weights = _kernels.route(logits, 4)
        assert np.array_equal(experts, np.argsort(-logits, kind="stable")[:4])
        exact = np.exp(logits[experts].astype(np.float64))
        assert np.allclose(weights, exact / exact.sum(), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_route_ties_go_to_the_lowest_index(count):
    experts, weights = _kernels.route(np.zeros(8, np.float32), count)
    assert experts.tolist() == list(range(count))
    assert np.allclose(weights, 1 / count)
    experts, _ = _kernels.route(np.array([1, 3, 2, 3, 2, 2], np.float32), 4)
    assert experts.tolist() == [1, 3, 2, 4]


def test_route_survives_nan():
    experts, weights = _kernels.route(np.array([1, np.nan, 2], np.float32), 3)
    assert sorted(experts.tolist()) == [0, 1, 2]
    assert np.isnan(weights).all()


def test_uniform_draws_are_uniform_and_repeat():
    draws = np.array([_kernels.uniform_draw(7, i) for i in range(20_000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    # The mean of n uniforms has a deviation of 1 / sqrt(12 n); five of them.
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * len(draws))
    counts, _ = np.histogram(draws, 20, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi², 19 degrees: far beyond 99.99%
    assert draws[5] == _kernels.uniform_draw(7, 5) != _kernels.uniform_draw(8, 5)

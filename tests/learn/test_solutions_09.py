"""Solutions to the exercises of docs/learn/09_kernels.ipynb."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss import reference
from gptoss.checkpoint.synthetic import PRESETS

Array = NDArray[np.float64]


def kahan(x: NDArray[np.float32]) -> np.float32:
    """Adds in order, and carries along what each addition has lost."""
    total, lost = np.float32(0), np.float32(0)
    for value in x:
        corrected = np.float32(value - lost)
        new = np.float32(total + corrected)
        lost = np.float32(np.float32(new - total) - corrected)
        total = new
    return total


def test_1_compensated_summation() -> None:
    """Its error does not grow with n; that of the plain sum does.

    Sixteen partial sums of some thousand values are off by a few units in the last place, far less
    than rounding to bf16 or MXFP4: the kernels do not need more.
    """
    rng = np.random.default_rng(0)
    plain, careful = [], []
    for n in (100, 1000, 10_000):
        x = rng.random(n, dtype=np.float32)
        exact = x.sum(dtype=np.float64)
        plain.append(abs(np.cumsum(x, dtype=np.float32)[-1] / exact - 1))
        careful.append(abs(kahan(x) / exact - 1))
    assert max(careful) <= 2.0**-24 * 1.01
    assert plain[-1] > 4 * max(careful)


def test_2_angles_in_float32() -> None:
    """The fastest pair turns by one radian a position, and 131071 is exact in float32: no error.

    That is luck. The next pair's frequency is not a float32 number, and the product is rounded at a
    size where neighbours are 2^-7 apart.
    """
    frequencies, _ = reference.inverse_frequencies(PRESETS["gpt-oss-20b"])
    errors = np.abs(
        np.cos(np.float32(131071) * frequencies.astype(np.float32)).astype(np.float64)
        - np.cos(131071 * frequencies)
    )
    assert frequencies[0] == 1 and errors[0] < 1e-6
    assert 1e-4 < errors[1:6].max() < 2.0**-7


def test_3_halves_that_are_merged() -> None:
    """(m, d, o) of both, brought to the larger maximum; the sink is in one of them only."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal(16), *rng.standard_normal((2, 50, 16))
    sink = 0.7

    def part(k: Array, v: Array, top: float, total: float) -> tuple[float, float, Array]:
        out = np.zeros(16)
        for key, value in zip(k, v, strict=True):
            logit = float(q @ key) / 4
            new = max(top, logit)
            shrink = math.exp(top - new) if top > -math.inf else 0.0
            weight = math.exp(logit - new)
            total, out, top = total * shrink + weight, out * shrink + weight * value, new
        return top, total, out

    exact = reference.attention(q[None, None], k[:, None], v[:, None], np.array([sink]))[0, 0]
    for cut in (0, 1, 25, 50):
        m1, d1, o1 = part(k[:cut], v[:cut], sink, 1.0)
        m2, d2, o2 = part(k[cut:], v[cut:], -math.inf, 0.0)
        top = max(m1, m2)
        a, b = math.exp(m1 - top), math.exp(m2 - top) if m2 > -math.inf else 0.0
        np.testing.assert_allclose((a * o1 + b * o2) / (a * d1 + b * d2), exact, rtol=1e-10)


def test_4_how_many_experts_are_read() -> None:
    """E·(1 − (1 − k/E)^B); with k = 4 of E = 32, 23 tokens read 95% of the experts."""
    rng = np.random.default_rng(2)
    experts, k = 32, 4

    def expected(tokens: int) -> float:
        return experts * (1 - (1 - k / experts) ** tokens)

    for tokens in (1, 4, 20):
        seen = [
            len({e for _ in range(tokens) for e in rng.choice(experts, k, replace=False)})
            for _ in range(400)
        ]
        assert np.mean(seen) == pytest.approx(expected(tokens), rel=0.03)
    enough = next(n for n in range(1, 100) if expected(n) >= 0.95 * experts)
    assert enough == 23


def rows_to_compute(bandwidth: float, speed: float, bytes_per_weight: float) -> float:
    """From how many rows on 2·M operations a weight take longer than reading it."""
    return speed * bytes_per_weight / (2 * bandwidth)


def test_5_a_roofline() -> None:
    """At 20 GB/s and 100 billion operations per second: 1.3 rows in MXFP4, 5 in bf16."""
    bandwidth, speed = 20e9, 100e9
    mxfp4, bf16 = (rows_to_compute(bandwidth, speed, size) for size in (17 / 32, 2.0))
    assert mxfp4 == pytest.approx(1.328, abs=1e-3) and bf16 == 5
    n = k = 1000
    for size, edge in ((17 / 32, mxfp4), (2.0, bf16)):
        reading = n * k * size / bandwidth
        assert 2 * (0.9 * edge) * n * k / speed < reading < 2 * (1.1 * edge) * n * k / speed

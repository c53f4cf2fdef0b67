"""Solutions to the exercises of docs/learn/03_positions.ipynb."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from gptoss import reference
from gptoss.checkpoint.synthetic import PRESETS

Array = NDArray[np.float64]
CONFIG = PRESETS["gpt-oss-20b"]
PLAIN = 150_000.0 ** (-np.arange(32) / 32)


def sinusoids(position: float, size: int) -> Array:
    angle = position * 10000.0 ** (-np.arange(0, size, 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], -1).ravel()


def test_1_moving_is_a_matrix() -> None:
    """sin(a + b) and cos(a + b) are mixtures of sin a and cos a, by numbers that know only b."""
    size, distance = 16, 7
    matrix = np.zeros((size, size))
    for i, angle in enumerate(distance * 10000.0 ** (-np.arange(0, size, 2) / size)):
        cos, sin = math.cos(angle), math.sin(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[cos, sin], [-sin, cos]]
    for t in (0, 3, 1000):
        np.testing.assert_allclose(
            matrix @ sinusoids(t, size), sinusoids(t + distance, size), atol=1e-10
        )


def test_2_rope_in_complex_numbers() -> None:
    """Turning by an angle is multiplication by e^(i·angle)."""
    x = np.random.default_rng(0).standard_normal((1, 1, 64))
    turned = (x[0, 0, :32] + 1j * x[0, 0, 32:]) * np.exp(1j * 1234 * PLAIN)
    plain = dataclasses.replace(CONFIG, rope_scaling_factor=1.0)
    cos, sin = reference.rope_tables(plain, np.array([1234]), np.float64)
    expected = reference.apply_rope(x, cos, sin)[0, 0]
    np.testing.assert_allclose(np.concatenate([turned.real, turned.imag]), expected, rtol=1e-10)


def test_3_no_scaling_is_plain_rope() -> None:
    """The frequencies are 150000^(−i/32), and the concentration is 1."""
    plain = dataclasses.replace(CONFIG, rope_scaling_factor=1.0)
    frequencies, concentration = reference.inverse_frequencies(plain)
    np.testing.assert_allclose(frequencies, PLAIN, rtol=1e-12)
    assert concentration == 1.0


def test_4_the_mask_tells_positions_from_two_layers_on() -> None:
    """In one layer the last token sees a set. In two it sees what others saw, and they saw less."""
    rng = np.random.default_rng(1)
    x = 0.5 * rng.standard_normal((3, 1, 16))
    swapped = x[[1, 0, 2]]
    none = np.array([-np.inf])

    def run(x: Array, layers: int) -> Array:
        for _ in range(layers):
            x = x + np.asarray(reference.attention(x, x, x, none))
        return x[-1]

    np.testing.assert_allclose(run(x, 1), run(swapped, 1), rtol=1e-12)
    assert np.abs(run(x, 2) - run(swapped, 2)).max() > 1e-2


def test_5_the_slowest_wave() -> None:
    """2π / frequency: far more than the context, so that it never comes round."""
    frequencies, _ = reference.inverse_frequencies(CONFIG)
    rope, yarn = (2 * math.pi / f[-1] for f in (PLAIN, frequencies))
    assert 600_000 < rope < 700_000
    assert math.isclose(yarn / rope, 32, rel_tol=1e-12)
    assert rope > 131_072 > CONFIG.initial_context_length

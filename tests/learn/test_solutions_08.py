"""Solutions of the exercises in docs/learn/08_mxfp4.ipynb."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.model import mxfp4

Floats = NDArray[np.float64]
POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def one(value: float, largest: float = 4.0) -> float:
    """`value` rounded in a block whose largest is `largest` (4: scale 1)."""
    block = np.zeros(32)
    block[0], block[1] = value, largest
    return float(mxfp4.dequantize(*mxfp4.quantize(block))[0])


def test_1_ties() -> None:
    """List all ties of e2m1 between 0 and 6 and where each goes; ties up would be biased.

    A tie lies halfway between neighbours and goes to the one with the even mantissa bit, so that
    they alternate: down, up, down, up, … and the mean stays right.
    """
    ties = [(a + b) / 2 for a, b in itertools.pairwise(POSITIVE)]
    assert ties == [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    assert [one(t) for t in ties] == [0, 1, 1, 2, 2, 4, 4]
    # 0.25, 0.75, 1.25, 1.75 with equal chances: their mean is 1
    halves = ties[:4]
    even = np.mean([one(t) for t in halves])
    up = np.mean([POSITIVE[POSITIVE.index(t + 0.25)] for t in halves])
    assert even == np.mean(halves) == 1
    assert up == 1.25


def int4(x: Floats, size: int = 32) -> Floats:
    """Integers −7 … 7 times max|x|/7 of each block (the scale itself unrounded)."""
    blocks = x.reshape(-1, size)
    scale = np.abs(blocks).max(1, keepdims=True) / 7
    return (np.round(blocks / scale) * scale).reshape(x.shape)


def relative_error(x: Floats, rounded: NDArray[np.floating[Any]]) -> float:
    return float(np.sqrt(np.mean((rounded - x) ** 2) / np.mean(x**2)))


def test_2_int4() -> None:
    """int4 with a free scale against e2m1: on normal weights, and on weights with outliers.

    Evenly spaced values suit evenly spread weights. Normal weights in blocks of 32 are nearly so:
    int4 is as good, or a little better, but for a scale of 16 bits instead of 8 (4.5 bits a weight
    instead of 4.25). With outliers most weights are small compared to the block's largest, where
    e2m1 has its finest steps: 1/12 of the top against 1/7.
    """
    random = np.random.default_rng(0)
    weights = {
        "normal": random.normal(size=(512, 1024)),
        "heavy": random.standard_t(3, (512, 1024)),
    }
    integers = {name: relative_error(x, int4(x)) for name, x in weights.items()}
    fp4 = {
        name: relative_error(x, mxfp4.dequantize(*mxfp4.quantize(x, "mse")))
        for name, x in weights.items()
    }
    assert integers["normal"] < 1.02 * fp4["normal"]
    assert fp4["heavy"] < integers["heavy"]


def test_3_the_floor() -> None:
    """How small must a weight be, against its block's largest, to become 0 for certain?

    Up to 0.25 scales a weight becomes 0. The largest is below 8 scales, so 1/32 of the largest is
    certain to vanish; and as it is at least 4 scales, a weight above 1/16 of it never does.
    """
    for largest in (4.0, 5.0, 6.5, 7.99):
        assert one(largest / 32, largest) == 0
        assert one(largest / 16 * 1.001, largest) > 0
    assert one(7.9 / 32 * 1.02, 7.9) > 0  # the bound is tight: just above, near 8 scales
    weights = np.random.default_rng(0).normal(size=(256, 1024))
    vanished = (mxfp4.dequantize(*mxfp4.quantize(weights)) == 0).mean()
    assert 0.05 < vanished < 0.15


def test_4_no_better_scale() -> None:
    """Neither a quarter nor four times the 'mx' scale has less squared error than 'mse' finds.

    In units of the mx scale the largest lies in [4, 8). Four times: nothing is rounded above 8,
    and each value of that grid up to 8 (0 2 4 6 8) is on the doubled grid (0 1 2 3 4 6 8 12) too.
    A quarter: all is cut to 1.5, so the largest errs by 2.5 or more, where mx errs by at most 1
    (or, above 6, by 4.5 less than it): more than 5 lost in squares. The others win at most 1/4
    each, and only up to 1.5: 31/16 in squares, less than 2.
    """
    random = np.random.default_rng(0)
    blocks = np.concatenate([
        random.normal(size=(4000, 32)),
        random.standard_t(2, (4000, 32)),
        random.uniform(-1, 1, (4000, 32)),
        np.sign(random.normal(size=(4000, 32))) * random.choice([0.1, 1, 1.9], (4000, 32)),
    ])  # fmt: skip
    mse = ((mxfp4.dequantize(*mxfp4.quantize(blocks, "mse")) - blocks) ** 2).sum(1)
    scale = np.exp2(np.floor(np.log2(np.abs(blocks).max(1, keepdims=True))) - 2)
    grid = mxfp4.VALUES.astype(np.float64)
    for shift in (-4, -3, -2, -1, 0, 1, 2, 3):
        s = scale * 2.0**shift
        nearest = np.abs(blocks[:, :, None] / s[:, :, None] - grid).min(2) * s
        error = (nearest**2).sum(1)
        assert (error >= mse * (1 - 1e-6)).all(), shift


@pytest.mark.parametrize("size", [64, 1024, 8192])
def test_5_dot_products(size: int) -> None:
    """The relative error of a dot product with rounded weights does not depend on its length.

    Σ xᵢeᵢ over independent errors has the deviation √n·σₓ·σₑ, Σ xᵢwᵢ has √n·σₓ·σ_w: the √n cancels,
    and what is left is σₑ/σ_w, the relative error of a weight, 11%.
    """
    random = np.random.default_rng(size)
    count = 400
    x, w = random.normal(size=(count, size)), random.normal(size=(count, size))
    error = (x * (mxfp4.dequantize(*mxfp4.quantize(w)) - w)).sum(1)
    relative = error.std() / (x * w).sum(1).std()
    assert relative == pytest.approx(0.115, rel=0.2)

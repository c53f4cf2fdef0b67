"""Distances between distributions, repetition, and what a token costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptoss.checkpoint import PRESETS
from gptoss.eval.cost import BF16, MXFP4, Bytes, step_bytes
from gptoss.eval.numbers import distance, log_softmax, most_common_share, repeated_share


def test_log_softmax_is_a_distribution():
    logits = np.random.default_rng(0).normal(0, 30, (3, 50)).astype(np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float64
    assert np.exp(found).sum(-1) == pytest.approx(1.0, abs=1e-12)


def test_distance_of_two_coins():
    exact = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    near = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    found = distance(exact, near)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.largest == pytest.approx(expected)
    assert found.kl == pytest.approx(expected / 2)
    assert found.top1 == 0.5


def test_distance_of_itself_is_nothing_and_of_no_number_is_none():
    logits = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    assert distance(logits, logits).kl == 0 and distance(logits, logits).top1 == 1
    broken = logits.copy()
    broken[2, 3] = np.nan
    assert math.isnan(distance(logits, broken).kl)


@pytest.mark.parametrize(
    ("tokens", "common", "repeated"),
    [
        ([], 0.0, 0.0),
        ([5] * 8, 1.0, 0.8),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.25, 0.2),
        (list(range(9)), 1 / 9, 0.0),
    ],
)
def test_repetition(tokens, common, repeated):
    assert most_common_share(tokens) == pytest.approx(common)
    assert repeated_share(tokens) == pytest.approx(repeated)


def test_bytes_of_a_token_of_the_published_model():
    """3.6 G active parameters: 1.9 G of experts in MXFP4, the rest in bf16."""
    config = PRESETS["gpt-oss-20b"]
    experts = 24 * 4 * 3 * 2880 * 2880
    found = step_bytes(config, 1, 0, Bytes(BF16, MXFP4, 2.0))
    dense = config.active_parameters() - experts
    # Norms and biases are left out, keys and values of one token are in.
    assert found == pytest.approx(experts * MXFP4 + dense * BF16, rel=2e-3)

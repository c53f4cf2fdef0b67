"""Solutions to the exercises of docs/learn/04_block.ipynb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gptoss
from gptoss import reference
from gptoss.checkpoint.files import open_checkpoint

Array = NDArray[np.float64]
NANO = Path(gptoss.__file__).parent / "bundled" / "nano"


def layer_norm(x: Array, eps: float = 0.0) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps))


def rms_norm(x: Array) -> Array:
    return np.asarray(reference.rms_norm(x, np.ones(x.shape[-1]), 0.0))


def test_1_layer_norm_is_rms_norm_of_the_centred() -> None:
    """They are the same where the mean is zero already."""
    x = np.random.default_rng(0).standard_normal((5, 32)) + 2
    np.testing.assert_allclose(layer_norm(x), rms_norm(x - x.mean(-1, keepdims=True)), rtol=1e-12)
    assert np.abs(layer_norm(x) - rms_norm(x)).max() > 0.1
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(layer_norm(centred), rms_norm(centred), rtol=1e-12)


def test_2_the_last_norm_forgets_the_size_of_the_stream() -> None:
    """Three times the stream changes nothing; three times the norm's weights, all logits."""
    with open_checkpoint(NANO) as source:
        x = reference.embed(source.config, source, [5, 6, 7], np.float64)
        logits = reference.unembed(source.config, source, x)
        # not quite nothing: eps, 1e-5, is not scaled with the stream
        scaled = reference.unembed(source.config, source, 3 * x)
        assert np.abs(scaled - logits).max() < 0.05 * np.abs(logits).max()
        scale = reference.weight(source, "norm.scale", x)
        t = reference.rms_norm(x, 3 * scale, source.config.rms_norm_eps)
        table = reference.weight(source, "unembedding.weight", x)
        np.testing.assert_allclose(t @ table.T, 3 * logits, rtol=1e-9)


def test_3_a_linear_part_of_minus_one_closes() -> None:
    """l + 1 = 0: whatever the gate says, nothing comes out."""
    gate = np.linspace(-10, 10, 50)
    u = np.stack([gate, np.full(50, -1.0)], -1)
    assert (reference.swiglu(u, 7.0) == 0).all()


def test_4_sorted_by_expert() -> None:
    """One product per expert for all tokens that chose it."""
    rng = np.random.default_rng(1)
    tokens, hidden, count, k = 30, 16, 6, 2
    t = rng.standard_normal((tokens, hidden))
    w1, w2 = rng.standard_normal((count, 20, hidden)), rng.standard_normal((count, hidden, 10))
    chosen, shares = reference.router_topk(rng.standard_normal((tokens, count)), k)
    expected = np.zeros_like(t)
    for token in range(tokens):
        for expert, share in zip(chosen[token], shares[token], strict=True):
            h = reference.swiglu(w1[expert] @ t[token], 7.0)
            expected[token] += share * (w2[expert] @ h)
    order = np.argsort(chosen.ravel(), kind="stable")
    found = np.zeros_like(t)
    load = np.bincount(chosen.ravel(), minlength=count)
    for expert, places in enumerate(np.split(order, np.cumsum(load)[:-1])):
        rows = reference.swiglu(t[places // k] @ w1[expert].T, 7.0) @ w2[expert].T
        np.add.at(found, places // k, shares.ravel()[places, None] * rows)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_5_softmax_before_or_after_the_choice() -> None:
    """e^s / Σ over all, then divided by the sum of the chosen: the sum over all cancels."""
    scores = np.random.default_rng(2).standard_normal((50, 8))
    chosen, shares = reference.router_topk(scores, 4)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    before = np.take_along_axis(p, chosen, 1)
    assert (before.sum(1) < 1).all(), "without renormalising, shares do not sum to one"
    np.testing.assert_allclose(before / before.sum(1, keepdims=True), shares, rtol=1e-12)
    assert np.array_equal(np.argsort(-p, 1, kind="stable")[:, :4], chosen)

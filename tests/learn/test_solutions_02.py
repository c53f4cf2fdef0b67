"""Solutions to the exercises of docs/learn/02_attention.ipynb."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gptoss import reference

Array = NDArray[np.float64]


def inputs(tokens: int = 40, heads: int = 4, size: int = 8) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(tokens)
    q, k, v = rng.standard_normal((3, tokens, heads, size))
    return q, k, v


def no_sink(q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    nothing = np.full(q.shape[1], -np.inf)
    return np.asarray(reference.attention(q, k, v, nothing, window))


def test_1_one_key_after_the_other() -> None:
    """Running maximum, sum and answer; nothing of size T × T."""
    q, k, v = inputs()
    out = np.empty_like(q)
    for t in range(len(q)):
        for h in range(q.shape[1]):
            top, total, answer = -math.inf, 0.0, np.zeros(q.shape[2])
            for j in range(t + 1):
                score = float(q[t, h] @ k[j, h]) / math.sqrt(q.shape[2])
                new = max(top, score)
                shrink = math.exp(top - new)
                total = total * shrink + math.exp(score - new)
                answer = answer * shrink + math.exp(score - new) * v[j, h]
                top = new
            out[t, h] = answer / total
    np.testing.assert_allclose(out, no_sink(q, k, v), rtol=1e-10)


def lse(q: Array, k: Array) -> Array:
    """log Σ exp(score), [T, heads]."""
    scores = np.einsum("qhd,khd->qhk", q, k) / math.sqrt(q.shape[2])
    seen = np.arange(len(q))[None, None, :] <= np.arange(len(q))[:, None, None]
    return np.asarray(np.log(np.where(seen, np.exp(scores), 0).sum(-1)))


def test_2_a_sink_is_a_factor() -> None:
    """e^s / (e^b + Σ e^s) = (e^s / Σ e^s) · Σ e^s / (e^b + Σ e^s), and the last is σ(lse − b)."""
    q, k, v = inputs()
    sinks = np.array([-2.0, 0.0, 1.0, 5.0])
    factor = 1 / (1 + np.exp(-(lse(q, k) - sinks)))
    np.testing.assert_allclose(
        reference.attention(q, k, v, sinks), no_sink(q, k, v) * factor[..., None], rtol=1e-10
    )


def test_3_the_gradient_of_the_sink() -> None:
    """d out / d b = −(share of the sink) · out."""
    q, k, v = inputs()
    sinks = np.array([-1.0, 0.0, 0.5, 2.0])
    step = 1e-6
    numeric = (
        reference.attention(q, k, v, sinks + step) - reference.attention(q, k, v, sinks - step)
    ) / (2 * step)
    share = 1 / (1 + np.exp(lse(q, k) - sinks))
    expected = -share[..., None] * reference.attention(q, k, v, sinks)
    np.testing.assert_allclose(numeric, expected, atol=1e-8)


def test_4_windows_reach_further_layer_by_layer() -> None:
    """Each layer looks w − 1 tokens further back: L·(w − 1) in all."""
    tokens, window, layers = 60, 5, 3
    x = 0.3 * inputs(tokens, 1)[2]

    def run(x: Array) -> Array:
        for _ in range(layers):
            x = x + no_sink(x, x, x, window)
        return x

    changed = x.copy()
    changed[10] += 1
    felt = np.flatnonzero(np.abs(run(changed) - run(x)).max((1, 2)) > 1e-12)
    assert felt.tolist() == list(range(10, 10 + layers * (window - 1) + 1))


def test_5_with_a_cache_only_the_last_token_is_computed() -> None:
    """Keys and values are appended; one query at a time."""
    q, k, v = inputs()
    sinks = np.array([-1.0, 0.0, 0.5, 2.0])
    whole = reference.attention(q, k, v, sinks)
    keys, values = np.empty((0, 4, 8)), np.empty((0, 4, 8))
    for t in range(len(q)):
        keys, values = np.concatenate([keys, k[t : t + 1]]), np.concatenate([values, v[t : t + 1]])
        one = reference.attention(q[t : t + 1], keys, values, sinks)
        np.testing.assert_allclose(one[0], whole[t], rtol=1e-12)

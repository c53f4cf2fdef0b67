"""attention, rope and the YaRN table against float64."""

import numpy as np
import pytest

from gptoss import reference
from gptoss.checkpoint.files import open_checkpoint
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.native import _kernels

PAGE = _kernels.PAGE_SIZE


def make(random, length, group, dim, bf16, extra_pages=3):
    """Keys and values [length, dim], and the same in shuffled pages beside others of NaN."""
    blocks = -(-length // PAGE)
    pages = random.permutation(blocks + extra_pages)[:blocks].astype(np.int32)
    q = random.standard_normal((group, dim)).astype(np.float32) * 2
    sinks = f32_to_bf16(random.standard_normal(group).astype(np.float32))
    flat = random.standard_normal((2, length, dim)).astype(np.float32)
    if bf16:
        flat = bf16_to_f32(f32_to_bf16(flat))
    pool = np.full((2, blocks + extra_pages, PAGE, dim), np.nan, np.float32)
    for position in range(length):
        pool[:, pages[position // PAGE], position % PAGE] = flat[:, position]
    if bf16:
        pool = f32_to_bf16(pool)
    return q, sinks, flat, np.ascontiguousarray(pool), pages


def attend(q, sinks, k, v, dtype):
    """softmax over the keys and one sink column that has no value, in the given precision."""
    q, k, v, sinks = (np.asarray(a).astype(dtype) for a in (q, k, v, sinks))
    logits = q @ k.T / dtype(np.sqrt(q.shape[1]))
    logits = np.concatenate([logits, sinks[:, None]], 1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights[:, :-1] @ v


def check(found, q, sinks, k, v):
    """No further from float64 than 1.5 x what float32 NumPy is, and a little; NaN fails.

    The little: exp of a logit of size m carries m · eps, and n weights are added.
    """
    sinks = bf16_to_f32(sinks)
    exact = attend(q, sinks, k, v, np.float64)
    low = np.abs(attend(q, sinks, k, v, np.float32) - exact).max()
    largest = np.abs(q @ k.T).max() / np.sqrt(q.shape[1])
    little = 8 * np.finfo(np.float32).eps * (1 + largest) * np.abs(v).max()
    assert np.abs(found - exact).max() <= 1.5 * low + little


def one_token(q, sinks, pool, pages, first, last, isa):
    """The token at position `last` sees the keys first..last."""
    return _kernels.attention(
        q[None], sinks, pool[0], pool[1], pages, last, window=last - first + 1, isa=isa
    )[0]


LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 200]  # single token, page boundaries


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_full(isa, random, length, bf16):
    q, sinks, (k, v), pool, pages = make(random, length, 8, 64, bf16)
    found = one_token(q, sinks, pool, pages, 0, length - 1, isa)
    check(found, q, sinks, k, v)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dim", [2, 16, 24, 64, 128])
@pytest.mark.parametrize("group", [1, 8, 64])
def test_shapes(isa, random, group, dim, bf16):
    q, sinks, (k, v), pool, pages = make(random, 40, group, dim, bf16)
    found = one_token(q, sinks, pool, pages, 0, 39, isa)
    check(found, q, sinks, k, v)


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 47, 63])
def test_window_boundary(isa, random, first):
    """Keys before the window are not read: NaN lies there, and their pages are not held."""
    q, sinks, (k, v), pool, pages = make(random, 64, 8, 64, bf16=False)
    for position in range(first):
        pool[:, pages[position // PAGE], position % PAGE] = np.nan
    pages[: first // PAGE] = -1
    found = one_token(q, sinks, pool, pages, first, 63, isa)
    check(found, q, sinks, k[first:], v[first:])


def test_what_comes_after_is_not_read(isa, random):
    q, sinks, (k, v), pool, pages = make(random, 32, 8, 64, bf16=False)
    pool[:, pages[1], 5:] = np.nan
    found = one_token(q, sinks, pool, pages, 0, 20, isa)
    check(found, q, sinks, k[:21], v[:21])


def test_the_sink_takes_its_share(isa, random):
    q, _, (k, v), pool, pages = make(random, 20, 4, 32, bf16=False)
    sinks = f32_to_bf16(np.array([60.0, -60.0, 0.0, 8.0], np.float32))
    found = one_token(q, sinks, pool, pages, 0, 19, isa)
    check(found, q, sinks, k, v)
    assert np.abs(found[0]).max() < 1e-20  # all of it
    weights = np.exp(q[1] @ k.T / np.sqrt(32.0))
    assert np.allclose(found[1], weights / weights.sum() @ v, rtol=1e-4, atol=1e-6)  # none


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_flat_and_sharp_softmax(isa, random, factor):
    q, sinks, (k, v), pool, pages = make(random, 100, 8, 64, bf16=False)
    q *= np.float32(factor)
    found = one_token(q, sinks, pool, pages, 0, 99, isa)
    check(found, q, sinks, k, v)


def test_nan_is_seen(isa, random):
    q, sinks, _, pool, pages = make(random, 20, 2, 16, bf16=False)
    pool[0, pages[1], 2] = np.nan
    assert np.isnan(one_token(q, sinks, pool, pages, 0, 19, isa)).all()


@pytest.mark.parametrize("window", [None, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("position", [0, 1, 9, 15, 16, 27, 60])
def test_tile_of_tokens(isa, random, position, window):
    """Tokens of a tile see what each would see alone, to the bit; NaN lies after the last."""
    tokens = _kernels.ATTENTION_TOKENS
    q, sinks, _, pool, pages = make(random, position + tokens, 8, 64, bf16=True)
    q = random.standard_normal((tokens, 8, 64)).astype(np.float32)
    args = {"window": window, "isa": isa}
    found = _kernels.attention(q, sinks, pool[0], pool[1], pages, position, **args)
    for t in range(tokens):
        alone = _kernels.attention(
            q[t : t + 1], sinks, pool[0], pool[1], pages, position + t, **args
        )
        assert np.array_equal(found[t], alone[0])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dim", [2, 6, 16, 64, 80])
@pytest.mark.parametrize("length", [1, 16, 33])
def test_int8(isa, random, length, dim):
    """Against float64 of the dequantised keys and values."""
    q, sinks, _, pool, pages = make(random, length, 8, dim, bf16=False)
    codes = random.integers(-127, 128, pool.shape).astype(np.int8)
    scales = random.uniform(1e-3, 2e-2, pool.shape[:3]).astype(np.float32)
    scales[np.isnan(pool[..., 0])] = np.nan  # what is not used must not be seen
    found = _kernels.attention(
        q[None], sinks, codes[0], codes[1], pages, length - 1, isa=isa,
        k_scale=scales[0], v_scale=scales[1],
    )[0]  # fmt: skip
    values = codes.astype(np.float32) * scales[..., None]
    flat = values[:, pages].reshape(2, -1, dim)[:, :length]
    check(found, q, sinks, flat[0], flat[1])


@pytest.mark.parametrize("half", [1, 8, 13, 32])
def test_rope(isa, random, half):
    x = random.standard_normal((5, 2 * half)).astype(np.float32)
    angle = random.uniform(0, 7, half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    found = _kernels.rope(x, cos, sin, isa=isa)
    a, b = x[:, :half].astype(np.float64), x[:, half:].astype(np.float64)
    exact = np.concatenate([a * cos - b * sin, b * cos + a * sin], 1)
    bound = 3 * np.finfo(np.float32).eps * np.concatenate([np.abs(a) + np.abs(b)] * 2, 1)
    assert np.all(np.abs(found - exact) <= bound)


def test_yarn_is_the_specification():
    """docs/spec.md "Rotary embedding": bounds 8.0928 and 17.3980, not rounded; m = 1.34657."""
    with open_checkpoint("synthetic:gpt-oss-20b?layers=1&experts=4") as source:
        frequencies, concentration = _kernels.yarn(source.config)
        wanted, _ = reference.inverse_frequencies(source.config)
    assert concentration == pytest.approx(1.34657, abs=5e-6)
    i = np.arange(32)
    base = 150000.0 ** (-i / 32)
    ramp = np.clip((i - 8.0928) / (17.3980 - 8.0928), 0, 1)
    assert np.allclose(frequencies, ramp * base / 32 + (1 - ramp) * base, rtol=2e-4)
    assert np.allclose(frequencies, wanted, rtol=1e-6)
    assert frequencies[8] == base[8]
    assert frequencies[9] < base[9]
    assert frequencies[18] == pytest.approx(base[18] / 32, rel=1e-12)

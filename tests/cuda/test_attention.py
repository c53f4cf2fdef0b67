"""Attention, and what comes before it, against float64."""

import numpy as np
import pytest
from cuda_calls import attention, bf16, f64, floats, halves

from gptoss import Error
from gptoss.model.bf16 import bf16_to_f32

PAGE = 16
LOG_ERROR = 2.0**-8  # of bf16: the weights of values are rounded to it, the result is too


def exact_attention(q, k, v, sink, scale, first, last):
    """One query against keys first … last in float64; the result and Σ weight · |v|."""
    logits = scale * (k[first : last + 1] @ q)
    largest = max(logits.max(), sink)
    p = np.exp(logits - largest)
    p /= p.sum() + np.exp(sink - largest)
    return p @ v[first : last + 1], p @ np.abs(v[first : last + 1])


class Case:
    """Sequences with some tokens before, and some new ones, in pages that lie anywhere.

    What no query may see is NaN: free pages, slots after the last token, pages before the window.
    """

    def __init__(self, random, lengths, new, *, heads, kv_heads, dim, window, size=1.0):
        self.heads, self.kv_heads, self.dim, self.window = heads, kv_heads, dim, window
        blocks = max(-(-length // PAGE) for length in lengths) + 1
        count = sum(-(-length // PAGE) for length in lengths)
        self.kv = np.full((count + 3, 2, kv_heads, PAGE, dim), 0x7FC0, np.uint16)
        self.pages = np.full((len(lengths), blocks), -1, np.int32)
        free = list(random.permutation(count + 3).astype(np.int32))
        self.k, self.v = [], []
        sequence, position, self.runs = [], [], []
        for s, (length, added) in enumerate(zip(lengths, new, strict=True)):
            keys = bf16(size * random.normal(size=(2, length, kv_heads, dim)))
            seen = max(0, length - added - window + 1)
            for block in range(seen // PAGE, -(-length // PAGE)):
                page = self.pages[s, block] = free.pop()
                rows = keys[:, block * PAGE : (block + 1) * PAGE]
                self.kv[page, :, :, : rows.shape[1]] = rows.transpose(0, 2, 1, 3)
            self.k.append(f64(keys[0]))
            self.v.append(f64(keys[1]))
            self.runs.append((len(sequence), added))
            sequence += [s] * added
            position += range(length - added, length)
        self.sequence = np.array(sequence, np.int32)
        self.position = np.array(position, np.int32)
        self.q = bf16(size * random.normal(size=(len(sequence), heads, dim)))
        self.sinks = bf16(random.normal(size=heads))
        self.scale = dim**-0.5

    def tiles(self, most):
        return np.array(
            [
                (first, min(most, begin + count - first))
                for begin, count in self.runs
                for first in range(begin, begin + count, most)
            ],
            np.int32,
        )

    def check(self, cuda, kernel, splits=1):
        group = self.heads // self.kv_heads
        most = 128 // group if kernel == "attention_prefill" else 1
        found = attention(
            cuda, kernel, self.q, self.kv, self.sinks, self.pages, self.sequence, self.position,
            self.tiles(most), window=self.window, scale=self.scale, splits=splits,
        )  # fmt: skip
        for t, (s, last) in enumerate(zip(self.sequence, self.position, strict=True)):
            first = max(0, last - self.window + 1)
            for head in range(self.heads):
                k, v = self.k[s][:, head // group], self.v[s][:, head // group]
                sink = f64(self.sinks[head : head + 1])[0]
                exact, magnitude = exact_attention(
                    f64(self.q[t, head]), k, v, sink, self.scale, first, last
                )
                error = bf16_to_f32(found[t, head]) - exact
                assert np.all(np.abs(error) <= LOG_ERROR * (np.abs(exact) + magnitude) + 1e-6)


ALL = 2**31 - 1
SHAPES = [
    {"heads": 8, "kv_heads": 1, "dim": 64},
    {"heads": 4, "kv_heads": 2, "dim": 16},
    {"heads": 6, "kv_heads": 2, "dim": 32},
    {"heads": 2, "kv_heads": 2, "dim": 128},
    {"heads": 16, "kv_heads": 1, "dim": 16},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [ALL, 20, 1])
def test_prompts(cuda, random, shape, window):
    case = Case(random, [70, 5, 40, 33], [70, 5, 9, 1], window=window, **shape)
    case.check(cuda, "attention_prefill")
    case.check(cuda, "attention_any")


def test_a_prompt_of_several_tiles(cuda, random):
    case = Case(random, [200], [150], heads=8, kv_heads=1, dim=16, window=ALL)
    case.check(cuda, "attention_prefill")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [ALL, 20])
@pytest.mark.parametrize("splits", [1, 4])
def test_decoding(cuda, random, shape, window, splits):
    """One page, a full page, several; more splits than some have pages."""
    case = Case(random, [1, 16, 17, 130], [1, 1, 1, 1], window=window, **shape)
    case.check(cuda, "attention_decode", splits)


@pytest.mark.parametrize("kernel", ["attention_prefill", "attention_decode", "attention_any"])
def test_large_logits(cuda, random, kernel):
    """Softmax must not overflow, and the sink counts once."""
    case = Case(random, [40], [1], heads=8, kv_heads=1, dim=64, window=ALL, size=30.0)
    case.sinks = bf16([-1e4, 1e4, 0, 3000, -3000, 1, 2, 3])
    case.check(cuda, kernel, 2 if kernel == "attention_decode" else 1)


def test_heads_that_attention_on_any_shape_takes(cuda, random):
    case = Case(random, [50, 3], [20, 3], heads=40, kv_heads=2, dim=24, window=30)
    case.check(cuda, "attention_any")


def test_shapes_that_no_kernel_takes_are_named(cuda, random):
    case = Case(random, [3], [1], heads=10, kv_heads=1, dim=24, window=ALL)
    for kernel in ("attention_prefill", "attention_decode"):
        with pytest.raises(Error, match=f"{kernel}: expected heads of 16, 32, 64 or 128, found 24"):
            case.check(cuda, kernel)
    case = Case(random, [3], [1], heads=20, kv_heads=1, dim=16, window=ALL)
    with pytest.raises(Error, match="at most 16 heads, found 20 heads on 1 KV heads"):
        case.check(cuda, "attention_decode")


def tables(cuda, position, frequencies, concentration):
    cos, sin = floats(len(position), len(frequencies)), floats(len(position), len(frequencies))
    arrays = [(position, "in"), (frequencies, "in"), (cos, "out"), (sin, "out")]
    cuda("rope_tables", arrays, [len(position), len(frequencies)], [concentration])
    return cos, sin


def test_rope_tables(cuda):
    position = np.array([0, 1, 4095, 131071], np.int32)
    frequencies = 150000.0 ** -(np.arange(32) / 32)
    cos, sin = tables(cuda, position, frequencies, 1.3466)
    angle = position[:, None] * frequencies
    assert np.all(np.abs(cos - 1.3466 * np.cos(angle)) <= 2.0**-23)
    assert np.all(np.abs(sin - 1.3466 * np.sin(angle)) <= 2.0**-23)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(8, 1, 64), (4, 2, 16), (3, 3, 24)])
def test_rope_and_store(cuda, random, heads, kv_heads, dim):
    tokens, width = 5, (heads + 2 * kv_heads) * dim
    qkv = random.normal(size=(tokens, width)).astype(np.float32)
    bias = bf16(random.normal(size=width))
    angle = random.uniform(-3, 3, (tokens, dim // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    slots = random.permutation(4 * PAGE)[:tokens].astype(np.int32)
    q = halves(tokens, heads, dim)
    kv = np.full((4, 2, kv_heads, PAGE, dim), 0x1234, np.uint16)
    arrays = [(a, "in") for a in (qkv, bias, cos, sin, slots)] + [(q, "out"), (kv, "inout")]
    cuda("rope_and_store", arrays, [tokens, heads, kv_heads, dim, 4])

    exact = (qkv + f64(bias)).reshape(tokens, -1, dim)
    first, second = exact[..., : dim // 2], exact[..., dim // 2 :]
    c, s = cos.astype(np.float64)[:, None], sin.astype(np.float64)[:, None]
    rotated = np.concatenate([first * c - second * s, second * c + first * s], -1)
    rotated[:, heads + kv_heads :] = exact[:, heads + kv_heads :]

    def near(found, wanted):
        return np.all(np.abs(f64(found) - wanted) <= 2.0**-8 * np.abs(wanted) + 2.0**-20)

    assert near(q, rotated[:, :heads])
    untouched = np.ones((4, PAGE), bool)
    for t, slot in enumerate(slots):
        page, place = divmod(slot, PAGE)
        untouched[page, place] = False
        stored = kv[page, :, :, place].reshape(2 * kv_heads, dim)
        assert near(stored, rotated[t, heads:])
    assert np.all(kv.transpose(0, 3, 1, 2, 4)[untouched] == 0x1234)

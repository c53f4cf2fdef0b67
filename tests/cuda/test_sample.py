"""Sampling on the device against a plain sort in float64."""

import numpy as np
import pytest
from cuda_calls import floats, ints

ROW = np.dtype(
    [
        ("temperature", "<f4"), ("top_p", "<f4"), ("min_p", "<f4"), ("top_k", "<i4"),
        ("repetition_penalty", "<f4"), ("presence_penalty", "<f4"), ("frequency_penalty", "<f4"),
        ("n_logprobs", "<i4"), ("uniform", "<f8"), ("history_begin", "<i4"), ("history_end", "<i4"),
        ("bias_begin", "<i4"), ("bias_end", "<i4"), ("mask", "<i4"), ("unused", "<i4"),
    ]
)  # fmt: skip
RESULT = np.dtype([("token", "<i4"), ("logprob", "<f4"), ("status", "<i4")])
OK, NAN, NOT_FINITE, NOTHING_LEFT = range(4)


def row(**options):
    result = np.zeros(1, ROW)
    result["top_p"] = result["repetition_penalty"] = 1
    result["mask"] = -1
    for name, value in options.items():
        result[name] = value
    return result


def sample(cuda, logits, rows, *, history=((), ()), bias=((), ()), masks=()):
    rows = np.ascontiguousarray(rows)
    count, vocab = logits.shape
    width = int(rows["n_logprobs"].max())
    results = np.empty(count, RESULT)
    top_ids, top_logprobs = ints(count, width), floats(count, width)
    lists = [np.array(history[0], np.int32), np.array(history[1], np.int32),
             np.array(bias[0], np.int32), np.array(bias[1], np.float32),
             np.array(masks, np.uint32)]  # fmt: skip
    arrays = [(logits, "in"), (floats(count, vocab), "out"), (rows, "in")]
    arrays += [(a, "in") for a in lists]
    arrays += [(results, "out"), (top_ids, "out"), (top_logprobs, "out")]
    sizes = [count, vocab, width, len(lists[0]), len(lists[2]), len(masks)]
    cuda("sample", arrays, sizes)
    return results, top_ids, top_logprobs


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - (logits.max() + np.log(np.exp(logits - logits.max()).sum()))


def candidates(logits, *, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """ids and weights, by a sort."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weight = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    if top_k:
        order = order[:top_k]
    mass = np.cumsum(weight[order])
    if top_p < 1:
        order = order[: np.searchsorted(mass, top_p * mass[-1] * (1 - 1e-9)) + 1]
    return np.sort(order[weight[order] >= min_p]), weight


@pytest.mark.parametrize("vocab", [1, 50, 1000, 5003])
def test_greedy_and_logprobs(cuda, random, vocab):
    logits = random.normal(size=(3, vocab)).astype(np.float32)
    logits[1] = np.round(logits[1])  # many are equal: the lowest id wins
    width = min(vocab, 20)
    rows = np.concatenate([row(n_logprobs=width), row(n_logprobs=min(width, 3)), row()])
    results, top_ids, top_logprobs = sample(cuda, logits, rows)
    assert np.all(results["status"] == OK)
    assert np.array_equal(results["token"], logits.argmax(-1))
    for r in range(3):
        exact = log_softmax(logits[r])
        assert abs(results["logprob"][r] - exact[results["token"][r]]) <= 1e-5
        count = rows["n_logprobs"][r]
        order = np.lexsort((np.arange(vocab), -logits[r]))[:count]
        assert np.array_equal(top_ids[r, :count], order)
        assert np.all(np.abs(top_logprobs[r, :count] - exact[order]) <= 1e-5)


FILTERS = [
    {},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 40, "top_p": 0.5},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.05},
    {"top_p": 1e-6},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("equal", [False, True])
def test_draws(cuda, random, options, temperature, equal):
    """The draw of a uniform number is where it falls among the candidates, by their ids."""
    logits = random.normal(size=300).astype(np.float32)
    if equal:
        logits = np.round(logits * 2) / 2
    ids, weight = candidates(logits, temperature=temperature, **options)
    share = np.cumsum(weight[ids]) / weight[ids].sum()
    uniform = random.uniform(size=40)
    uniform[:2] = 0.0, 1.0 - 2.0**-53
    uniform = uniform[np.abs(share[:, None] - uniform).min(0) > 1e-6]
    rows = np.concatenate([row(temperature=temperature, uniform=u, **options) for u in uniform])
    results, _, _ = sample(cuda, np.tile(logits, (len(rows), 1)), rows)
    assert np.all(results["status"] == OK)
    wanted = ids[np.searchsorted(share, uniform, side="right").clip(max=len(ids) - 1)]
    assert np.array_equal(results["token"], wanted)
    exact = log_softmax(logits)[results["token"]]
    assert np.all(np.abs(results["logprob"] - exact) <= 1e-5)


def test_bias_and_penalties(cuda, random):
    logits = random.normal(size=(2, 100)).astype(np.float32)
    history = ([3, 50, 7], [2, 0, 1])
    bias = ([9, 9, 11], [1.5, 0.25, -4.0])
    rows = np.concatenate(
        [
            row(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25,
                history_begin=0, history_end=3, bias_begin=0, bias_end=3),
            row(),
        ]
    )  # fmt: skip
    modified = logits[0].copy()
    modified[9] += 1.75
    modified[11] -= 4
    for token, count in zip(*history, strict=True):
        value = modified[token]
        modified[token] = value / 1.3 if value > 0 else value * 1.3
        modified[token] -= 0.5 * (count > 0) + 0.25 * count
    results, _, _ = sample(cuda, logits, rows, history=history, bias=bias)
    assert results["token"].tolist() == [modified.argmax(), logits[1].argmax()]
    exact = log_softmax(logits[0])[modified.argmax()]  # of the unmodified distribution
    assert abs(results["logprob"][0] - exact) <= 1e-5


def test_what_cannot_be_sampled(cuda):
    logits = np.zeros((4, 600), np.float32)
    logits[0, [77, 500]] = np.nan
    logits[1] = -np.inf
    logits[2, 5] = np.inf
    rows = np.concatenate([row(), row(), row(temperature=1), row(bias_begin=0, bias_end=600)])
    bias = (np.arange(600), np.full(600, -np.inf))
    results, _, _ = sample(cuda, logits, rows, bias=bias)
    assert results["status"].tolist() == [NAN, NOT_FINITE, NOT_FINITE, NOTHING_LEFT]
    assert results["token"][0] == 77


def test_tokens_that_cannot_be_are_not_drawn(cuda):
    logits = np.full((50, 64), -np.inf, np.float32)
    logits[:, [3, 40]] = 1.0
    uniform = np.linspace(0, 0.999, 50)
    rows = np.concatenate([row(temperature=1, uniform=u) for u in uniform])
    results, _, _ = sample(cuda, logits, rows)
    assert np.array_equal(results["token"], np.where(uniform < 0.5, 3, 40))


@pytest.mark.parametrize("vocab", [64, 70])
def test_masks(cuda, random, vocab):
    """Greedy rows take the best of what their mask leaves; logprobs are the model's own."""
    logits = random.normal(size=(5, vocab)).astype(np.float32)
    allowed = random.uniform(size=(3, vocab)) < 0.3
    allowed[:, 3] = True
    allowed[2] = False
    words = -(-vocab // 32)
    padded = np.zeros((3, words * 32), bool)
    padded[:, :vocab] = allowed
    masks = np.packbits(padded, axis=1, bitorder="little").view(np.uint32)
    bias = ([7], [np.float32(0.5)])
    rows = np.concatenate(
        [row(mask=0), row(), row(mask=1, bias_begin=0, bias_end=1), row(mask=2),
         row(mask=1, temperature=1, uniform=0.7)]
    )  # fmt: skip
    results, _, _ = sample(cuda, logits, rows, bias=bias, masks=masks)
    assert results["status"].tolist() == [OK, OK, OK, NOTHING_LEFT, OK]
    biased = logits[2].copy()
    biased[7] += 0.5
    wanted = [np.where(allowed[0], logits[0], -np.inf).argmax(), logits[1].argmax(),
              np.where(allowed[1], biased, -np.inf).argmax()]  # fmt: skip
    assert results["token"][:3].tolist() == wanted
    weight = np.where(allowed[1], np.exp(logits[4].astype(np.float64)), 0)
    assert results["token"][4] == np.searchsorted(np.cumsum(weight) / weight.sum(), 0.7)
    for r in (0, 1, 2, 4):
        exact = log_softmax(logits[r])[results["token"][r]]
        assert abs(results["logprob"][r] - exact) <= 1e-5

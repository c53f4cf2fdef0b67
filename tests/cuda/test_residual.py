"""Norms, routing, sums over experts, the embedding: against float64."""

import numpy as np
import pytest
from cuda_calls import bf16, f64, floats, group, rms_norm, route

from gptoss import Error, reference
from gptoss.model.bf16 import bf16_to_f32

EPS = 1e-5


def near_bf16(found, exact):
    """Rounded once from a float32 of a few roundings more."""
    error = np.abs(bf16_to_f32(found) - exact)
    return np.all(error <= (2.0**-8 + 2.0**-16) * np.abs(exact) + 1e-38)


def exact_norm(x, scale):
    return reference.rms_norm(x.astype(np.float64), f64(scale), EPS)


@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (3, 257), (2, 2880)], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_rms_norm(cuda, random, shape, size):
    x = (size * random.normal(size=shape)).astype(np.float32)
    scale = bf16(1 + 0.1 * random.normal(size=shape[1]))
    before = x.copy()
    assert near_bf16(rms_norm(cuda, x, scale, EPS), exact_norm(x, scale))
    assert np.array_equal(x, before)


def test_norm_of_some_rows(cuda, random):
    x = random.normal(size=(9, 64)).astype(np.float32)
    scale = bf16(np.ones(64))
    rows = np.array([7, 0, 3], np.int32)
    assert near_bf16(rms_norm(cuda, x, scale, EPS, rows), exact_norm(x[rows], scale))


@pytest.mark.parametrize("store", [False, True])
def test_norm_with_what_is_still_to_be_added(cuda, random, store):
    tokens, chosen, n = 5, 3, 96
    x, partial = random.normal(size=(2, tokens, n)).astype(np.float32)
    y = random.normal(size=(tokens * chosen - 2, n)).astype(np.float32)
    rows = random.permutation(tokens * chosen).reshape(tokens, chosen).astype(np.int32)
    rows[rows >= len(y)] = -1  # somebody else's experts
    weights = random.uniform(size=(tokens, chosen)).astype(np.float32)
    scale = bf16(np.ones(n))
    gathered = np.where(rows[..., None] >= 0, y[rows], 0.0).astype(np.float64)
    exact = x.astype(np.float64) + partial + (weights[..., None] * gathered).sum(1)
    now = x.copy()
    found = rms_norm(cuda, now, scale, EPS, partial=partial, expert_out=y, row_of_pair=rows,
                     weights=weights, store=store)  # fmt: skip
    assert np.all(np.abs(bf16_to_f32(found) - exact_norm(exact, scale)) <= 2.0**-8 * 4)
    if store:
        assert np.all(np.abs(now - exact) <= 6 * 2.0**-23 * (np.abs(exact) + 3))
    else:
        assert np.array_equal(now, x)
    sums = floats(tokens, n)
    arrays = [(y, "in"), (rows, "in"), (weights, "in"), (sums, "out")]
    cuda("combine", arrays, [tokens, n, chosen, len(y)])
    wanted = (weights[..., None] * gathered).sum(1)
    assert np.all(np.abs(sums - wanted) <= 6 * 2.0**-24 * (np.abs(wanted) + 4))


@pytest.mark.parametrize(
    ("rows", "n", "experts", "chosen"),
    [
        (1, 32, 1, 1),
        (1, 96, 32, 4),
        (5, 264, 8, 4),
        (3, 64, 33, 2),
        (70, 32, 128, 4),
        (2, 32, 256, 8),
    ],
)
def test_routing(cuda, random, rows, n, experts, chosen):
    x = random.normal(size=(rows, n)).astype(np.float32)
    scale = bf16(1 + 0.1 * random.normal(size=n))
    w, bias = bf16(random.normal(size=(experts, n))), bf16(random.normal(size=experts))
    t, ids, weights = route(cuda, x, scale, w, bias, chosen, EPS)
    normed = exact_norm(x, scale)
    assert near_bf16(t, normed)
    logits = normed @ f64(w).T + f64(bias)
    wanted, shares = reference.router_topk(logits, chosen)
    ordered = np.sort(logits, -1)[:, ::-1]
    clear = np.all(np.abs(np.diff(ordered, axis=-1)[:, :chosen]) > 1e-4, axis=-1)
    assert clear.mean() > 0.9
    assert np.array_equal(ids[clear], wanted[clear])
    assert np.all(np.abs(weights - shares)[clear] <= 1e-5)


@pytest.mark.parametrize(("rows", "experts", "chosen"), [(1, 32, 4), (9, 8, 4), (70, 5, 1)])
def test_grouping_in_the_same_launch(cuda, random, rows, experts, chosen):
    x = random.normal(size=(rows, 32)).astype(np.float32)
    w, bias = bf16(random.normal(size=(experts, 32))), bf16(random.normal(size=experts))
    options = (bf16(np.ones(32)), w, bias, chosen, EPS)
    _, ids, _, groups = route(cuda, x, *options, grouped=True)
    start, active, pair_of_row, row_of_pair = group(cuda, ids.reshape(-1), experts)
    assert np.array_equal(groups[0], start)
    assert np.array_equal(groups[1][: 1 + active[0]], active[: 1 + active[0]])
    assert np.array_equal(groups[2], pair_of_row)
    assert np.array_equal(groups[3], row_of_pair)


def test_equal_logits_go_to_the_lowest_expert(cuda):
    x, scale = np.ones((70, 32), np.float32), bf16(np.ones(32))
    w = np.zeros((40, 32), np.uint16)
    _, ids, weights = route(cuda, x, scale, w, bf16(np.zeros(40)), 4, EPS)
    assert np.all(ids == [0, 1, 2, 3]) and np.allclose(weights, 0.25)
    bias = np.zeros(40)
    bias[[5, 37]] = 3
    _, ids, _ = route(cuda, x[:1].copy(), scale, w, bf16(bias), 4, EPS)
    assert ids.tolist() == [[5, 37, 0, 1]]


def test_routing_of_nan_stays_in_bounds(cuda):
    x = np.full((3, 32), np.nan, np.float32)
    _, ids, _ = route(cuda, x, bf16(np.ones(32)), bf16(np.ones((5, 32))), bf16(np.ones(5)), 4, EPS)
    assert np.all((ids >= 0) & (ids < 5))


def test_what_does_not_fit_is_named(cuda):
    with pytest.raises(Error, match="at most 256 experts of which at most 8"):
        route(cuda, floats(1, 32), bf16(np.ones(32)), bf16(np.ones((300, 32))),
              bf16(np.ones(300)), 4, EPS)  # fmt: skip


def test_embedding(cuda, random):
    table = bf16(random.normal(size=(11, 40)))
    ids = np.array([10, 0, 3, 3], np.int32)
    x = floats(4, 40)
    cuda("embed", [(table, "in"), (ids, "in"), (x, "out")], [4, 40, 11])
    assert np.array_equal(x, bf16_to_f32(table[ids]))

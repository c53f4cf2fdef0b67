"""The kernels of cuda/testing.cu as functions of NumPy arrays."""

import numpy as np

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16


def bf16(values):
    return f32_to_bf16(np.ascontiguousarray(values, np.float32))


def f64(bits):
    return bf16_to_f32(bits).astype(np.float64)


def floats(*shape):
    return np.empty(shape, np.float32)


def halves(*shape):
    return np.empty(shape, np.uint16)


def ints(*shape):
    return np.empty(shape, np.int32)


def gemm(cuda, kernel, x, w, bias=None, add_to=None, **device):
    (m, k), n = x.shape, w.shape[0]
    y = floats(m, n) if add_to is None else np.array(add_to)
    use = "out" if add_to is None else "inout"
    arrays = [(x, "in"), (w, "in"), (bias, "in"), (y, use)]
    cuda(kernel, arrays, [m, n, k, add_to is not None], **device)
    return y


def pack(cuda, blocks, scales, paired):
    experts, rows, groups, _ = blocks.shape
    chunks = (groups + 1) // 2
    codes = np.empty((experts, rows // 16, chunks, 512), np.uint8)
    packed_scales = np.empty((experts, rows // 16, chunks, 32), np.uint8)
    arrays = [(blocks, "in"), (scales, "in"), (codes, "out"), (packed_scales, "out")]
    cuda("pack_experts", arrays, [experts, rows, groups * 32, paired])
    return codes, packed_scales


def group(cuda, ids, experts, first=0):
    pairs = ids.size
    start, active = ints(experts + 1), ints(experts + 1)
    pair_of_row, row_of_pair = ints(pairs), ints(pairs)
    arrays = [(ids, "in"), *((a, "out") for a in (start, active, pair_of_row, row_of_pair))]
    cuda("group_by_expert", arrays, [pairs, experts, first])
    return start, active, pair_of_row, row_of_pair


def experts(cuda, kernel, x, packed, bias, grouped, a_row, *, paired, limit=7.0, **device):
    start, active, pair_of_row, _ = grouped
    count, n = bias.shape
    pairs, k = len(pair_of_row), x.shape[1]
    out = halves(pairs, n // 2) if paired else floats(pairs, n)
    inputs = [x, *packed, bias, start, active, pair_of_row]
    arrays = [*((a, "in") for a in inputs), (out, "out")]
    cuda(kernel, arrays, [len(x), pairs, count, n, k, a_row, paired], [limit], **device)
    return out


def residual(x, partial, expert_out, row_of_pair, weights, store):
    """Arrays and sizes; x is written where `store`."""
    pairs, chosen = (0, 0) if weights is None else (len(expert_out), weights.shape[1])
    inputs = [(a, "in") for a in (partial, expert_out, row_of_pair, weights)]
    return [(x, "inout"), *inputs], [chosen, pairs, store]


def rms_norm(cuda, x, scale, eps, row_ids=None, *, partial=None, expert_out=None,
             row_of_pair=None, weights=None, store=False):  # fmt: skip
    of_x, n = x.shape
    rows = of_x if row_ids is None else len(row_ids)
    arrays, sizes = residual(x, partial, expert_out, row_of_pair, weights, store)
    y = halves(rows, n)
    arrays += [(scale, "in"), (row_ids, "in"), (y, "out")]
    cuda("rms_norm", arrays, [rows, n, of_x, *sizes], [eps])
    return y


def route(cuda, x, scale, w, bias, chosen, eps, *, grouped=False, **device):
    """t, ids, weights; grouped: and what group() gives, from the same launch."""
    (rows, n), experts = x.shape, len(w)
    t, ids, weights = halves(rows, n), ints(rows, chosen), floats(rows, chosen)
    arrays, sizes = residual(x, None, None, None, None, False)
    arrays += [(scale, "in"), (w, "in"), (bias, "in"), (t, "out"), (ids, "out"), (weights, "out")]
    groups = [ints(experts + 1), ints(experts + 1), ints(rows * chosen), ints(rows * chosen)]
    ended = np.zeros(1, np.int32) if grouped else None
    arrays += [(ended, "inout"), *((a if grouped else None, "out") for a in groups)]
    cuda("route", arrays, [rows, n, experts, chosen, *sizes], [eps], **device)
    assert ended is None or ended[0] == 0
    return (t, ids, weights, groups) if grouped else (t, ids, weights)


def attention(cuda, kernel, q, kv, sinks, pages, sequence, position, tiles, *, window, scale,
              splits=1, **device):  # fmt: skip
    """q [T, heads, dim], kv [pages, 2, kv_heads, 16, dim], pages [sequences, blocks]."""
    tokens, heads, dim = q.shape
    kv_heads = kv.shape[2]
    out = halves(tokens, heads, dim)
    parts = floats(len(tiles) * heads * splits * (dim + 2))
    ended = np.zeros(len(tiles) * kv_heads, np.int32)
    inputs = [q, kv, sinks, pages, sequence, position, tiles]
    arrays = [*((a, "in") for a in inputs), (out, "out"), (parts, "out"), (ended, "inout")]
    sizes = [tokens, len(tiles), heads, kv_heads, dim, *pages.shape, len(kv), window, splits]
    cuda(kernel, arrays, sizes, [scale], **device)
    assert not ended.any()
    return out

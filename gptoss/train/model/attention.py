"""Softmax attention with a sink, with a backward pass, that never holds the S × S matrix."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BLOCK = 64  # queries of all heads that are computed together: scores stay in the cache


def visible(documents: Tensor, queries: slice, keys: slice, window: int | None) -> Tensor:
    """Which keys a query sees, bool [B, 1, queries, keys]: not later, same document, in the window.

    documents: int64 [B, S]. A window of w holds the keys q − w + 1 … q, the query's own included.
    """
    device = documents.device
    row = torch.arange(queries.start, queries.stop, device=device)[:, None]
    distance = row - torch.arange(keys.start, keys.stop, device=device)[None]
    near = distance >= 0
    if window is not None:
        near &= distance < window
    same = documents[:, queries, None] == documents[:, None, keys]
    return (same & near)[:, None]


def spans(length: int, window: int | None) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that any of them can see."""
    found = []
    for at in range(0, length, BLOCK):
        end = min(length, at + BLOCK)
        first = 0 if window is None else max(0, at - window + 1)
        found.append((slice(at, end), slice(first, end)))
    return found


class BlockedSinkAttention(Function):
    """Row by row of the batch, block by block of queries, in plain matrix products.

    Query heads that share a KV head are rows of one product. Only the normaliser of each query is
    kept for the backward pass, which computes the scores s again (Dao et al. 2022,
    arXiv:2205.14135): lse = log(Σ exp(s) + exp(sink)), p = exp(s − lse), dv = pᵀ·do,
    ds = p·(do·vᵀ − Σ do·o), dq = ds·k, dk = dsᵀ·q; the sink, a score whose value is zero, gets
    −Σ exp(sink − lse)·(do·o).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor,
        documents: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        size, heads, length, dim = q.shape
        out = torch.empty(size, length, heads, dim, dtype=q.dtype, device=q.device).transpose(1, 2)
        lse = torch.empty(size, heads, length, dtype=sink.dtype, device=q.device)
        scaled = q * scale
        for rows, keys in spans(length, window):
            hidden = ~visible(documents, rows, keys, window)
            for b in range(size):
                scores = _scores(_fold(scaled, b, rows, k), k[b, :, keys], hidden[b], sink.dtype)
                p = scores.softmax(-1)
                # the largest weight is exp(its score − the sum's log)
                own = (scores.amax(-1) - p.amax(-1).log()).view(heads, -1)
                total = torch.logaddexp(own, sink[:, None])
                o = torch.bmm(p.to(v.dtype).flatten(1, 2), v[b, :, keys]).view(heads, -1, dim)
                out[b, :, rows] = o * (own - total).exp_()[..., None].to(o.dtype)
                lse[b, :, rows] = total
        ctx.save_for_backward(q, k, v, sink, documents, out, lse)
        ctx.window, ctx.scale = window, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, documents, out, lse = ctx.saved_tensors
        size, heads, length, dim = q.shape
        delta = (grad * out).sum(-1, dtype=sink.dtype)
        dsink = -((sink[None, :, None] - lse).exp_() * delta).sum((0, 2))
        scaled, dq = q * ctx.scale, torch.empty_like(q)
        dk, dv = (torch.zeros(k.shape, dtype=sink.dtype, device=k.device) for _ in range(2))
        for rows, keys in spans(length, ctx.window):
            hidden = ~visible(documents, rows, keys, ctx.window)
            for b in range(size):
                qb, gb = _fold(scaled, b, rows, k), _fold(grad, b, rows, k)
                scores = _scores(qb, k[b, :, keys], hidden[b], sink.dtype)
                like = (*scores.shape[:-1], 1)
                p = scores.sub_(lse[b, :, rows].reshape(like)).exp_()
                dv[b, :, keys] += torch.bmm(p.to(v.dtype).flatten(1, 2).transpose(1, 2), gb)
                dp = torch.bmm(gb, v[b, :, keys].transpose(1, 2)).to(sink.dtype).view_as(p)
                ds = dp.sub_(delta[b, :, rows].reshape(like)).mul_(p).to(q.dtype).flatten(1, 2)
                dq[b, :, rows] = (torch.bmm(ds, k[b, :, keys]) * ctx.scale).view(heads, -1, dim)
                dk[b, :, keys] += torch.bmm(ds.transpose(1, 2), qb)
        return dq, dk.to(k.dtype), dv.to(v.dtype), dsink, None, None, None


def _fold(x: Tensor, b: int, rows: slice, k: Tensor) -> Tensor:
    """Of row b of the batch: x [B, H, S, D] → [G, H/G·rows, D], the heads of a KV head together."""
    return x[b, :, rows].reshape(k.shape[1], -1, x.shape[-1])


def _scores(q: Tensor, k: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """q·kᵀ [G, H/G, rows, keys] of `dtype`, −inf where bool `hidden` [1, rows, keys] is set."""
    _, rows, keys = hidden.shape
    scores = torch.bmm(q, k.transpose(1, 2)).to(dtype).view(len(k), -1, rows, keys)
    return scores.masked_fill_(hidden, -math.inf)


@functools.lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def flex_sink_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor,
    documents: Tensor,
    window: int | None,
    scale: float,
    compiled: bool = True,
) -> Tensor:
    """Through FlexAttention, whose lse carries the sink: o·sigmoid(lse − sink).

    Blocks that nobody sees are not computed. Its backward pass exists on GPUs only.
    """
    from torch.nn.attention import flex_attention as module
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    AuxRequest = getattr(module, "AuxRequest", None)  # since PyTorch 2.9; return_lse before

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (documents[batch, query] == documents[batch, key])
        return seen if window is None else seen & (query - key < window)

    size, heads, length, _ = q.shape
    blocks = create_block_mask(mask, size, None, length, length, device=q.device.type)
    flex = _compiled_flex() if compiled else flex_attention
    shared = k.shape[1] < heads
    options: dict[str, Any] = {"block_mask": blocks, "scale": scale, "enable_gqa": shared}
    if AuxRequest is None:
        out, lse = flex(q, k, v, return_lse=True, **options)
    else:
        out, aux = flex(q, k, v, return_aux=AuxRequest(lse=True), **options)
        lse = aux.lse
    return out * (lse - sink[None, :, None]).sigmoid()[..., None].to(out.dtype)


def probabilities(
    q: Tensor, k: Tensor, sink: Tensor, documents: Tensor, window: int | None, scale: float
) -> Tensor:
    """The weights themselves, [B, H, S, S + 1] in sink's dtype; the last column is the sink's."""
    everything = slice(0, q.shape[2])
    hidden = ~visible(documents, everything, everything, window)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.transpose(-1, -2)).to(sink.dtype) * scale
    scores = scores.masked_fill(hidden, -math.inf)
    column = sink[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)


def sink_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor,
    documents: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """Attention within each document with one extra score per head that adds no value.

    q: [B, H, S, D]; k, v: [B, G, S, D], query head h reading KV head h // (H / G); sink: float32
    [H], −inf for none; documents: int64 [B, S]; `window` keys at most, or None for all. Returns
    [B, H, S, D].
    """
    if q.device.type == "cuda" and q.dtype in (torch.float32, torch.bfloat16):
        return flex_sink_attention(q, k, v, sink, documents, window, scale)
    return BlockedSinkAttention.apply(q, k, v, sink, documents, window, scale)

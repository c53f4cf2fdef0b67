"""Softmax attention with a sink, with a backward pass, that never holds the S × S matrix."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BLOCK = 128  # queries that are computed together on the CPU


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


class CpuSinkAttention(Function):
    """Through the CPU flash kernel, which knows no sinks, block of queries by block of queries.

    The kernel gives o and lse without the sink. With it, the normaliser is
    lse' = log(exp(lse) + exp(sink)) and the output o' = o·exp(lse − lse'). The kernel's backward
    computes p·(dp − Σ do·o) with p = exp(s − lse): handed lse' and o', it is the exact gradient,
    and that of the sink is −Σ exp(sink − lse')·(do·o').
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
        out = torch.empty_like(q)
        total = torch.empty(q.shape[:3], dtype=torch.float32)
        for rows, keys in spans(q.shape[2], window):
            o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                0.0,
                False,
                attn_mask=_additive(documents, rows, keys, window),
                scale=scale,
            )
            total[:, :, rows] = torch.logaddexp(lse, sink[None, :, None])
            out[:, :, rows] = o * (lse - total[:, :, rows]).exp_()[..., None].to(o.dtype)
        ctx.save_for_backward(q, k, v, sink, documents, out, total)
        ctx.window, ctx.scale = window, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, documents, out, total = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if min(dk.stride()) == 0:  # one KV head for all, expanded: its gradient is per head
            dk, dv = (torch.zeros(k.shape, dtype=k.dtype) for _ in range(2))
        for rows, keys in reversed(spans(q.shape[2], ctx.window)):
            part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, rows],
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, rows],
                total[:, :, rows],
                0.0,
                False,
                attn_mask=_additive(documents, rows, keys, ctx.window),
                scale=ctx.scale,
            )
            dq[:, :, rows] = part[0]
            dk[:, :, keys] += part[1]
            dv[:, :, keys] += part[2]
        delta = (grad * out).sum(-1, dtype=torch.float32)
        dsink = -((sink[None, :, None] - total).exp_() * delta).sum((0, 2))
        return dq, dk, dv, dsink, None, None, None


def _additive(documents: Tensor, rows: slice, keys: slice, window: int | None) -> Tensor:
    seen = visible(documents, rows, keys, window)
    return torch.zeros(seen.shape).masked_fill_(~seen, -math.inf)


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
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (documents[batch, query] == documents[batch, key])
        return seen if window is None else seen & (query - key < window)

    size, _, length, _ = q.shape
    blocks = create_block_mask(mask, size, None, length, length, device=q.device.type)
    flex = _compiled_flex() if compiled else flex_attention
    out, lse = flex(q, k, v, block_mask=blocks, scale=scale, return_lse=True)
    return out * (lse - sink[None, :, None]).sigmoid()[..., None].to(out.dtype)


def probabilities(
    q: Tensor, k: Tensor, sink: Tensor, documents: Tensor, window: int | None, scale: float
) -> Tensor:
    """The weights themselves, [B, H, S, S + 1] in sink's dtype; the last column is the sink's."""
    everything = slice(0, q.shape[2])
    hidden = ~visible(documents, everything, everything, window)
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

    q, k, v: [B, H, S, D]; sink: float32 [H], −inf for none; documents: int64 [B, S]; `window` keys
    at most, or None for all. Returns [B, H, S, D]. Written out where no kernel does it.
    """
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16):
        return CpuSinkAttention.apply(q, k, v, sink, documents, window, scale)
    if q.device.type == "cuda" and q.dtype in (torch.float32, torch.bfloat16):
        return flex_sink_attention(q, k, v, sink, documents, window, scale)
    weights = probabilities(q, k, sink, documents, window, scale)
    return weights[..., :-1].to(v.dtype) @ v

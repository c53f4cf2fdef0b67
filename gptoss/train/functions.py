"""Differentiable pieces of the model that need their own backward pass to be fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class SinkAttention(Function):
    """Softmax attention with one extra, dropped column per head, through the CPU flash kernel.

    q: [B, H, S, D]; k, v: [B, H, K, D]; sink: float32 [H]; mask: additive float32 [B, 1, S, K],
    with at least one visible key in each row.
    The kernel gives o and lse without the sink. With it, the normaliser is
    lse' = log(exp(lse) + exp(sink)) and the output o' = o·exp(lse − lse'). The kernel's backward
    computes p·(dp − Σ do·o) with p = exp(s − lse): handed lse' and o', it is the exact gradient,
    and that of the sink is −Σ exp(sink − lse')·(do·o').
    """

    BLOCK = 128

    @staticmethod
    def spans(queries: int, keys: int) -> list[tuple[slice, slice]]:
        """Blocks of queries, each with the keys not behind its last query (when S = K)."""
        if queries != keys:
            return [(slice(0, queries), slice(0, keys))]
        starts = range(0, queries, SinkAttention.BLOCK)
        ends = [min(queries, at + SinkAttention.BLOCK) for at in starts]
        return [(slice(at, end), slice(0, end)) for at, end in zip(starts, ends, strict=True)]

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        total = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        for rows, keys in SinkAttention.spans(q.shape[2], k.shape[2]):
            o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                0.0,
                False,
                attn_mask=mask[:, :, rows, keys],
                scale=scale,
            )
            total[:, :, rows] = torch.logaddexp(lse, sink[None, :, None])
            out[:, :, rows] = o * (lse - total[:, :, rows]).exp_()[..., None].to(o.dtype)
        ctx.save_for_backward(q, k, v, sink, mask, out, total)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, mask, out, total = ctx.saved_tensors
        spans = SinkAttention.spans(q.shape[2], k.shape[2])
        dq = torch.empty_like(q)
        dk, dv = torch.zeros(k.shape, dtype=k.dtype), torch.zeros(v.shape, dtype=v.dtype)
        for rows, keys in reversed(spans):
            part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, rows],
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, rows],
                total[:, :, rows],
                0.0,
                False,
                attn_mask=mask[:, :, rows, keys],
                scale=ctx.scale,
            )
            dq[:, :, rows] = part[0]
            if len(spans) == 1:
                dk, dv = part[1:]
            else:
                dk[:, :, keys] += part[1]
                dv[:, :, keys] += part[2]
        delta = (grad * out).sum(-1, dtype=torch.float32)
        dsink = -((sink[None, :, None] - total).exp_() * delta).sum((0, 2))
        return dq, dk, dv, dsink, None, None


def sink_attention(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Causal attention as in `SinkAttention`; written out where there is no such kernel."""
    if q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16):
        return SinkAttention.apply(q, k, v, sink, mask, scale)
    scores = (q @ k.transpose(-1, -2)).to(mask.dtype) * scale + mask
    column = sink[None, :, None, None].to(scores.dtype).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    return weights.to(v.dtype) @ v


class Dispatch(Function):
    """rows[i] = x[order[i] // k]: each token of x [T, H] copied to its k places of [T·k, H].

    `inverse` is the inverse permutation of `order`. Backward gathers and sums over k, which is
    faster than a scattered addition and has a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        rows = grad.index_select(0, inverse)
        return rows.view(-1, ctx.k, grad.shape[1]).sum(1), None, None, None


class Permute(Function):
    """x[order] for a permutation, whose backward is a gather by `inverse`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class ClampedSwiglu(Function):
    """h = g·sigmoid(1.702 g)·(l + 1), g = min(glu, limit), l = clamp(linear, ±limit).

    u: [N, 2·I], the first I columns glu, the rest linear (the caller has undone the interleaving).
    """

    ALPHA = 1.702

    @staticmethod
    def forward(ctx: Any, u: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.limit = limit
        glu, linear = u.chunk(2, -1)
        glu = glu.clamp(max=limit)
        linear = linear.clamp(-limit, limit)
        return (glu * ClampedSwiglu.ALPHA).sigmoid_().mul_(glu).mul_(linear.add_(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        limit = ctx.limit
        raw_glu, raw_linear = u.chunk(2, -1)
        glu = raw_glu.clamp(max=limit)
        linear = raw_linear.clamp(-limit, limit)
        gate = (glu * ClampedSwiglu.ALPHA).sigmoid_()
        swish = glu * gate
        # d swish / d glu = gate + alpha·swish·(1 − gate)
        slope = torch.addcmul(gate, swish, 1 - gate, value=ClampedSwiglu.ALPHA)
        du = torch.empty_like(u)
        torch.mul(slope.mul_(linear.add_(1)), grad, out=du[:, : glu.shape[1]])
        torch.mul(swish, grad, out=du[:, glu.shape[1] :])
        du[:, : glu.shape[1]].masked_fill_(raw_glu > limit, 0)
        du[:, glu.shape[1] :].masked_fill_(raw_linear.abs() > limit, 0)
        return du, None


class LinearCrossEntropy(Function):
    """See `linear_cross_entropy`; gradients are formed in the forward pass, chunk by chunk."""

    CHUNK = 1024  # tokens whose logits exist at a time

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, gradients: bool) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=x.device)
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
        for at in range(0, x.shape[0], LinearCrossEntropy.CHUNK):
            part = x[at : at + LinearCrossEntropy.CHUNK]
            target = targets[at : at + LinearCrossEntropy.CHUNK]
            counted = (target >= 0).to(wide)
            column = target.clamp(min=0)[:, None]
            logp = torch.log_softmax((part @ weight.T).to(wide), -1)
            total -= (logp.gather(1, column)[:, 0] * counted).sum()
            if gradients:
                dlogits = logp.exp_()
                dlogits.scatter_add_(1, column, dlogits.new_full(column.shape, -1.0))
                dlogits = dlogits.mul_(counted[:, None]).to(x.dtype)
                dx[at : at + LinearCrossEntropy.CHUNK] = dlogits @ weight
                dweight += dlogits.T @ part
        if gradients:
            ctx.save_for_backward(dx, dweight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        return dx * grad.to(dx.dtype), dweight * grad.to(dweight.dtype), None, None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of −log softmax(x·Wᵀ)[target], without ever holding all logits.

    x: [T, H], weight: [V, H] of x's dtype; targets: int64 [T], below 0 = not counted. Logits and
    softmax are float32 (float64 for float64 input).
    """
    return LinearCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())

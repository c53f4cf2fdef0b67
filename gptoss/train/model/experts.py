"""The arithmetic of a mixture of experts: tokens sorted by expert, one product per expert."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from gptoss.model.mxfp4 import BLOCK, VALUES

HAS_GROUPED = hasattr(F, "grouped_mm")  # since PyTorch 2.10


class ExpertAdapters(Protocol):
    """What fine-tuning adds to the products of one layer's experts (see `train.tune.lora`)."""

    def delta(self, which: str, expert: int, rows: Tensor) -> Tensor:
        """Added to rows·Wᵀ of `expert`. which: "mlp1" or "mlp2"; rows: [N, in] → [N, out].

        The columns are in the order of the checkpoint's rows: mlp1 has glu and linear in turn.
        """


def sort_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """For int64 [T, k]: places in order of expert, then token; the inverse; load int64 [E]."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return order, inverse, torch.bincount(flat, minlength=experts)


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


def halves(u: Tensor) -> Tensor:
    """Even columns (glu), then odd ones (linear): undoes the interleaving of mlp1's rows."""
    return torch.cat([u[..., 0::2], u[..., 1::2]], -1)


class QuantizedMatrix(nn.Module):
    """Expert matrices [E, R, K] kept in MXFP4, constant, in a quarter of bf16's bytes.

    blocks: uint8 [E, R, K/32, 16]; scales: uint8 [E, R, K/32], as in the original checkpoint.
    """

    blocks: Tensor
    scales: Tensor

    def __init__(self, experts: int, rows: int, columns: int) -> None:
        super().__init__()
        shape = (experts, rows, columns // BLOCK)
        self.register_buffer("blocks", torch.zeros((*shape, BLOCK // 2), dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(shape, dtype=torch.uint8))

    def expert(self, index: int, dtype: torch.dtype) -> Tensor:
        """The matrix [R, K] of one expert; exact in bf16 and wider, as long as 2^e is normal."""
        blocks, exponent = self.blocks[index], self.scales[index].int() - 127
        narrow = dtype if dtype in (torch.bfloat16, torch.float32) else torch.float32
        values = torch.from_numpy(VALUES).to(blocks.device, narrow)
        # byte → its two values, the low nibble's first, looked up as one word
        pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], 1)
        words = pairs.view(torch.int32 if narrow == torch.bfloat16 else torch.int64).flatten()
        w = words.index_select(0, blocks.flatten().int()).view(narrow)
        scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent).to(narrow)
        w = w.view(*exponent.shape, BLOCK).mul_(scale[..., None])
        return w.flatten(-2).to(dtype)


class PackedLinear(Function):
    """rows·Wᵀ for one expert of a `QuantizedMatrix`, unpacked again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, quantized: QuantizedMatrix, expert: int) -> Tensor:
        ctx.quantized, ctx.expert, ctx.dtype = quantized, expert, rows.dtype
        return rows @ quantized.expert(expert, rows.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.quantized.expert(ctx.expert, ctx.dtype), None, None


def expert_linear(
    rows: Tensor,
    load: Tensor,
    weight: Tensor | QuantizedMatrix,
    bias: Tensor,
    adapters: ExpertAdapters | None = None,
    which: str = "",
) -> Tensor:
    """rows·W[e]ᵀ + b[e], each row with its expert's. rows: [N, K], sorted by expert; load: [E].

    weight: [E, R, K] of the dtype of rows, or quantized; bias: [E, R]. Returns [N, R].
    """
    grouped = rows.device.type == "cuda" and rows.dtype == torch.bfloat16 and HAS_GROUPED
    if grouped and isinstance(weight, Tensor) and adapters is None:
        return grouped_linear(rows, load, weight, bias)
    outs = []
    for expert, part in enumerate(rows.split(load.tolist())):
        b = bias[expert]
        if isinstance(weight, Tensor):
            out = F.linear(part, weight[expert], b)
        elif len(part):
            out = PackedLinear.apply(part, weight, expert) + b
        else:
            continue
        if adapters is not None and len(part):
            out = out + adapters.delta(which, expert, part)
        outs.append(out)
    return torch.cat(outs)


def grouped_linear(rows: Tensor, load: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`expert_linear` in one grouped product, without waiting for the loads."""
    ends = load.cumsum(0).to(torch.int32)
    product = F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    return product + bias.repeat_interleave(load, 0, output_size=len(rows))

"""The loss over a large vocabulary without the logits of all tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class LinearCrossEntropy(Function):
    """See `linear_cross_entropy`; gradients are formed in the forward pass, chunk by chunk."""

    CHUNK = 1024  # tokens whose logits exist at a time

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, gradients: bool) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=x.device)
        learns = gradients and ctx.needs_input_grad[1]  # not where the unembedding is frozen
        dx = torch.empty_like(x) if gradients else None
        dweight = torch.zeros_like(weight, dtype=wide) if learns else None
        for at in range(0, x.shape[0], LinearCrossEntropy.CHUNK):
            part = x[at : at + LinearCrossEntropy.CHUNK]
            target = targets[at : at + LinearCrossEntropy.CHUNK]
            counted = (target >= 0).to(wide)
            column = target.clamp(min=0)[:, None]
            logp = torch.log_softmax((part @ weight.T).to(wide), -1)
            total -= (logp.gather(1, column)[:, 0] * counted).sum()
            if dx is not None:
                dlogits = logp.exp_()
                dlogits.scatter_add_(1, column, dlogits.new_full(column.shape, -1.0))
                dlogits = dlogits.mul_(counted[:, None]).to(x.dtype)
                dx[at : at + LinearCrossEntropy.CHUNK] = dlogits @ weight
                if dweight is not None:
                    dweight += dlogits.T @ part
        if dx is not None:
            ctx.save_for_backward(dx, None if dweight is None else dweight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.saved_tensors
        scaled = None if dweight is None else dweight * grad.to(dweight.dtype)
        return dx * grad.to(dx.dtype), scaled, None, None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens of −log softmax(x·Wᵀ)[target], without ever holding all logits.

    x: [T, H], weight: [V, H] of x's dtype; targets: int64 [T], below 0 = not counted. Logits and
    softmax are float32 (float64 for float64 input).
    """
    return LinearCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())

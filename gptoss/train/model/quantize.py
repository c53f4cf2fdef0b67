"""MXFP4 rounding inside training: the forward pass sees rounded experts, gradients pass through."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # values that share a scale


# Adding 1.5·2^23·step to x and taking it away again rounds x to a multiple of step, ties to even.
_MAGIC = 1.5 * 2**23
_EXPONENT_BITS = 0x7F800000


def _round_e2m1(x: Tensor) -> Tensor:
    """To the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with sign, saturating; ties to even mantissa.

    The spacing is half of the power of two at or below |x|, and .5 below 1.
    """
    power = (x.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    magic = power.clamp_(min=1).mul_(0.5 * _MAGIC)
    return (x + magic).sub_(magic).clamp_(-6, 6)


def round_mxfp4(w: Tensor) -> Tensor:
    """`w` float32 [..., K] rounded as `gptoss.model.mxfp4.quantize(w, "mse")` rounds it.

    The scale of the MX specification is 2^(floor(log2 max) − 2), under which values above 6 are
    cut off. Its half and its double are taken where they give less squared error.
    """
    blocks = w.reshape(-1, BLOCK)
    exponent = torch.frexp(blocks.abs().amax(1, keepdim=True))[1] - 3
    best = torch.zeros_like(blocks)
    least = torch.full_like(blocks[:, :1], torch.inf)
    for shift in (0, -1, 1):
        scale = torch.ldexp(torch.ones_like(least), exponent + shift)
        rounded = _round_e2m1(blocks * (1 / scale)).mul_(scale)
        error = (rounded - blocks).square_().sum(1, keepdim=True)
        better = error < least
        best = torch.where(better, rounded, best)
        least = torch.where(better, error, least)
    return best.view_as(w)


def straight_through(w: Tensor) -> Tensor:
    """`round_mxfp4(w)` with the gradient of the identity."""
    return w + (round_mxfp4(w.detach()) - w.detach())

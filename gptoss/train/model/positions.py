"""Where a token stands: rotary angles (YaRN) and vectors added to the embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptoss.model import ModelConfig


def rotary_frequencies(config: ModelConfig, scaled: bool = True) -> tuple[Tensor, float]:
    """Angle per token of each pair, float64 [head_dim/2], and the factor on cos and sin.

    `scaled`: YaRN (Peng et al. 2023, arXiv:2309.00071), by parts, with `low` and `high` not
    rounded, as the published model has it. Otherwise RoPE (Su et al. 2021, arXiv:2104.09864).
    """
    half = config.head_dim // 2
    base, factor = float(config.rope_theta), float(config.rope_scaling_factor)
    index = torch.arange(half, dtype=torch.float64)
    frequency = base ** (-index / half)
    if not scaled or factor <= 1:
        return frequency, 1.0

    def boundary(rotations: float) -> float:
        turns = config.initial_context_length / (rotations * 2 * math.pi)
        return half * math.log(turns) / math.log(base)

    low, high = boundary(config.rope_ntk_beta), boundary(config.rope_ntk_alpha)
    ramp = ((index - low) / (high - low)).clamp(0, 1)
    frequency = ramp * frequency / factor + (1 - ramp) * frequency
    return frequency, 0.1 * math.log(factor) + 1.0


def rotary_tables(
    config: ModelConfig, positions: Tensor, scaled: bool = True
) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`, float32 [*positions, head_dim/2], times YaRN's concentration."""
    frequency, concentration = rotary_frequencies(config, scaled)
    angles = positions[..., None].double() * frequency.to(positions.device)
    return (angles.cos() * concentration).float(), (angles.sin() * concentration).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + D/2). x: [B, S, H, D]; cos, sin: [B, S, 1, D/2]; keeps x's dtype."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """sin in even places, cos in odd ones, of position / 10000^(2i/size).

    Returns float32 [*positions, size]. Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """
    index = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None].double() * 10000.0 ** (-index / size)
    pairs = torch.stack([angles.sin(), angles.cos()], -1)
    return pairs.flatten(-2)[..., :size].float()

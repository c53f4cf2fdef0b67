"""How much arithmetic a token of training takes, and how much a device could do."""

from __future__ import annotations

import functools
from time import perf_counter

import torch

from gptoss.train.model.architecture import Architecture

# Dense bf16 and float32 TFLOP/s of GPUs from their makers' data sheets, by a part of the name that
# PyTorch reports. float32 without TF32, as PyTorch computes unless told otherwise.
_GPUS = {
    "B200": (2250, 75),
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "A10G": (70, 35),
    "A10": (125, 31),
    "L40S": (362, 91.6),
    "L4": (121, 30),
    "RTX 5090": (210, 105),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
}


def flops_per_token(architecture: Architecture, length: int) -> float:
    """Of forward and backward together, for rows of `length` tokens.

    6 per weight that takes part in a product of matrices (the chosen experts only, and the
    unembedding, but not the embedding table), and 12·heads·head_dim per layer and key seen: PaLM
    (Chowdhery et al. 2022), appendix B, where a token sees all `length` keys. Here it sees those
    that the causal mask and the window leave. What checkpointing computes again does not count.
    """
    c = architecture.config
    hidden, inner = c.hidden_size, c.intermediate_size
    weights = hidden * (c.query_size + 2 * c.kv_size) + c.query_size * hidden
    if architecture.feed_forward == "moe":
        weights += hidden * c.num_experts + c.experts_per_token * 3 * inner * hidden
    else:
        factor = 3 if architecture.feed_forward == "swiglu" else 2
        weights += factor * architecture.inner_size * hidden
    keys = 0.0
    for layer in range(c.num_hidden_layers):
        w = min(length, c.sliding_window) if architecture.is_sliding(layer) else length
        keys += w - w * (w - 1) / (2 * length)  # mean of min(i, w) over i = 1 … length
    total = c.num_hidden_layers * weights + c.vocab_size * hidden
    return 6 * total + 12 * c.query_size * keys


@functools.lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a product of matrices reaches: known for some GPUs, otherwise measured.

    The measurement takes about 0.2 s and holds for the threads that PyTorch has at the time.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, single) in _GPUS.items():
            if part in name:
                return (half if dtype == torch.bfloat16 else single) * 1e12
    size = 4096 if device.type == "cuda" else 768
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), perf_counter() + 0.2
    while perf_counter() < end:
        began = perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, perf_counter() - began)
    return 2 * size**3 / best

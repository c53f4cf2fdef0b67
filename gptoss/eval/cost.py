"""What a token costs, by the configuration alone: bytes that must be read, operations.

Norms, biases and activations are left out (under 0.1%).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.model import ModelConfig

BF16 = 2  # bytes
MXFP4 = 17 / 32  # bytes: 16 bytes of values and 1 of scale for 32 weights
Q8 = 34 / 32  # bytes: 32 of values and 2 of scale for 32 weights
KV_ELEMENT = {
    "f32": 4.0,
    "bf16": 2.0,
    "int8": 1 + 4 / 64,
}  # bytes; int8 with a scale per head of 64


def dense_weights(c: ModelConfig) -> int:
    """Weights that every token uses: attention and router of all layers, unembedding."""
    attention = (2 * c.query_size + 2 * c.kv_size) * c.hidden_size
    router = c.num_experts * c.hidden_size
    return c.num_hidden_layers * (attention + router) + c.vocab_size * c.hidden_size


def expert_weights(c: ModelConfig) -> int:
    """Weights of one expert in one layer."""
    return 3 * c.hidden_size * c.intermediate_size


def distinct_experts(c: ModelConfig, tokens: int) -> float:
    """Experts of a layer that `tokens` tokens touch, if the router chose evenly."""
    return c.num_experts * (1.0 - (1.0 - c.experts_per_token / c.num_experts) ** tokens)


def visible_keys(c: ModelConfig, depth: int) -> int:
    """Keys that the token at position `depth` sees, summed over the layers."""
    sliding = (c.num_hidden_layers + 1) // 2
    return sliding * min(depth + 1, c.sliding_window) + (c.num_hidden_layers - sliding) * (
        depth + 1
    )


@dataclass(frozen=True)
class Bytes:
    """How many bytes a weight or an element of the cache takes."""

    dense: float
    expert: float
    kv: float


def step_bytes(c: ModelConfig, batch: int, depth: int, size: Bytes) -> float:
    """Bytes that a decode step of `batch` sequences must read: each weight and each key once."""
    experts = distinct_experts(c, batch) * expert_weights(c) * size.expert
    keys = batch * visible_keys(c, depth) * 2 * c.kv_size * size.kv
    return dense_weights(c) * size.dense + c.num_hidden_layers * experts + keys


def token_operations(c: ModelConfig, depth: int, logits: bool) -> float:
    """Multiplications and additions for one token."""
    weights = dense_weights(c) + c.num_hidden_layers * c.experts_per_token * expert_weights(c)
    if not logits:
        weights -= c.vocab_size * c.hidden_size
    return 2.0 * weights + 4.0 * visible_keys(c, depth) * c.query_size


def bytes_of(info: Mapping[str, Any], expert_dtype: str) -> Bytes:
    """Of a backend that describes itself so (`info`), with experts "mxfp4" or "bf16"."""
    return Bytes(
        Q8 if info["dense_weights"].startswith("q8") else BF16,
        MXFP4 if expert_dtype == "mxfp4" else BF16,
        KV_ELEMENT[info["kv_cache"]],
    )

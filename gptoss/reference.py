"""The whole model in plain NumPy, to be read: the specification that kernels are tested against.

docs/spec.md says the same in words and formulas, with the checkpoint and the precision around it.
No cache, no threads, no tricks: `forward` runs a whole sequence through every layer. Sources, cited
where they apply: [card] OpenAI, gpt-oss model card, 2025, with its PyTorch code; [yarn] Peng et
al., "YaRN", 2023; [rope] Su et al., "RoFormer", 2021; [gqa] Ainslie et al., 2023; [sinks] Xiao et
al., "Attention sinks", 2023; [glu] Shazeer, 2020; [moe] Shazeer et al., 2017; [rms] Zhang and
Sennrich, "RMSNorm", 2019; [mx] OCP Microscaling Formats 1.0.

T tokens, H hidden, Q query heads, G key/value heads, D head size, E experts, k experts per token,
I intermediate, V vocabulary, L layers. Everything is computed in one dtype, float32 or float64:
that of `x`. Weights are exact in either (bf16 and MXFP4 values are float32 values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss.errors import Error, shown
from gptoss.model import ModelConfig, bf16_to_f32

if TYPE_CHECKING:
    from gptoss.checkpoint import TensorSource

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def forward(
    config: ModelConfig,
    source: TensorSource,
    token_ids: Sequence[int] | NDArray[np.integer[Any]],
    dtype: DTypeLike = np.float32,
) -> tuple[Floats, Floats]:
    """token_ids [T] → (logits [T, V], hidden [L, T, H]: the residual stream after each block).

    `dtype` is float32 or float64. Raises Error for ids outside the vocabulary.
    """
    x = embed(config, source, token_ids, dtype)  # [T, H]
    hidden = np.empty((config.num_hidden_layers, *x.shape), dtype)  # [L, T, H]
    for layer in range(config.num_hidden_layers):
        x = block(config, source, layer, x)  # [T, H]
        hidden[layer] = x
    return unembed(config, source, x), hidden


def embed(
    config: ModelConfig,
    source: TensorSource,
    token_ids: Sequence[int] | NDArray[np.integer[Any]],
    dtype: DTypeLike = np.float32,
) -> Floats:
    """token_ids [T] → their rows of the embedding [T, H]."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise Error(f"reference: expected dtype float32 or float64, found {np.dtype(dtype)}")
    ids = np.asarray(token_ids)  # [T]
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise Error(f"reference: expected a list of token ids, found {shown(token_ids)}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise Error(f"reference: expected ids from 0 to {config.vocab_size - 1}, found {wrong}")
    return bf16_to_f32(source.tensor("embedding.weight")[ids]).astype(dtype)  # [T, H]


def block(config: ModelConfig, source: TensorSource, layer: int, x: Floats) -> Floats:
    """One layer: the residual stream before it [T, H] → after it [T, H]."""
    x = x + attention_block(config, source, layer, x)
    return x + moe_block(config, source, layer, x)


def unembed(config: ModelConfig, source: TensorSource, x: Floats) -> Floats:
    """The residual stream after the last layer [T, H] → logits [T, V]."""
    t = rms_norm(x, weight(source, "norm.scale", x), config.rms_norm_eps)  # [T, H]
    return t @ weight(source, "unembedding.weight", x).T  # [T, H]·[H, V]


def attention_block(config: ModelConfig, source: TensorSource, layer: int, x: Floats) -> Floats:
    """What the attention of `layer` adds to the residual stream x: [T, H] → [T, H]."""
    name = f"block.{layer}.attn."
    tokens, size = len(x), config.head_dim
    t = rms_norm(x, weight(source, name + "norm.scale", x), config.rms_norm_eps)  # [T, H]
    q = linear(source, name + "q", t).reshape(tokens, -1, size)  # [T, Q, D]
    k = linear(source, name + "k", t).reshape(tokens, -1, size)  # [T, G, D]
    v = linear(source, name + "v", t).reshape(tokens, -1, size)  # [T, G, D]
    cos, sin = rope_tables(config, np.arange(tokens), x.dtype)  # [T, D/2]
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    window = config.sliding_window if config.is_sliding(layer) else None  # even layers slide [card]
    out = attention(q, k, v, weight(source, name + "sinks", x), window)  # [T, Q, D]
    return linear(source, name + "out", out.reshape(tokens, -1))  # [T, Q·D] → [T, H]


def moe_block(config: ModelConfig, source: TensorSource, layer: int, x: Floats) -> Floats:
    """What the experts of `layer` add to the residual stream after attention: [T, H] → [T, H]."""
    name = f"block.{layer}.mlp."
    t = rms_norm(x, weight(source, name + "norm.scale", x), config.rms_norm_eps)  # [T, H]
    experts, shares = router_topk(linear(source, name + "gate", t), config.experts_per_token)
    return moe(config, source, layer, t, experts, shares)


def routing(config: ModelConfig, source: TensorSource, layer: int, x: Floats) -> Ints:
    """The experts [T, k] that `layer` chooses for the residual stream x [T, H] before it."""
    x = x + attention_block(config, source, layer, x)
    name = f"block.{layer}.mlp."
    t = rms_norm(x, weight(source, name + "norm.scale", x), config.rms_norm_eps)  # [T, H]
    return router_topk(linear(source, name + "gate", t), config.experts_per_token)[0]


# The parts, each a formula.


def rms_norm(x: Floats, scale: Floats, eps: float) -> Floats:
    """x / √(mean x² + eps) · scale over the last axis: [..., H], [H] → [..., H]. [rms]"""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # [..., 1]
    return x / np.sqrt(mean_square + eps) * scale


def inverse_frequencies(config: ModelConfig) -> tuple[NDArray[np.float64], float]:
    """(radians per position of each rotary pair [D/2], factor on cos and sin). [yarn, 3.2 and 3.4]

    Pairs that turn more than beta_fast times within the initial context keep their frequency, those
    that turn less than beta_slow times are slowed by the scaling factor, those between are mixed.
    The bounds are not rounded to whole pairs. A factor of at most 1 means plain RoPE.
    """
    half = config.head_dim // 2
    pair = np.arange(half)  # [D/2]
    plain = config.rope_theta ** -(pair / half)  # [D/2]  [rope]
    factor = config.rope_scaling_factor
    if factor <= 1:
        return plain, 1.0
    low, high = yarn_bounds(config)
    ramp = np.clip((pair - low) / (high - low), 0, 1)  # [D/2]
    return ramp * plain / factor + (1 - ramp) * plain, 0.1 * math.log(factor) + 1


def yarn_bounds(config: ModelConfig) -> tuple[float, float]:
    """The pairs, as real numbers, that turn beta_fast and beta_slow times. [yarn, 3.2]"""

    def pair(turns: float) -> float:
        wave = config.initial_context_length / (turns * 2 * math.pi)  # positions per radian
        return config.head_dim / 2 * math.log(wave) / math.log(config.rope_theta)

    return pair(config.rope_ntk_beta), pair(config.rope_ntk_alpha)


def rope_tables(
    config: ModelConfig, positions: NDArray[np.integer[Any]], dtype: DTypeLike = np.float32
) -> tuple[Floats, Floats]:
    """positions [T] → (cos, sin) [T, D/2], both times YaRN's concentration.

    Angles are float64 whatever `dtype` is: at position 131071 float32 keeps only two decimals.
    """
    frequencies, concentration = inverse_frequencies(config)  # [D/2]
    angle = np.asarray(positions, np.float64)[:, None] * frequencies  # [T, D/2]
    cos, sin = np.cos(angle) * concentration, np.sin(angle) * concentration
    return cos.astype(dtype), sin.astype(dtype)


def apply_rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotates pairs (i, i + D/2) of each head: [T, heads, D], [T, D/2] twice → [T, heads, D]."""
    a, b = np.split(x, 2, axis=-1)  # [T, heads, D/2] each: half-split, not interleaved [card]
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, D/2]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q: Floats, k: Floats, v: Floats, sinks: Floats, window: int | None = None) -> Floats:
    """q [N, Q, D], k and v [T, G, D], sinks [Q] → [N, Q, D]. The queries are the last N tokens.

    Causal; with a window each query sees that many keys at most, its own among them [card]. Query
    head h reads key/value head h // (Q/G) [gqa]. A sink is one more logit per head, not scaled; its
    column takes part in the softmax and is then dropped, so that weights sum to less than 1
    [sinks, card].
    """
    heads, size = q.shape[1:]
    share = heads // k.shape[1]  # query heads per key/value head
    key = np.arange(len(k))  # [T]
    query = key[len(k) - len(q) :, None]  # [N, 1]
    visible = key <= query  # [N, T]
    if window is not None:
        visible &= key > query - window
    out = np.empty_like(q)  # [N, Q, D]
    for head in range(heads):
        logits = q[:, head] @ k[:, head // share].T / math.sqrt(size)  # [N, D]·[D, T] → [N, T]
        logits = np.where(visible, logits, -np.inf)  # [N, T]
        top = np.maximum(logits.max(axis=1, keepdims=True), sinks[head])  # [N, 1]: no overflow
        weights = np.exp(logits - top)  # [N, T]
        total = weights.sum(axis=1, keepdims=True) + np.exp(sinks[head] - top)  # [N, 1]
        out[:, head] = weights / total @ v[:, head // share]  # [N, T]·[T, D] → [N, D]
    return out


def router_topk(logits: Floats, count: int) -> tuple[Ints, Floats]:
    """logits [T, E] → (experts [T, k], best first; their shares [T, k], a softmax over those k).

    Of equal logits the lower expert wins. [card; moe, with the softmax after the choice]
    """
    experts = np.argsort(-logits, axis=-1, kind="stable")[:, :count]  # [T, k]
    chosen = np.take_along_axis(logits, experts, axis=-1)  # [T, k]
    shares = np.exp(chosen - chosen[:, :1])  # [T, k]: the first is the largest
    return experts, shares / shares.sum(axis=-1, keepdims=True)


def swiglu(u: Floats, limit: float) -> Floats:
    """u [..., 2I], gate and linear part interleaved → [..., I]. [glu; clamps and + 1: card]"""
    glu = np.minimum(u[..., 0::2], limit)  # [..., I]: no lower bound
    up = np.clip(u[..., 1::2], -limit, limit)  # [..., I]
    with np.errstate(over="ignore"):  # exp may become infinite, where the sigmoid is 0
        return glu / (1 + np.exp(-1.702 * glu)) * (up + 1)


def expert_mlp(
    t: Floats, mlp1: Floats, bias1: Floats, mlp2: Floats, bias2: Floats, limit: float
) -> Floats:
    """One expert: t [N, H], mlp1 [2I, H], bias1 [2I], mlp2 [H, I], bias2 [H] → [N, H]. [card]"""
    u = t @ mlp1.T + bias1  # [N, 2I]
    return swiglu(u, limit) @ mlp2.T + bias2  # [N, I]·[I, H] → [N, H]


def moe(
    config: ModelConfig,
    source: TensorSource,
    layer: int,
    t: Floats,
    experts: Ints,
    shares: Floats,
) -> Floats:
    """t [T, H], experts and shares [T, k] → Σ share · expert(t) [T, H], biases weighted too. [moe]

    The experts' MXFP4 matrices [mx] are dequantized one expert at a time, and only those chosen.
    """
    name = f"block.{layer}.mlp."
    bias1 = weight(source, name + "mlp1_bias", t)  # [E, 2I]
    bias2 = weight(source, name + "mlp2_bias", t)  # [E, H]
    y = np.zeros_like(t)  # [T, H]
    for expert in np.unique(experts):
        tokens, place = np.nonzero(experts == expert)  # [N] each: a token chooses an expert once
        mlp1 = cast(source.expert(name + "mlp1_weight", int(expert)), t)  # [2I, H]
        mlp2 = cast(source.expert(name + "mlp2_weight", int(expert)), t)  # [H, I]
        out = expert_mlp(
            t[tokens], mlp1, bias1[expert], mlp2, bias2[expert], config.swiglu_limit
        )  # [N, H]
        y[tokens] += shares[tokens, place, None] * out
    return y


def linear(source: TensorSource, name: str, t: Floats) -> Floats:
    """t·weightᵀ + bias: [T, in] → [T, out]."""
    return t @ weight(source, name + ".weight", t).T + weight(source, name + ".bias", t)


def weight(source: TensorSource, name: str, like: Floats) -> Floats:
    """A bf16 tensor of `source` in the dtype of `like`, exactly."""
    return cast(bf16_to_f32(source.tensor(name)), like)


def cast(a: NDArray[np.float32], like: Floats) -> Floats:
    """`a` in the dtype of `like`, without a copy where it has that already."""
    return a.astype(like.dtype, copy=False)

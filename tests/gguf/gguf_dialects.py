"""GGUF files of a checkpoint in either dialect, made with the `gguf` package and plain NumPy.

The conversions are written out once more here, value by value, after llama.cpp's and Ollama's own
converters: what they share with the package under test is the specification alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from gptoss.checkpoint.source import TensorSource
from gptoss.model import ModelConfig, bf16_to_f32


def ggml_block(nibbles: np.ndarray) -> np.ndarray:
    """Codes [..., 32] → bytes [..., 16] as ggml lays them out: values i and i + 16."""
    return (nibbles[..., :16] | nibbles[..., 16:] << 4).astype(np.uint8)


def codes_of(blocks: np.ndarray) -> np.ndarray:
    """Published bytes [..., 16] → codes [..., 32]."""
    out = np.empty((*blocks.shape[:-1], 32), np.uint8)
    out[..., 0::2], out[..., 1::2] = blocks & 15, blocks >> 4
    return out


def mxfp4_bytes(blocks: np.ndarray, scales: np.ndarray, ggml: bool) -> np.ndarray:
    """uint8 [E, rows, n, 16] and [E, rows, n] → [E, rows, 17 n]."""
    values = ggml_block(codes_of(blocks)) if ggml else blocks
    joined = np.concatenate([scales[..., None], values], axis=-1)
    return np.ascontiguousarray(joined.reshape(*scales.shape[:2], -1))


def add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, ollama: bool) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.experts_per_token)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_scaling_factor(config.rope_scaling_factor)
    writer.add_rope_scaling_orig_ctx_len(config.initial_context_length)
    if not ollama:
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)


def dense(source: TensorSource, name: str, kind: Type) -> tuple[np.ndarray, Type]:
    bits = source.tensor(name)
    if kind == Type.BF16:
        return np.ascontiguousarray(bits).view(np.uint8), kind
    values = bf16_to_f32(bits)
    if kind == Type.F32:
        return values, kind
    return gguf.quants.quantize(values, kind), kind


def write(
    source: TensorSource,
    path: Path,
    *,
    ollama: bool = False,
    kind: Type = Type.BF16,
    fused_qkv: Type | None = None,
    split_max_tensors: int = 0,
    small_first_shard: bool = False,
    tokenizer: dict[str, Any] | None = None,
    **metadata: Any,
) -> Path:
    """One file, or several of at most split_max_tensors. kind: how large matrices are stored.
    fused_qkv: store q, k and v together, so."""
    config = source.config
    name = "gptoss" if ollama else "gpt-oss"
    writer = gguf.GGUFWriter(
        path, name, split_max_tensors=split_max_tensors, small_first_shard=small_first_shard
    )
    add_metadata(writer, config, ollama)
    for key, value in {**(tokenizer or {}), **metadata}.items():
        add_value(writer, key, value)

    def add(theirs: str, data: np.ndarray, raw: Type) -> None:
        shape = None if raw in (Type.F32, Type.F16) else data.shape
        writer.add_tensor(theirs, data, raw_shape=shape, raw_dtype=raw)

    def add_dense(theirs: str, ours: str, as_kind: Type) -> None:
        add(theirs, *dense(source, ours, as_kind))

    add_dense("token_embd.weight", "embedding.weight", kind)
    add_dense("output_norm.weight", "norm.scale", Type.F32)
    add_dense("output.weight", "unembedding.weight", kind)
    out, norm = ("attn_out", "ffn_norm") if ollama else ("attn_output", "post_attention_norm")
    small = Type.BF16 if ollama else Type.F32
    for layer in range(config.num_hidden_layers):
        ours, blk = f"block.{layer}.", f"blk.{layer}."
        add_dense(blk + "attn_norm.weight", ours + "attn.norm.scale", Type.F32)
        for end, as_kind in (("weight", kind), ("bias", small)):
            parts = [source.tensor(f"{ours}attn.{part}.{end}") for part in "qkv"]
            if fused_qkv is not None:
                joined = bf16_to_f32(np.concatenate(parts))
                add(f"{blk}attn_qkv.{end}", gguf.quants.quantize(joined, fused_qkv), fused_qkv)
            else:
                for part in "qkv":
                    add_dense(f"{blk}attn_{part}.{end}", f"{ours}attn.{part}.{end}", as_kind)
            add_dense(f"{blk}{out}.{end}", f"{ours}attn.out.{end}", as_kind)
            router = Type.BF16 if ollama else Type.F32
            add_dense(f"{blk}ffn_gate_inp.{end}", f"{ours}mlp.gate.{end}", router)
        sinks = "attn_sinks" if ollama else "attn_sinks.weight"
        add_dense(blk + sinks, ours + "attn.sinks", Type.F32)
        add_dense(f"{blk}{norm}.weight", ours + "mlp.norm.scale", Type.F32)
        one, two = ours + "mlp.mlp1_", ours + "mlp.mlp2_"
        blocks, scales = (source.tensor(one + "weight" + half) for half in (".blocks", ".scales"))
        bias = bf16_to_f32(source.tensor(one + "bias"))
        if ollama:
            packed = mxfp4_bytes(blocks, scales, ggml=False)
            add(blk + "ffn_gate_up_exps.weight", packed, Type.MXFP4)
            add_dense(blk + "ffn_gate_up_exps.bias", one + "bias", Type.BF16)
        else:
            for first, half_name in enumerate(("gate", "up")):
                packed = mxfp4_bytes(blocks[:, first::2], scales[:, first::2], ggml=True)
                add(f"{blk}ffn_{half_name}_exps.weight", packed, Type.MXFP4)
                add(f"{blk}ffn_{half_name}_exps.bias", bias[:, first::2].copy(), Type.F32)
        blocks, scales = (source.tensor(two + "weight" + half) for half in (".blocks", ".scales"))
        add(blk + "ffn_down_exps.weight", mxfp4_bytes(blocks, scales, not ollama), Type.MXFP4)
        add_dense(blk + "ffn_down_exps.bias", two + "bias", small)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if ollama:
        renumber_mxfp4(path)
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def renumber_mxfp4(path: Path) -> None:
    """Give MXFP4 tensors the number 4 that Ollama gave them before ggml had 39."""
    data = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        if tensor.tensor_type == Type.MXFP4:
            field = tensor.field
            place = field.offset + sum(int(part.nbytes) for part in field.parts[:4])
            assert data[place] == 39
            data[place] = 4
    path.write_bytes(data)

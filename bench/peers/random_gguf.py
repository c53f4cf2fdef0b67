"""A gpt-oss-20b of random weights as GGUF, for peers that read that format.

    PYTHON bench/peers/random_gguf.py OUT.gguf --layers 8

needs the registry package gguf. Experts are MXFP4; attention, embedding and output Q8_0, as the
common conversions have them. The vocabulary is a dummy: byte tokens and numbered ones.
"""

from __future__ import annotations

import argparse

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, VOCABULARY = 2880, 64, 8, 64, 32, 201_088
BLOCK = 32
random = np.random.default_rng(0)


def q8_0(*shape: int) -> np.ndarray:
    """Blocks of a float16 scale and 32 int8, about 1/sqrt(columns) in size."""
    blocks = random.integers(0, 256, (np.prod(shape) // BLOCK, 34), np.uint8)
    scale = np.float16(1.0 / (74.0 * np.sqrt(shape[-1])))
    blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def mxfp4(*shape: int) -> np.ndarray:
    """Blocks of an e8m0 scale and 32 e2m1 codes."""
    blocks = random.integers(0, 256, (np.prod(shape) // BLOCK, 17), np.uint8)
    blocks[:, 0] = 119 + blocks[:, 0] % 3
    return blocks.reshape(*shape[:-1], -1)


def f32(*shape: int, mean: float = 0.0, deviation: float = 0.02) -> np.ndarray:
    return (mean + deviation * random.standard_normal(shape)).astype(np.float32)


def layer_tensors(n: int) -> list[tuple[str, Type, tuple[int, ...]]]:
    """(name, type, shape) of one layer's tensors."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    found: list[tuple[str, Type, tuple[int, ...]]] = [
        ("attn_norm.weight", Type.F32, (HIDDEN,)),
        ("attn_sinks.weight", Type.F32, (HEADS,)),
        ("post_attention_norm.weight", Type.F32, (HIDDEN,)),
        ("ffn_gate_inp.weight", Type.F32, (EXPERTS, HIDDEN)),
        ("ffn_gate_inp.bias", Type.F32, (EXPERTS,)),
    ]
    for name, rows, columns in (
        ("attn_q", q, HIDDEN),
        ("attn_k", kv, HIDDEN),
        ("attn_v", kv, HIDDEN),
        ("attn_output", HIDDEN, q),
    ):
        found += [
            (f"{name}.weight", Type.Q8_0, (rows, columns)),
            (f"{name}.bias", Type.F32, (rows,)),
        ]
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        found += [
            (f"{name}.weight", Type.MXFP4, (EXPERTS, HIDDEN, HIDDEN)),
            (f"{name}.bias", Type.F32, (EXPERTS, HIDDEN)),
        ]
    return [(f"blk.{n}.{name}", type_, shape) for name, type_, shape in found]


def make(name: str, type_: Type, shape: tuple[int, ...]) -> np.ndarray:
    if type_ == Type.Q8_0:
        return q8_0(*shape)
    if type_ == Type.MXFP4:
        return mxfp4(*shape)
    return f32(*shape, mean=1.0 if "norm" in name else 0.0)


def describe(writer: gguf.GGUFWriter, layers: int) -> None:
    """Hyper-parameters and a vocabulary that loads."""
    writer.add_name("gpt-oss, random weights")
    writer.add_block_count(layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_expert_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(4)
    writer.add_sliding_window(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(150_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    # Byte-level BPE writes bytes that are not printable characters as those from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    tokens = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    tokens += [f"token{i}" for i in range(len(tokens), VOCABULARY)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(199_998)
    writer.add_eos_token_id(200_002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=24)
    arguments = parser.parse_args()
    tensors: list[tuple[str, Type, tuple[int, ...]]] = [
        ("token_embd.weight", Type.Q8_0, (VOCABULARY, HIDDEN)),
        ("output.weight", Type.Q8_0, (VOCABULARY, HIDDEN)),
        ("output_norm.weight", Type.F32, (HIDDEN,)),
    ]
    for n in range(arguments.layers):
        tensors += layer_tensors(n)
    writer = gguf.GGUFWriter(arguments.out, "gpt-oss")
    describe(writer, arguments.layers)
    for name, type_, shape in tensors:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        if type_ == Type.F32:
            stored, kind = shape, np.dtype(np.float32)
        else:
            stored, kind = (
                (*shape[:-1], shape[-1] // per_block * block_bytes),
                np.dtype(np.uint8),
            )
        nbytes = int(np.prod(shape)) // per_block * block_bytes
        writer.add_tensor_info(name, stored, kind, nbytes, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, type_, shape in tensors:
        writer.write_tensor_data(make(name, type_, shape))
    writer.close()


if __name__ == "__main__":
    main()

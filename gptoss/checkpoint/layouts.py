"""How the published checkpoints store a model: stored tensors against the seam's names."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from gptoss.checkpoint.source import TensorInfo, seam_tensors
from gptoss.errors import Error, shown
from gptoss.model import ModelConfig

LAYOUTS = ("original", "huggingface", "huggingface-bf16")

_HF_OUTER = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
_HF_LAYER = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.q.": "self_attn.q_proj.",
    "attn.k.": "self_attn.k_proj.",
    "attn.v.": "self_attn.v_proj.",
    "attn.out.": "self_attn.o_proj.",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.": "mlp.router.",
    "mlp.mlp1_weight.": "mlp.experts.gate_up_proj_",
    "mlp.mlp2_weight.": "mlp.experts.down_proj_",
    "mlp.mlp1_weight": "mlp.experts.gate_up_proj",
    "mlp.mlp2_weight": "mlp.experts.down_proj",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
_HF_UNPACKED = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
_HF_MISNAMED = tuple(f"{name}_blocks" for name in _HF_UNPACKED)
_FLOATS = ("BF16", "F16", "F32")
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. parts: the seam's tensors it holds, one after another along its rows.

    transposed: stored [E, K, rows], where the seam has [E, rows, K].
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[TensorInfo, ...]
    transposed: bool = False


def expert_dtype(layout: str) -> str:
    """Which experts a layout stores: "mxfp4" or "bf16". Raises Error for an unknown layout."""
    if layout not in LAYOUTS:
        raise Error(f"layout: expected one of {', '.join(LAYOUTS)}, found {shown(layout)}")
    return "bf16" if layout == "huggingface-bf16" else "mxfp4"


def stored_tensors(config: ModelConfig, layout: str) -> list[Stored]:
    """Every tensor that a checkpoint of this layout holds, layer by layer."""
    seam = seam_tensors(config, expert_dtype(layout))
    if layout == "original":
        return [
            Stored(name, dtype, shape, _original_parts(name, seam))
            for name, (dtype, shape) in config.tensor_shapes().items()
        ]
    stored = []
    for info in seam.values():
        transposed = layout == "huggingface-bf16" and info.name.endswith("_weight")
        shape = (info.shape[0], info.shape[2], info.shape[1]) if transposed else info.shape
        name = huggingface_name(info.name)
        stored.append(Stored(name, info.dtype, shape, (info,), transposed))
    return stored


def _original_parts(name: str, seam: dict[str, TensorInfo]) -> tuple[TensorInfo, ...]:
    if ".attn.qkv." not in name:
        return (seam[name],)
    return tuple(seam[name.replace(".qkv.", f".{part}.")] for part in "qkv")


def huggingface_name(name: str) -> str:
    """Hugging Face's name of a tensor of the seam."""
    if name in _HF_OUTER:
        return _HF_OUTER[name]
    _, layer, rest = name.split(".", 2)
    prefix = next(ours for ours in _HF_LAYER if rest.startswith(ours))
    return f"model.layers.{layer}.{_HF_LAYER[prefix]}{rest.removeprefix(prefix)}"


def detect(dtypes: Mapping[str, str]) -> str | None:
    """The layout that tensors (name → dtype) belong to, None where they are of no gpt-oss."""
    theirs = sum(name.startswith("model.") or name == "lm_head.weight" for name in dtypes)
    ours = sum(name.startswith("block.") or name in _HF_OUTER for name in dtypes)
    if theirs == 0 and ours == 0:
        return None
    if ours >= theirs:
        return "original"
    for name, dtype in dtypes.items():
        if name.endswith(_HF_UNPACKED) or (name.endswith(_HF_MISNAMED) and dtype in _FLOATS):
            return "huggingface-bf16"
    return "huggingface"


def rename_misnamed(stored: list[Stored], names: Container[str]) -> list[Stored]:
    """`stored` with the names that transformers 5 gives to experts which it has dequantized.

    It saves the bf16 matrix under the name of the quantized one, `gate_up_proj_blocks`.
    """
    return [
        replace(tensor, name=tensor.name + "_blocks")
        if tensor.transposed and tensor.name not in names and tensor.name + "_blocks" in names
        else tensor
        for tensor in stored
    ]


def shard_name(layout: str, number: int, count: int) -> str:
    """File `number` (from 1) of `count`, as the published checkpoints are named."""
    if count == 1:
        return "model.safetensors"
    dashes = "--" if layout == "original" else "-"
    return f"model{dashes}{number:05d}-of-{count:05d}.safetensors"


def parse_shard(name: str) -> tuple[str, int, int] | None:
    """(stem, number, count) of a shard's file name, None for any other name."""
    match = _SHARD.fullmatch(name)
    if match is None or max(len(match[2]), len(match[3])) > 9:
        return None
    return match[1], int(match[2]), int(match[3])

"""Writing any source as one GGUF file in llama.cpp's dialect, its tokenizer inside."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from gptoss import files
from gptoss.checkpoint.source import Array, TensorInfo, TensorSource
from gptoss.checkpoint.write import Progress, check_space, new_directory
from gptoss.errors import Error, shown
from gptoss.gguf import types
from gptoss.gguf.blocks import BLOCK, pack_mxfp4, quantize_q8_0
from gptoss.gguf.reader import GgufFile
from gptoss.gguf.writer import Metadata, encode_header, padding, tensor_bytes
from gptoss.model import bf16_to_f32
from gptoss.tokenizer import HARMONY_SIZE, gguf_metadata, load_vocabulary
from gptoss.tokenizer.files import chat_template, holds_vocabulary

FILE = "model.gguf"
WEIGHTS = ("published", "q8")
ARCHITECTURE = "gpt-oss"
_SWIGLU_LIMIT = 7.0  # what readers of the format assume
_WRITE_BYTES = 1 << 24
_Q8_0_LIMIT = 127 * 65_504.0  # the largest integer times the largest float16
_FILE_TYPES = {"mxfp4": 38, "bf16": 32}  # llama.cpp's: "MXFP4 MoE" and "BF16"
_OUTER = {
    "embedding.weight": "token_embd.weight",
    "norm.scale": "output_norm.weight",
    "unembedding.weight": "output.weight",
}
_LAYER = {
    "attn.norm.scale": "attn_norm.weight",
    "attn.q.": "attn_q.",
    "attn.k.": "attn_k.",
    "attn.v.": "attn_v.",
    "attn.sinks": "attn_sinks.weight",
    "attn.out.": "attn_output.",
    "mlp.norm.scale": "post_attention_norm.weight",
    "mlp.gate.": "ffn_gate_inp.",
    "mlp.mlp2_": "ffn_down_exps.",
}


class Written(NamedTuple):
    """A tensor of the file. rows: which of the rows of the seam's tensor it holds."""

    name: str
    type: str
    shape: tuple[int, ...]
    info: TensorInfo
    rows: slice

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.type, self.shape)


def write_gguf(
    source: TensorSource,
    destination: str | os.PathLike[str],
    weights: str = "published",
    progress: Progress | None = None,
) -> list[Path]:
    """Write `source` as the new file `destination`, *.gguf, or as model.gguf in a new folder.

    Experts keep their bits. weights: "published" (bf16, exact) or "q8" (Q8_0) for attention and
    unembedding; what is stored in Q8_0 stays as it is then. Norms, biases, sinks and the router
    are float32, as llama.cpp computes with them. The file appears in one piece. `progress` is
    called with (bytes done, bytes in all). Raises Error.
    """
    if weights not in WEIGHTS:
        raise Error(f"weights: expected one of {', '.join(WEIGHTS)}, found {shown(weights)}")
    if source.panels is not None:
        raise Error(
            f"{source.name}: a packed model cannot be written in another layout; use the "
            f"checkpoint that it was made from"
        )
    tensors = list(written_tensors(source, weights))
    header = encode_header(
        metadata_of(source), [(tensor.name, tensor.type, tensor.shape) for tensor in tensors]
    )
    total = sum(tensor.nbytes for tensor in tensors)

    def write(file: BinaryIO) -> None:
        file.write(header)
        done = 0
        for tensor in tensors:
            written = 0
            for piece in _pieces(source, tensor):
                file.write(piece)
                written += len(piece)
                if progress is not None:
                    progress(done + written, total)
            if written != tensor.nbytes:
                raise Error(f"{source.name}: {tensor.name}: {written} bytes, not {tensor.nbytes}")
            file.write(bytes(padding(written)))
            done += written

    target = Path(os.path.abspath(destination))
    if target.suffix != ".gguf":
        with new_directory(target, len(header) + total) as (folder, partial):
            files.write_in_one_piece(partial / FILE, write)
        return [folder / FILE]
    if target.exists():
        raise Error(f"{target}: expected a new file, found something there")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, len(header) + total)
        files.write_in_one_piece(target, write)
    except OSError as error:
        raise Error(f"{target}: cannot be written: {files.reason(error)}") from error
    return [target]


def metadata_of(source: TensorSource) -> Metadata:
    """What the file says of the model. Raises Error where llama.cpp has no words for it."""
    config = source.config
    if config.swiglu_limit != _SWIGLU_LIMIT:
        raise Error(
            f"{source.name}: swiglu_limit: expected {_SWIGLU_LIMIT}, which GGUF takes for granted, "
            f"found {config.swiglu_limit}"
        )
    integers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_count": config.num_experts,
        "expert_used_count": config.experts_per_token,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": config.sliding_window,
        "vocab_size": config.vocab_size,
    }
    reals = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    found: Metadata = [
        ("general.architecture", types.TEXT, ARCHITECTURE),
        ("general.type", types.TEXT, "model"),
        ("general.name", types.TEXT, Path(source.name).stem or "gpt-oss"),
        ("general.quantization_version", types.U32, 2),
        ("general.file_type", types.U32, _FILE_TYPES[source.expert_dtype]),
    ]
    if config.rope_scaling_factor > 1:
        found.append((f"{ARCHITECTURE}.rope.scaling.type", types.TEXT, "yarn"))
        integers["rope.scaling.original_context_length"] = config.initial_context_length
        reals["rope.scaling.factor"] = config.rope_scaling_factor
        reals["rope.scaling.yarn_beta_slow"] = config.rope_ntk_alpha
        reals["rope.scaling.yarn_beta_fast"] = config.rope_ntk_beta
    found += [(f"{ARCHITECTURE}.{key}", types.U32, value) for key, value in integers.items()]
    found += [(f"{ARCHITECTURE}.{key}", types.F32, value) for key, value in reals.items()]
    return found + _tokenizer(source)


def _tokenizer(source: TensorSource) -> Metadata:
    config, directory = source.config, source.directory
    if config.vocab_size != HARMONY_SIZE and (directory is None or not holds_vocabulary(directory)):
        ids = list(config.eos_token_ids)
        none: Metadata = [("tokenizer.ggml.model", types.TEXT, "none")]
        return none + ([("tokenizer.ggml.eos_token_ids", types.I32, ids)] if ids else [])
    vocabulary = load_vocabulary(directory, config)
    vocabulary = dataclasses.replace(
        vocabulary,
        eos_ids=vocabulary.eos_ids | set(config.eos_token_ids),
        conversation_format=source.conversation_format or vocabulary.conversation_format,
    )
    return gguf_metadata(vocabulary, _template(directory))


def _template(directory: Path | None) -> str | None:
    if directory is None or not directory.is_file():
        return chat_template(directory) if directory is not None else None
    file = GgufFile(directory)
    try:
        return file.text("tokenizer.chat_template", "") or None
    finally:
        file.close()


def written_tensors(source: TensorSource, weights: str) -> Iterator[Written]:
    """The tensors of the file, in order."""
    whole = slice(None)
    for info in source.tensors():
        if info.name.endswith(".scales") and info.dtype == "U8":
            continue  # written together with their blocks
        shape, kind = info.shape, "BF16"
        if info.dtype == "U8":
            shape, kind = (*shape[:2], shape[2] * BLOCK), "MXFP4"
        elif len(shape) == 1 or info.name.endswith("_bias") or ".mlp.gate." in info.name:
            kind = "F32"
        elif weights == "q8" and len(shape) == 2 and info.name != "embedding.weight":
            kind = "Q8_0" if shape[1] % BLOCK == 0 else "BF16"
        if info.name in _OUTER:
            yield Written(_OUTER[info.name], kind, shape, info, whole)
            continue
        _, layer, rest = info.name.split(".", 2)
        if rest.startswith("mlp.mlp1_"):
            end = rest.removeprefix("mlp.mlp1_").partition(".")[0]
            half = (shape[0], shape[1] // 2, *shape[2:])
            for first, name in enumerate(("gate", "up")):
                rows = slice(first, None, 2)
                yield Written(f"blk.{layer}.ffn_{name}_exps.{end}", kind, half, info, rows)
            continue
        prefix = next(ours for ours in _LAYER if rest.startswith(ours))
        end = rest.removeprefix(prefix).partition(".")[0]
        yield Written(f"blk.{layer}.{_LAYER[prefix]}{end}", kind, shape, info, whole)


def _pieces(source: TensorSource, tensor: Written) -> Iterator[memoryview]:
    """The bytes of a tensor, in order, some MB at a time."""
    for array in _arrays(source, tensor):
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _WRITE_BYTES):
            yield data[start : start + _WRITE_BYTES]


def _arrays(source: TensorSource, tensor: Written) -> Iterator[Array]:
    """Contiguous little-endian arrays that make up a tensor, one after another."""
    name, last = tensor.info.name, tensor.rows in (slice(None), slice(1, None, 2))
    if tensor.type == "MXFP4":
        scales_name = name.removesuffix(".blocks") + ".scales"
        blocks, scales = source.tensor(name), source.tensor(scales_name)
        for expert in range(len(blocks)):
            yield pack_mxfp4(blocks[expert][tensor.rows], scales[expert][tensor.rows])
        if last:
            source.release(name)
            source.release(scales_name)
        return
    if tensor.type == "Q8_0" and name in source.q8_0:
        yield np.ascontiguousarray(source.tensor(f"{name}.q8_0"))
        source.release(name)
        return
    values = source.tensor(name)
    stretch = max(1, _WRITE_BYTES // values[0].nbytes) if values.ndim > 1 else len(values)
    for start in range(0, len(values), stretch):
        part = values[start : start + stretch]
        if tensor.rows != slice(None):
            part = part[:, tensor.rows]
        if tensor.type == "F32":
            yield np.ascontiguousarray(bf16_to_f32(part), dtype="<f4")
        elif tensor.type == "Q8_0":
            floats = bf16_to_f32(part)
            if not (np.abs(floats) < _Q8_0_LIMIT).all():
                raise Error(
                    f"{source.name}: tensor {name}: expected finite values below "
                    f"{_Q8_0_LIMIT:.0f}, as Q8_0 can hold, found another: use weights 'published'"
                )
            yield quantize_q8_0(floats)
        else:
            yield np.ascontiguousarray(part, dtype="<u2")
    if last:
        source.release(name)

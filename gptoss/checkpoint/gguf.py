"""GGUF files of gpt-oss as canonical tensors, in the dialects of llama.cpp and of Ollama.

llama.cpp ("gpt-oss") stores gate and up apart, and MXFP4 blocks with values i and i + 16 in a byte.
Ollama ("gptoss") stores them as published, rows interleaved and values 2i and 2i + 1 in a byte; its
MXFP4 is tensor type 4, ggml's is type 39. Which names and types a file uses is seen tensor by
tensor: either program also writes mixtures.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.checkpoint.source import Array, TensorInfo, TensorSource, listed, seam_tensors
from gptoss.errors import Error, shown
from gptoss.gguf import types
from gptoss.gguf.blocks import BLOCK, MXFP4_BYTES, Q8_0_BYTES
from gptoss.gguf.reader import Entry, GgufFile, open_parts
from gptoss.model import ModelConfig, bf16_to_f32, check_values, f32_to_bf16
from gptoss.native import _core

ARCHITECTURES = ("gpt-oss", "gptoss")  # llama.cpp's name and Ollama's
_CHUNK = 1 << 19  # values converted at a time: temporaries stay at a few MB
_Q8_0 = ".q8_0"  # after the name of a matrix: its blocks as they are
_DENSE = ("F32", "F16", "BF16", "Q8_0")
_OFFICIAL_ENDS = {199_999, 200_002, 200_012}  # <|endoftext|>, <|return|>, <|call|>
_OFFICIAL_VOCABULARY = 201_088

_OUTER = {
    "embedding.weight": "token_embd.weight",
    "norm.scale": "output_norm.weight",
    "unembedding.weight": "output.weight",
}
# The name in a layer, without "weight" or "bias" → names in the file. The first alternative whose
# tensors are all there is taken: two tensors are the even and the odd rows, qkv is cut in three.
_LAYER: dict[str, tuple[tuple[str, ...], ...]] = {
    "attn.norm.scale": (("attn_norm.weight",),),
    "attn.q.": (("attn_q.",), ("attn_qkv.",)),
    "attn.k.": (("attn_k.",), ("attn_qkv.",)),
    "attn.v.": (("attn_v.",), ("attn_qkv.",)),
    "attn.sinks": (("attn_sinks.weight",), ("attn_sinks",)),
    "attn.out.": (("attn_output.",), ("attn_out.",)),
    "mlp.norm.scale": (("post_attention_norm.weight",), ("ffn_norm.weight",)),
    "mlp.gate.": (("ffn_gate_inp.",),),
    "mlp.mlp1_": (("ffn_gate_exps.", "ffn_up_exps."), ("ffn_gate_up_exps.",)),
    "mlp.mlp2_": (("ffn_down_exps.",),),
}


@dataclass(frozen=True)
class Place:
    """A tensor of a file, or the rows of it from `first` on."""

    file: GgufFile
    entry: Entry
    first: int = 0


class GgufSource(TensorSource):
    """Tensors of a mapped model. MXFP4 is taken apart and float16 and float32 are rounded when
    asked for; bf16 is handed out where it lies.

    directory: the first file, which also holds the tokenizer.
    """

    def __init__(self, parts: list[GgufFile], name: str) -> None:
        """Raises Error where the files hold no gpt-oss model, or more or less than one."""
        tensors = {key: (file, entry) for file in parts for key, entry in file.tensors.items()}
        config = read_config(parts[0], tensors)
        super().__init__(
            config,
            name=name,
            layout="gguf",
            expert_dtype=_expert_dtype(tensors),
            files=[file.path for file in parts],
            directory=parts[0].path,
        )
        self._parts = parts
        self._places = _place_tensors(config, self.expert_dtype, tensors, parts[0].path)
        # blocks and scales come from one pass; the one not asked for waits for the next question
        self._waiting: tuple[str, Array] | None = None
        self._warned = False
        self.q8_0 = frozenset(
            key
            for key, (first, *_) in self._places.items()
            if first.entry.type.name == "Q8_0" and len(self._infos[key].shape) == 2
        )

    def info(self, name: str) -> TensorInfo:
        matrix = name.removesuffix(_Q8_0)
        if name == matrix or matrix not in self.q8_0:
            return super().info(name)
        rows, cols = self._infos[matrix].shape
        return TensorInfo(name, "U8", (rows, cols // BLOCK, Q8_0_BYTES))

    def _read(self, info: TensorInfo) -> Array:
        if info.name.endswith(_Q8_0):
            (place,) = self._places[info.name.removesuffix(_Q8_0)]
            begin = place.first // BLOCK * Q8_0_BYTES
            blocks = place.file.view(place.entry, begin, begin + info.nbytes)
            self._check_scales(place.entry, blocks.reshape(-1, Q8_0_BYTES))
            return blocks.reshape(info.shape)
        if info.dtype == "U8":
            return self._read_mxfp4(info)
        places = self._places[info.name]
        if len(places) == 1:
            count = int(np.prod(info.shape))
            return self._bf16(places[0], 0, count).reshape(info.shape)
        return self._interleaved(places, 0, int(np.prod(info.shape)), info.shape[-1]).reshape(
            info.shape
        )

    def _read_expert(self, name: str, index: int) -> Array:
        info = self._infos[name]
        places, count = self._places[name], int(np.prod(info.shape[1:]))
        if info.dtype == "U8":
            blocks, scales = self._unpack(name.rpartition(".")[0], index, index + 1)
            return (blocks if name.endswith(".blocks") else scales)[0]
        if len(places) == 1:
            found = self._bf16(places[0], index * count, (index + 1) * count)
        else:
            found = self._interleaved(places, index * count, (index + 1) * count, info.shape[-1])
        return found.reshape(info.shape[1:])

    def _read_mxfp4(self, info: TensorInfo) -> Array:
        if self._waiting is not None and self._waiting[0] == info.name:
            array = self._waiting[1]
            self._waiting = None
            return array
        matrix, half = info.name.rsplit(".", 1)
        blocks, scales = self._unpack(matrix, 0, self.config.num_experts)
        if half == "blocks":
            self._waiting = f"{matrix}.scales", scales
            return blocks
        self._waiting = f"{matrix}.blocks", blocks
        return scales

    def _unpack(self, matrix: str, begin: int, end: int) -> tuple[Array, Array]:
        """blocks [n, rows, K/32, 16] and scales [n, rows, K/32] of experts [begin, end)."""
        _, rows, count, _ = self._infos[f"{matrix}.blocks"].shape
        blocks = np.empty((end - begin, rows, count, 16), dtype=np.uint8)
        scales = np.empty((end - begin, rows, count), dtype=np.uint8)
        places = self._places[f"{matrix}.blocks"]
        step = len(places)
        for offset, place in enumerate(places):
            nbytes = (place.entry.end - place.entry.begin) // self.config.num_experts
            raw = place.file.view(place.entry, begin * nbytes, end * nbytes)
            _core.unpack_mxfp4(
                raw.reshape(-1, count, MXFP4_BYTES),
                blocks.reshape(-1, count, 16)[offset::step],
                scales.reshape(-1, count)[offset::step],
                halves=place.entry.number == types.MXFP4,
            )
        return blocks, scales

    def _interleaved(self, places: list[Place], begin: int, end: int, cols: int) -> Array:
        """Values [begin, end) of the matrix whose even and odd rows two tensors hold.

        Of a bias, whose rows are experts, the columns are interleaved: the rows of its matrix.
        """
        even, odd = (self._bf16(place, begin // 2, end // 2) for place in places)
        if places[0].entry.name.endswith("bias"):
            return np.stack([even, odd], axis=-1).reshape(-1)
        return np.stack([even.reshape(-1, cols), odd.reshape(-1, cols)], axis=1).reshape(-1)

    def _bf16(self, place: Place, begin: int, end: int) -> Array:
        """Values [begin, end) of a tensor, counted from place.first, as bf16: uint16."""
        entry, kind = place.entry, place.entry.type
        begin, end = begin + place.first, end + place.first
        raw = place.file.view(
            entry, begin // kind.block * kind.nbytes, end // kind.block * kind.nbytes
        )
        if kind.name == "BF16":
            found = raw.view("<u2")
            if not found.flags.aligned:
                found = found.copy()
            return found
        if kind.name == "Q8_0":
            values = _core.dequantize_q8_0(raw.reshape(-1, Q8_0_BYTES))
            if values is None:
                raise self._not_finite(entry)
            return values.reshape(-1)
        floats = raw.view("<f4" if kind.name == "F32" else "<f2")
        out = f32_to_bf16(floats)
        self._note_rounding(entry, floats, out)
        return out

    def _check_scales(self, entry: Entry, blocks: Array) -> None:
        """Raise Error unless the scales of Q8_0 blocks [n, 34] are finite."""
        if ((blocks[:, 1] & 0x7C) == 0x7C).any():  # the exponent, in the upper byte
            raise self._not_finite(entry)

    def _not_finite(self, entry: Entry) -> Error:
        return Error(
            f"{self.name}: tensor {entry.name}: expected finite scales, found an infinite one or "
            f"NaN"
        )

    def _note_rounding(self, entry: Entry, floats: Array, out: Array) -> None:
        """Say once that this model is not stored in bf16, when the first value shows it."""
        for start in range(0, 0 if self._warned else out.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            if (bf16_to_f32(out[part]) != floats[part]).any():
                self._warned = True
                warnings.warn(
                    f"{self.name}: is not stored in bf16 ({entry.name} is {entry.type.name}): "
                    f"weights are rounded to bf16, once",
                    stacklevel=2,
                )
                return

    def release(self, name: str) -> None:
        self.info(name)
        for place in self._places[name.removesuffix(_Q8_0)]:
            place.file.release(place.entry)

    def close(self) -> None:
        self._waiting = None
        for file in self._parts:
            file.close()


def open_gguf(path: Path, name: str) -> GgufSource:
    """The model in the GGUF file at `path`, or in the parts that it is one of. Raises Error."""
    parts = open_parts(path)
    try:
        return GgufSource(parts, name)
    except BaseException:
        for file in parts:
            file.close()
        raise


Tensors = dict[str, tuple[GgufFile, Entry]]


def read_config(file: GgufFile, tensors: Tensors) -> ModelConfig:
    """The configuration in a file's metadata. Raises Error, naming the key.

    tensors: those of all parts; the first part, which has the metadata, need not have any.
    """
    architecture = file.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise Error(
            f"{file.path}: general.architecture: expected {' or '.join(ARCHITECTURES)}, found "
            f"{shown(architecture)}: this engine runs gpt-oss alone"
        )
    names = {
        "num_hidden_layers": "block_count",
        "num_experts": "expert_count",
        "experts_per_token": "expert_used_count",
        "hidden_size": "embedding_length",
        "intermediate_size": "expert_feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "sliding_window": "attention.sliding_window",
        "initial_context_length": "rope.scaling.original_context_length",
        "rope_theta": "rope.freq_base",
        "rope_scaling_factor": "rope.scaling.factor",
        "rope_ntk_alpha": "rope.scaling.yarn_beta_slow",
        "rope_ntk_beta": "rope.scaling.yarn_beta_fast",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    keys = {field: f"{architecture}.{name}" for field, name in names.items()}
    if keys["intermediate_size"] not in file.fields:
        keys["intermediate_size"] = f"{architecture}.feed_forward_length"
    _check_fixed(file, architecture, keys)
    _, embedding = tensors.get("token_embd.weight", (file, None))
    vocab_size = file.integer(f"{architecture}.vocab_size", embedding.shape[0] if embedding else 0)
    if vocab_size == 0:
        raise Error(f"{file.path}: missing tensors: token_embd.weight")
    values: dict[str, Any] = {"vocab_size": vocab_size}
    optional: dict[str, Any] = {"rope_ntk_alpha": 1.0, "rope_ntk_beta": 32.0}
    if keys["rope_scaling_factor"] not in file.fields:
        optional["rope_scaling_factor"] = 1.0
        optional["initial_context_length"] = file.integer(f"{architecture}.context_length")
    for field, key in keys.items():
        read = file.real if field.startswith(("rope", "rms")) else file.integer
        values[field] = read(key, optional.get(field))
    values["eos_token_ids"] = _eos_token_ids(file, vocab_size)
    check_values(values, str(file.path), {**keys, "vocab_size": "token_embd.weight"})
    config = ModelConfig(**values)
    context = file.integer(f"{architecture}.context_length", config.context_length)
    if context != config.context_length:
        warnings.warn(
            f"{file.path}: {architecture}.context_length: the rope settings make it "
            f"{config.context_length}, found {context}, which is ignored",
            stacklevel=2,
        )
    return config


def _check_fixed(file: GgufFile, architecture: str, keys: dict[str, str]) -> None:
    """Raise Error where the metadata ask for another formula than gpt-oss's."""
    head_dim = file.integer(keys["head_dim"])
    for name, expected in (
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("attention.sliding_window_pattern", 2),
    ):
        key = f"{architecture}.{name}"
        if key in file.fields and file.fields[key].count is not None:
            pattern = file.array(key)
            if pattern != [n % 2 == 0 for n in range(len(pattern))]:
                raise Error(f"{file.path}: {key}: expected every other layer, found another order")
        elif file.integer(key, expected) != expected:
            raise Error(f"{file.path}: {key}: expected {expected}, found {file.integer(key)}")
    scaling = file.text(f"{architecture}.rope.scaling.type", "yarn")
    if scaling != "yarn" and (scaling != "none" or keys["rope_scaling_factor"] in file.fields):
        raise Error(
            f"{file.path}: {architecture}.rope.scaling.type: expected 'yarn', found "
            f"{shown(scaling)}"
        )
    for name, allowed in (
        ("yarn_ext_factor", (1.0, -1.0)),  # -1: the default, which is 1 for YaRN
        ("yarn_attn_factor", (1.0,)),
        ("yarn_log_multiplier", (0.0,)),
    ):
        key = f"{architecture}.rope.scaling.{name}"
        if key in file.fields and file.real(key) not in allowed:
            raise Error(f"{file.path}: {key}: expected {allowed[0]}, found {file.real(key)}")


def _eos_token_ids(file: GgufFile, vocab_size: int) -> tuple[int, ...]:
    ids = file.array("tokenizer.ggml.eos_token_ids")
    for name in ("eos_token_id", "eot_token_id"):
        key = f"tokenizer.ggml.{name}"
        if key in file.fields:
            ids.append(file.integer(key))
    if vocab_size == _OFFICIAL_VOCABULARY and set(ids) <= _OFFICIAL_ENDS:
        return ()  # ModelConfig knows them
    return tuple(dict.fromkeys(ids))


def _expert_dtype(tensors: Tensors) -> str:
    """ "mxfp4" or "bf16", for all experts; which tensors fit is seen later."""
    experts = [entry for name, (_, entry) in tensors.items() if name.endswith("_exps.weight")]
    packed = sum(entry.type.name == "MXFP4" for entry in experts)
    return "mxfp4" if packed == len(experts) else "bf16"


def _place_tensors(
    config: ModelConfig, expert_dtype: str, tensors: Tensors, where: Path
) -> dict[str, list[Place]]:
    """The seam's tensors → where they lie. Raises Error unless nothing is missing or left over."""
    places: dict[str, list[Place]] = {}
    missing: list[str] = []
    used: set[str] = set()
    for info in seam_tensors(config, expert_dtype).values():
        names = _names_in_file(info.name, tensors)
        found = [name for name in names if name in tensors]
        if len(found) < len(names):
            missing += [name for name in names if name not in tensors]
            continue
        used.update(names)
        places[info.name] = [
            Place(*tensors[name], first=_first_value(config, info, name)) for name in names
        ]
        for place, expected in zip(places[info.name], _shapes(config, info, names), strict=True):
            _check_entry(place, expected, info)
            if place.first % place.entry.type.block:
                raise Error(
                    f"{place.file.path}: tensor {place.entry.name}: expected q, k and v of whole "
                    f"blocks of {place.entry.type.name}, found a block that two of them share"
                )
    if missing:
        raise Error(f"{where}: missing tensors: {listed(list(dict.fromkeys(missing)))}")
    extra = sorted(name for name in tensors if name not in used)
    if extra:
        raise Error(f"{where}: unexpected tensors: {listed(extra)}")
    return places


def _names_in_file(name: str, tensors: Iterable[str]) -> tuple[str, ...]:
    """The names that a tensor of the seam has in this file."""
    if name in _OUTER:
        return (_OUTER[name],)
    _, layer, rest = name.split(".", 2)
    prefix = next(ours for ours in _LAYER if rest.startswith(ours))
    end = rest.removeprefix(prefix).partition(".")[0]  # "weight", "bias" or nothing
    alternatives = [
        tuple(f"blk.{layer}.{theirs}{end}" for theirs in names) for names in _LAYER[prefix]
    ]
    known = set(tensors) if not isinstance(tensors, dict) else tensors
    return next(
        (names for names in alternatives if all(n in known for n in names)), alternatives[0]
    )


def _first_value(config: ModelConfig, info: TensorInfo, name: str) -> int:
    """Where in a fused qkv the tensor begins, in values."""
    if ".attn_qkv." not in name:
        return 0
    rows = {"q": 0, "k": config.query_size, "v": config.query_size + config.kv_size}
    return rows[info.name.split(".")[3]] * int(np.prod(info.shape[1:]))


def _shapes(config: ModelConfig, info: TensorInfo, names: tuple[str, ...]) -> list[tuple[int, ...]]:
    """The shapes that the tensors in the file must have."""
    shape = info.shape
    if info.name.endswith(".blocks"):
        shape = (*shape[:2], shape[2] * BLOCK)
    elif info.name.endswith(".scales"):
        shape = (*shape[:2], shape[2] * BLOCK)
    if ".attn_qkv." in names[0]:
        shape = (config.query_size + 2 * config.kv_size, *shape[1:])
    if len(names) == 2:
        shape = (shape[0], shape[1] // 2, *shape[2:])
    return [shape] * len(names)


def _check_entry(place: Place, shape: tuple[int, ...], info: TensorInfo) -> None:
    entry = place.entry
    where = f"{place.file.path}: tensor {entry.name}"
    if entry.shape != shape:
        raise Error(f"{where}: expected shape {list(shape)}, found {list(entry.shape)}")
    readable = ("MXFP4",) if info.dtype == "U8" else _DENSE
    if entry.type.name not in readable:
        raise Error(
            f"{where}: its type {entry.type.name} cannot be read: expected MXFP4 experts and BF16, "
            f"F16, F32 or Q8_0 for all else; fetch a file whose name says MXFP4, such as those of "
            f"ggml-org/gpt-oss-20b-GGUF and ggml-org/gpt-oss-120b-GGUF: they hold the published "
            f"weights and are hardly larger"
        )

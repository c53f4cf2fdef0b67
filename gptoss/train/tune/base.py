"""The model that fine-tuning starts from: any checkpoint, a run, or an earlier fine-tuning run."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gptoss.checkpoint import TensorSource, open_checkpoint
from gptoss.dtypes import bf16_to_f32
from gptoss.errors import Error
from gptoss.train.architecture import Architecture
from gptoss.train.data import TextTokenizer, load_tokenizer
from gptoss.train.experts import PackedMatrix
from gptoss.train.model import GptOss
from gptoss.train.state import CHECKPOINT_FILE
from gptoss.vocabulary import HARMONY_SIZE

# Large matrices of a frozen base stay in bf16, as they are stored. What is small or computed with
# in float32 (router, norms, biases, sinks) is float32.
_WIDE = (".scale", ".sinks", "bias", ".gate.weight")
_ENDS = 1 << 20  # bytes hashed at either end of a file


def open_base(path: str) -> TensorSource:
    """The weights under `path`: a checkpoint, "synthetic:…", a run or a fine-tuning run.

    Those of a run are given as its export has them, experts in MXFP4. Raises Error.
    """
    from gptoss.train.tune import merge

    if merge.is_run(Path(path)):
        return merge.merged_source(Path(path))
    if (Path(path) / CHECKPOINT_FILE).exists():
        from gptoss.train.convert import to_source
        from gptoss.train.export import load_run

        return to_source(load_run(Path(path))[0], directory=Path(path))
    return open_checkpoint(path)


def open_vocabulary(source: TensorSource) -> TextTokenizer:
    """The tokenizer of a model. Raises Error where none is at hand."""
    if source.directory is not None:
        return load_tokenizer(source.directory, source.config.vocab_size)
    if source.config.vocab_size == HARMONY_SIZE:
        return load_tokenizer("o200k_harmony")
    raise Error(f"{source.name}: expected a model with a tokenizer, found none")


def load_trainable(path: str, source: TensorSource, dtype: torch.dtype) -> GptOss:
    """The model in float32 masters, all of which train. A run's are taken before any rounding."""
    if (Path(path) / CHECKPOINT_FILE).exists():
        from gptoss.train.export import load_run

        model = load_run(Path(path))[0]
        model.compute_dtype = dtype
        return model
    from gptoss.train.convert import from_source

    return from_source(source, dtype)


def load_frozen(source: TensorSource, dtype: torch.dtype) -> GptOss:
    """The model as it is stored, none of which trains: experts MXFP4, other matrices bf16.

    Nothing is copied that `source` can show as a view of its file, so `source` must stay open.
    """
    packed = source.expert_dtype == "mxfp4"
    with torch.device("meta"):  # shapes alone; every tensor is put in below
        model = GptOss(Architecture(source.config), dtype, packed)
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        value = _dense(source, name)
        if value.shape != parameter.shape:
            raise Error(
                f"{source.name}: {name}: expected shape {list(parameter.shape)}, "
                f"found {list(value.shape)}"
            )
        setattr(module, last, nn.Parameter(value, requires_grad=False))
    for name, module in model.named_modules():
        if isinstance(module, PackedMatrix):
            module.blocks = _view(source.tensor(f"{name}.blocks"))
            module.scales = _view(source.tensor(f"{name}.scales"))
    size, width = model.embedding.weight.shape
    embedding = WideEmbedding(size, width, device="meta")
    embedding.weight = model.embedding.weight
    model.embedding = embedding
    return model


class WideEmbedding(nn.Embedding):
    """An embedding stored in bf16 that gives float32, as the residual stream wants it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).float()


def _dense(source: TensorSource, name: str) -> Tensor:
    """A parameter by the model's name, bf16, or float32 for what is small."""
    if ".attn.qkv." in name:
        parts = [source.tensor(name.replace(".qkv.", f".{part}.")) for part in ("q", "k", "v")]
        bits = np.concatenate(parts)
    else:
        bits = source.tensor(name)
    if name.endswith(_WIDE):
        return torch.from_numpy(bf16_to_f32(bits))
    return _view(bits).view(torch.bfloat16)


def _view(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # that the array is read-only: nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def fingerprint(path: str) -> str:
    """Tells one base from another: sha256 hex of its files' names, sizes, first and last megabyte.

    For "synthetic:…" of the description itself.
    """
    digest = hashlib.sha256()
    place = Path(path)
    if path.startswith("synthetic:"):
        return hashlib.sha256(path.encode()).hexdigest()
    found = [*place.glob("*"), *place.glob("original/*")]
    files = [place] if place.is_file() else sorted(found)
    kept = (".safetensors", ".pt", "config.json")
    for file in files:
        if file.is_file() and file.name.endswith(kept):
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(_ENDS))
                opened.seek(max(0, size - _ENDS))
                digest.update(opened.read(_ENDS))
    return digest.hexdigest()


def absolute(path: str) -> str:
    """`path` as it will still be found from elsewhere."""
    return path if path.startswith("synthetic:") else os.path.abspath(path)

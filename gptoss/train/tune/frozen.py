"""The model that fine-tuning starts from: any checkpoint, a run, or an earlier fine-tuning run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gptoss.checkpoint import TensorSource
from gptoss.errors import Error
from gptoss.model import bf16_to_f32
from gptoss.tokenizer import HARMONY_SIZE
from gptoss.train.data import TextTokenizer, load_tokenizer
from gptoss.train.model.architecture import Architecture
from gptoss.train.model.convert import from_source
from gptoss.train.model.experts import QuantizedMatrix
from gptoss.train.model.model import GptOss
from gptoss.train.run.state import CHECKPOINT_FILE
from gptoss.train.weights import load_run

# Large matrices of a frozen base stay in bf16, as they are stored. What is small or computed with
# in float32 (router, norms, biases, sinks) is float32.
_WIDE = (".scale", ".sinks", "bias", ".gate.weight")


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
        model = load_run(Path(path))[0]
        model.compute_dtype = dtype
        return model
    return from_source(source, dtype)


def load_frozen(source: TensorSource, dtype: torch.dtype) -> GptOss:
    """The model as it is stored, none of which trains: experts MXFP4, other matrices bf16.

    Nothing is copied that `source` can show as a view of its file, so `source` must stay open.
    """
    quantized = source.expert_dtype == "mxfp4"
    with torch.device("meta"):  # shapes alone; every tensor is put in below
        model = GptOss(Architecture(source.config), dtype, quantized)
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
        if isinstance(module, QuantizedMatrix):
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

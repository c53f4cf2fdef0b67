"""Between the PyTorch model and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptoss.checkpoint import ArraySource, TensorSource
from gptoss.errors import Error
from gptoss.model import bf16_to_f32, f32_to_bf16, mxfp4
from gptoss.train.model.experts import QuantizedMatrix
from gptoss.train.model.model import GptOss

EXPERT_MATRICES = ("mlp1_weight", "mlp2_weight")


def is_expert_matrix(name: str) -> bool:
    """Whether the parameter `name` is stored as MXFP4."""
    return name.endswith(EXPERT_MATRICES)


def require_exportable(model: GptOss) -> None:
    """Raises Error when a checkpoint, and the engine, could not express this model."""
    found = model.architecture.differences()
    if found:
        raise Error(
            "architecture: expected gpt-oss (the engine runs nothing else), found "
            + ", ".join(found)
        )


def to_source(
    model: GptOss,
    experts: str = "mxfp4",
    rule: str = "mse",
    directory: Path | None = None,
    conversation_format: str | None = None,
) -> ArraySource:
    """The model's weights for `gptoss.checkpoint.write.write_checkpoint`.

    Everything is rounded to bf16, but experts to MXFP4 with the scales of `rule` ("mx" or "mse"),
    unless `experts` is "bf16"; quantized ones are handed on as they are. Tokenizer files are taken
    from `directory`; they say `conversation_format` when written. Raises Error for an architecture
    that is not gpt-oss.
    """
    require_exportable(model)
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        values = parameter.detach().float().cpu().numpy()
        if is_expert_matrix(name) and experts == "mxfp4":
            arrays[f"{name}.blocks"], arrays[f"{name}.scales"] = mxfp4.quantize(values, rule)
        else:
            arrays[name] = f32_to_bf16(values)
    for name, buffer in model.named_buffers():
        if name.endswith((".blocks", ".scales")):
            if experts != "mxfp4":
                raise Error(f"experts: expected 'mxfp4' for a quantized model, found {experts!r}")
            arrays[name] = buffer.cpu().numpy()
    source = ArraySource(model.config, arrays, name="trained model", directory=directory)
    source.conversation_format = conversation_format
    return source


def from_source(
    source: TensorSource, compute_dtype: torch.dtype = torch.float32, quantized: bool = False
) -> GptOss:
    """A model with the weights of a checkpoint, dequantised exactly into float32 masters.

    `quantized` leaves MXFP4 experts as they are (`experts.QuantizedMatrix`).
    """
    quantized = quantized and source.expert_dtype == "mxfp4"
    model = GptOss(source.config, compute_dtype, quantized)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_expert_matrix(name):
                for index in range(source.config.num_experts):
                    parameter[index].copy_(torch.from_numpy(source.expert(name, index)))
            else:
                parameter.copy_(_dense(source, name))
        for name, module in model.named_modules():
            if isinstance(module, QuantizedMatrix):
                for part in ("blocks", "scales"):
                    bits = source.tensor(f"{name}.{part}")
                    getattr(module, part).copy_(torch.from_numpy(np.array(bits)))
    return model


def _dense(source: TensorSource, name: str) -> Tensor:
    if ".attn.qkv." in name:
        parts = [source.tensor(name.replace(".qkv.", f".{part}.")) for part in ("q", "k", "v")]
        return torch.from_numpy(bf16_to_f32(np.concatenate(parts)))
    return torch.from_numpy(bf16_to_f32(source.tensor(name)))


def rounded(model: GptOss, experts: str = "mxfp4", rule: str = "mse") -> GptOss:
    """A copy whose weights are exactly those that `to_source` with the same arguments stores."""
    return from_source(to_source(model, experts, rule), model.compute_dtype)

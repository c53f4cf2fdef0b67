"""Between the PyTorch model and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gptoss import mxfp4
from gptoss.checkpoint import ArraySource, TensorSource
from gptoss.dtypes import bf16_to_f32, f32_to_bf16
from gptoss.train.model import GptOss

EXPERT_MATRICES = ("mlp1_weight", "mlp2_weight")


def is_expert_matrix(name: str) -> bool:
    """Whether the parameter `name` is stored as MXFP4."""
    return name.endswith(EXPERT_MATRICES)


def to_source(
    model: GptOss, experts: str = "mxfp4", rule: str = "mse", directory: Path | None = None
) -> ArraySource:
    """The model's weights for `gptoss.checkpoint.write_checkpoint`.

    Everything is rounded to bf16, but experts to MXFP4 with the scales of `rule` ("mx" or "mse"),
    unless `experts` is "bf16". Tokenizer files are taken from `directory`.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if is_expert_matrix(name) and experts == "mxfp4":
            arrays[f"{name}.blocks"], arrays[f"{name}.scales"] = mxfp4.quantize(values, rule)
        else:
            arrays[name] = f32_to_bf16(values)
    return ArraySource(model.config, arrays, name="trained model", directory=directory)


def from_source(source: TensorSource, compute_dtype: torch.dtype = torch.float32) -> GptOss:
    """A model with the weights of a checkpoint, dequantised exactly into float32 masters."""
    model = GptOss(source.config, compute_dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_expert_matrix(name):
                for index in range(source.config.num_experts):
                    parameter[index].copy_(torch.from_numpy(source.expert(name, index)))
                continue
            if ".attn.qkv." in name:
                parts = [source.tensor(name.replace(".qkv.", f".{p}.")) for p in ("q", "k", "v")]
                bits = np.concatenate(parts)
            else:
                bits = source.tensor(name)
            parameter.copy_(torch.from_numpy(bf16_to_f32(bits)))
    return model


def rounded(model: GptOss, experts: str = "mxfp4", rule: str = "mse") -> GptOss:
    """A copy whose weights are exactly those that `to_source` with the same arguments stores."""
    return from_source(to_source(model, experts, rule), model.compute_dtype)

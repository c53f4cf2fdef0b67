"""float16 and float32 checkpoints: rounded to bf16 once, which a warning tells."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.safetensors import SafetensorsFile, encode_header
from gptoss.checkpoint.source import TensorSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16

KINDS = {"F16": np.float16, "F32": np.float32}


def widen(directory: Path, dtype: str) -> dict[str, np.ndarray]:
    """Rewrite a checkpoint in a wider type, with values that bf16 does not have: name → values."""
    path = directory / "model.safetensors"
    file = SafetensorsFile(path)
    tensors, data, values = [], [], {}
    random = np.random.default_rng(5)
    for entry in file.entries.values():
        array = file.view(entry.name)
        if entry.dtype == "U8":
            tensors.append((entry.name, "U8", entry.shape))
        else:
            noise = 1 + random.uniform(-1, 1, array.shape).astype(np.float32) * 2.0**-7
            array = (bf16_to_f32(array) * noise).astype(KINDS[dtype])
            values[entry.name] = array
            tensors.append((entry.name, dtype, entry.shape))
        data.append(array.tobytes())
    file.close()
    path.write_bytes(encode_header(tensors, {"format": "pt"}) + b"".join(data))
    return values


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("layout", ["original", "huggingface", "huggingface-bf16"])
def test_rounded_once_and_said_so(
    tmp_path: Path, small_source: TensorSource, layout: str, dtype: str
) -> None:
    directory = tmp_path / "wide"
    write_checkpoint(small_source, directory, layout)
    values = widen(directory, dtype)
    with pytest.warns(UserWarning, match=f"is not stored in bf16 but in {dtype}.* once") as told:
        source = open_checkpoint(directory)
    assert len(told) == 1
    with source, warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, theirs in (
            ("embedding.weight", "model.embed_tokens.weight"),
            ("norm.scale", "model.norm.weight"),
            ("block.1.mlp.mlp1_bias", "model.layers.1.mlp.experts.gate_up_proj_bias"),
        ):
            exact = values[ours if layout == "original" else theirs].astype(np.float32)
            np.testing.assert_array_equal(source.tensor(ours), f32_to_bf16(exact))
        if layout == "huggingface-bf16":
            exact = values["model.layers.0.mlp.experts.gate_up_proj"].astype(np.float32)
            wanted = f32_to_bf16(exact.swapaxes(1, 2))
            matrix = "block.0.mlp.mlp1_weight"
            np.testing.assert_array_equal(source.tensor(matrix), wanted)
            np.testing.assert_array_equal(source.expert(matrix, 2), bf16_to_f32(wanted[2]))
        for info in source.tensors():
            assert source.tensor(info.name).dtype == (np.uint8 if info.dtype == "U8" else np.uint16)


def test_bf16_says_nothing(original) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_checkpoint(original.directory).close()

"""Files of both dialects are the model that they were made of: tensors and logits bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf_dialects import write

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.source import TensorSource

WRITTEN = {
    "llama.cpp": {},
    "llama.cpp-f16": {"kind": Type.F16},
    "llama.cpp-f32": {"kind": Type.F32},
    "llama.cpp-split": {"split_max_tensors": 40},
    "ollama": {"ollama": True},
    "ollama-fused": {"ollama": True, "fused_qkv": Type.BF16},
}


def first_part(path: Path) -> Path:
    return path if path.exists() else next(iter(sorted(path.parent.glob("*-00001-of-*"))))


@pytest.mark.parametrize("form", WRITTEN)
def test_tensors_and_logits_are_those_of_the_original(
    form: str, tiny: TensorSource, tiny_a: Path, tmp_path: Path, logits
) -> None:
    path = first_part(write(tiny, tmp_path / "model.gguf", **WRITTEN[form]))
    with open_checkpoint(path) as source:
        assert source.layout == "gguf"
        assert source.config == tiny.config
        assert source.tensors() == tiny.tensors()
        for info in tiny.tensors():
            if form == "llama.cpp-f16" and not info.name.endswith((".blocks", ".scales")):
                continue  # what is below float16's range was lost when the file was made
            np.testing.assert_array_equal(source.tensor(info.name), tiny.tensor(info.name))
            source.release(info.name)
        for name in ("block.1.mlp.mlp1_weight", "block.3.mlp.mlp2_weight"):
            np.testing.assert_array_equal(source.expert(name, 5), tiny.expert(name, 5))
        tokens = np.load(tiny_a / "golden.npz")["tokens_160"]
        if form != "llama.cpp-f16":
            np.testing.assert_array_equal(logits(source, tokens), logits(tiny, tokens))

"""What the writer calls Hugging Face's layout is what transformers loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.model.config import ModelConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def load(directory: Path, dtype: Any = torch.float32) -> tuple[Any, Any]:
    """(model, loading report). MXFP4 is unpacked, which needs neither a GPU nor accelerate."""
    options: dict[str, Any] = {}
    if "quantization_config" in json.loads((directory / "config.json").read_text()):
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return transformers.GptOssForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options
    )


def logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [T, vocab] of the checkpoint in transformers, with no tensor missing or left over."""
    model, report = load(directory)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    with torch.no_grad():
        result: Any = model.eval()(torch.from_numpy(tokens.astype(np.int64))[None])
    return result.logits[0].numpy()


@pytest.mark.parametrize("layout", ["huggingface", "huggingface-bf16"])
@pytest.mark.parametrize("max_shard_bytes", [None, 500_000])
def test_loads_and_agrees_with_the_golden_logits(
    tmp_path: Path, tiny_a: Path, layout: str, max_shard_bytes: int | None
) -> None:
    with open_checkpoint(tiny_a) as source:
        write_checkpoint(source, tmp_path / "out", layout, max_shard_bytes)
    golden = np.load(tiny_a / "golden.npz")
    expected = golden["logits_f32_48"]
    found = logits(tmp_path / "out", golden["tokens_48"])
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_plain_rope_is_understood_as_such(tmp_path: Path) -> None:
    """A model without YaRN: transformers must not fall back to its default, which is YaRN."""
    config = ModelConfig(
        num_hidden_layers=2,
        num_experts=4,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        rope_scaling_factor=1.0,
        rope_theta=10_000.0,
        initial_context_length=2048,
        eos_token_ids=(3, 5),
    )
    write_checkpoint(SyntheticSource(config), tmp_path / "plain", "huggingface")
    loaded, _ = load(tmp_path / "plain")
    rotary = loaded.model.rotary_emb
    expected = 10_000.0 ** (-np.arange(8) / 8)
    assert np.allclose(rotary.inv_freq.numpy(), expected, rtol=1e-6)
    assert rotary.attention_scaling == 1.0
    assert loaded.generation_config.eos_token_id == [3, 5]
    with open_checkpoint(tmp_path / "plain") as source:
        assert source.config == config
    yarn = replace(config, rope_scaling_factor=8.0)
    write_checkpoint(SyntheticSource(yarn), tmp_path / "yarn", "huggingface")
    loaded, _ = load(tmp_path / "yarn")
    assert abs(loaded.model.rotary_emb.attention_scaling - (0.1 * np.log(8.0) + 1)) < 1e-6


@pytest.mark.parametrize("layout", ["huggingface", "huggingface-bf16"])
def test_what_transformers_saves_is_read_back(tmp_path: Path, tiny_a_hf: Path, layout: str) -> None:
    """bf16 experts; where transformers 5 itself unpacked them it saves them under odd names."""
    with open_checkpoint(tiny_a_hf) as ours:
        write_checkpoint(ours, tmp_path / "written", layout)
        model, _ = load(tmp_path / "written", torch.bfloat16)
        model.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
        with open_checkpoint(tmp_path / "saved") as saved:
            assert saved.layout == "huggingface-bf16"
            assert saved.config == ours.config
            for info in saved.tensors():
                if info.name.endswith(("mlp1_weight", "mlp2_weight")):
                    for index in range(saved.config.num_experts):
                        assert np.array_equal(
                            saved.expert(info.name, index), ours.expert(info.name, index)
                        )
                else:
                    assert np.array_equal(saved.tensor(info.name), ours.tensor(info.name))

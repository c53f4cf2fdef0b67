from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gptoss.checkpoint import synthetic
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.synthetic import PRESETS, SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.errors import Error
from gptoss.model.bf16 import bf16_to_f32


def test_specs() -> None:
    source = open_checkpoint("synthetic:gpt-oss-20b")
    assert source.config == PRESETS["gpt-oss-20b"]
    assert source.layout == "synthetic"
    assert source.expert_dtype == "mxfp4"
    assert source.files == []
    assert source.directory is None
    assert source.name == "synthetic:gpt-oss-20b"
    assert round(source.nbytes / 1e9, 2) == 13.76
    assert round(open_checkpoint("synthetic:gpt-oss-120b").nbytes / 1e9, 2) == 65.25
    source = open_checkpoint("synthetic:tiny?layers=6&experts=16&seed=7&vocab=300")
    assert isinstance(source, SyntheticSource)
    assert source.seed == 7
    config = source.config
    assert (config.num_hidden_layers, config.num_experts, config.vocab_size) == (6, 16, 300)
    assert open_checkpoint("synthetic:gpt-oss-20b?vocab=512").config.eos_token_ids == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("synthetic:", "expected a preset out of gpt-oss-20b, gpt-oss-120b, tiny, found ''"),
        ("synthetic:gpt-4", "found 'gpt-4'"),
        ("synthetic:tiny?", "expected keys out of seed, layers, experts, vocab, found ''"),
        ("synthetic:tiny?depth=3", "expected keys out of .* found 'depth'"),
        ("synthetic:tiny?layers", "layers: expected a whole number of 0 or more, found ''"),
        ("synthetic:tiny?layers=two", "layers: expected a whole number of 0 or more, found 'two'"),
        ("synthetic:tiny?seed=-1", "seed: expected a whole number"),
        ("synthetic:tiny?seed=٣", "seed: expected a whole number"),
        ("synthetic:tiny?seed=1&seed=1", "seed is given twice"),
        ("synthetic:tiny?layers=0", r"num_hidden_layers: expected 1\.\.1024, found 0"),
        ("synthetic:tiny?layers=" + "9" * 18, "num_hidden_layers: expected"),
        ("synthetic:tiny?layers=" + "9" * 9999, "layers: expected a whole number"),
        ("synthetic:tiny?experts=2", "experts_per_token: expected at most num_experts"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(Error, match=message) as caught:
        open_checkpoint(spec)
    assert "synthetic:" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_every_tensor_has_its_shape() -> None:
    source = open_checkpoint("synthetic:tiny")
    for info in source.tensors():
        array = source.tensor(info.name)
        assert array.shape == info.shape
        assert array.dtype == (np.uint16 if info.dtype == "BF16" else np.uint8)
        assert array.flags.c_contiguous
        assert not array.flags.writeable


def test_a_tensor_depends_on_seed_and_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_CHUNK", 1 << 12)  # so that small tensors have many chunks
    config = PRESETS["tiny"]
    name = "block.2.mlp.mlp1_weight.blocks"
    first = SyntheticSource(config, seed=3, threads=1)
    expected = first.tensor(name)
    second = SyntheticSource(config, seed=3, threads=3)
    second.tensor("embedding.weight")
    assert np.array_equal(second.tensor(name), expected)
    assert np.array_equal(second.tensor(name), expected)
    for index in (0, 5):  # a part of a tensor is the same as that part of the whole
        assert np.array_equal(second._read_expert(name, index), expected[index])
    assert not np.array_equal(SyntheticSource(config, seed=4).tensor(name), expected)
    assert not np.array_equal(first.tensor("block.1.mlp.mlp1_weight.blocks"), expected)
    # another depth leaves the layers that both have alone
    deeper = open_checkpoint("synthetic:tiny?layers=9&seed=3")
    monkeypatch.undo()
    assert np.array_equal(
        deeper.tensor("block.2.attn.q.weight"), first.tensor("block.2.attn.q.weight")
    )


def test_the_bytes_never_change() -> None:
    """Measurements of different versions and machines are of the same model."""
    source = open_checkpoint("synthetic:tiny?seed=1")
    found = {
        name: source.tensor(name).reshape(-1)[:4].tolist()
        for name in (
            "embedding.weight",
            "block.0.attn.sinks",
            "block.3.mlp.mlp2_weight.blocks",
            "block.3.mlp.mlp2_weight.scales",
        )
    }
    assert found == {
        "embedding.weight": [49036, 16118, 16296, 48772],
        "block.0.attn.sinks": [16025, 49023, 48767, 49021],
        "block.3.mlp.mlp2_weight.blocks": [233, 201, 8, 131],
        "block.3.mlp.mlp2_weight.scales": [122, 122, 122, 122],
    }


def test_values_keep_activations_sane() -> None:
    source = open_checkpoint("synthetic:gpt-oss-20b?layers=1&vocab=2048")
    hidden = source.config.hidden_size
    for name in ("mlp1_weight", "mlp2_weight"):
        weights = source.expert(f"block.0.mlp.{name}", 31)
        assert abs(float(weights.std()) * math.sqrt(hidden) - 1) < 0.02
        assert abs(float(weights.mean())) < 1e-4
        scales = source.tensor(f"block.0.mlp.{name}.scales")
        assert len(np.unique(scales)) > 1
    for name in ("block.0.attn.q.weight", "unembedding.weight", "block.0.attn.out.weight"):
        values = bf16_to_f32(source.tensor(name))
        assert abs(float(values.std()) * math.sqrt(values.shape[-1]) - 1) < 0.02, name
    for name, mean, deviation in (
        ("embedding.weight", 0.0, 1.0),
        ("norm.scale", 1.0, 0.1),
        ("block.0.attn.norm.scale", 1.0, 0.1),
        ("block.0.attn.qkv.bias".replace("qkv", "q"), 0.0, 0.02),
        ("block.0.mlp.mlp1_bias", 0.0, 0.02),
    ):
        values = bf16_to_f32(source.tensor(name))
        assert abs(float(values.mean()) - mean) < 0.1 * deviation, name
        assert abs(float(values.std()) / deviation - 1) < 0.05, name
    sinks = bf16_to_f32(source.tensor("block.0.attn.sinks"))
    assert 0.6 < float(sinks.std()) < 1.4


@pytest.mark.parametrize("fan_in", [32, 64, 96, 2880, 4096])
def test_scales_of_every_width(fan_in: int) -> None:
    raw = np.arange(256, dtype=np.uint8)
    out = np.empty(256, dtype=np.uint8)
    synthetic._scale_maker(fan_in)(raw, out)
    square = np.mean(np.exp2(2.0 * (out.astype(np.float64) - 127)))
    assert abs(math.sqrt(square * fan_in) * synthetic._NIBBLE_RMS - 1) < 0.01


def test_no_nan_among_the_bits() -> None:
    table = synthetic._normal_table()
    assert len(table) == 1 << 16
    assert np.isfinite(table).all()
    assert abs(float(table.std()) - 1) < 1e-3
    assert float(table.max()) == -float(table.min())


def test_written_and_read_back(tmp_path: Path) -> None:
    source = open_checkpoint("synthetic:tiny?layers=2")
    write_checkpoint(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as written:
        assert written.config == source.config
        for info in source.tensors():
            assert np.array_equal(written.tensor(info.name), source.tensor(info.name))

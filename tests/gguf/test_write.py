"""What is written is read back bit for bit, by this package and by `gguf`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, quants
from vocabularies import o200k_path

from gptoss.checkpoint import write_checkpoint, write_gguf
from gptoss.checkpoint.files import BUNDLED_MODEL, open_checkpoint
from gptoss.checkpoint.source import ArraySource, TensorSource
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.cli import main
from gptoss.errors import Error
from gptoss.model import ModelConfig, bf16_to_f32
from gptoss.tokenizer import load_tokenizer


def test_round_trip(tiny: TensorSource, tiny_a: Path, tmp_path: Path, logits) -> None:
    calls: list[tuple[int, int]] = []
    (path,) = write_gguf(tiny, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert path == tmp_path / "out" / "model.gguf"
    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)
    with open_checkpoint(tmp_path / "out") as source:
        assert source.config == tiny.config
        for info in tiny.tensors():
            np.testing.assert_array_equal(source.tensor(info.name), tiny.tensor(info.name))
        tokens = np.load(tiny_a / "golden.npz")["tokens_48"]
        np.testing.assert_array_equal(logits(source, tokens), logits(tiny, tokens))
        golden = np.load(tiny_a / "golden.npz")["logits_f32_48"]
        np.testing.assert_allclose(logits(source, tokens), golden, rtol=0, atol=2e-5)


def test_gguf_reads_it(tiny: TensorSource, tmp_path: Path) -> None:
    (path,) = write_gguf(tiny, tmp_path / "tiny.gguf")
    reader = GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "gpt-oss"
    assert reader.get_field("gpt-oss.rope.scaling.type").contents() == "yarn"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.attn_sinks.weight"].tensor_type == Type.F32
    exact = quants.dequantize(tensors["blk.3.ffn_up_exps.weight"].data, Type.MXFP4)
    np.testing.assert_array_equal(exact[5], tiny.expert("block.3.mlp.mlp1_weight", 5)[1::2])
    exact = quants.dequantize(tensors["blk.3.ffn_down_exps.weight"].data, Type.MXFP4)
    np.testing.assert_array_equal(exact[7], tiny.expert("block.3.mlp.mlp2_weight", 7))
    found = quants.dequantize(tensors["output.weight"].data, Type.BF16)
    np.testing.assert_array_equal(found, bf16_to_f32(tiny.tensor("unembedding.weight")))


def test_q8_0(tiny: TensorSource, tmp_path: Path) -> None:
    (path,) = write_gguf(tiny, tmp_path / "q8.gguf", "q8")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    kinds = {name: tensor.tensor_type for name, tensor in tensors.items()}
    assert kinds["output.weight"] == kinds["blk.1.attn_k.weight"] == Type.Q8_0
    assert kinds["token_embd.weight"] == Type.BF16
    assert kinds["blk.1.ffn_gate_inp.weight"] == Type.F32
    expected = quants.quantize(bf16_to_f32(tiny.tensor("unembedding.weight")), Type.Q8_0)
    np.testing.assert_array_equal(tensors["output.weight"].data, expected)
    with open_checkpoint(path) as source:  # written again: not rounded again
        (again,) = write_gguf(source, tmp_path / "again.gguf", "q8")
    data = {tensor.name: tensor.data for tensor in GGUFReader(again).tensors}
    np.testing.assert_array_equal(data["output.weight"], expected)


def test_bf16_experts(tmp_path: Path, tiny: TensorSource) -> None:
    write_checkpoint(tiny, tmp_path / "bf16", "huggingface-bf16")
    with open_checkpoint(tmp_path / "bf16") as unpacked:
        (path,) = write_gguf(unpacked, tmp_path / "bf16.gguf")
        with open_checkpoint(path) as source:
            assert source.expert_dtype == "bf16"
            for info in unpacked.tensors():
                np.testing.assert_array_equal(source.tensor(info.name), unpacked.tensor(info.name))
            matrix = "block.2.mlp.mlp1_weight"
            np.testing.assert_array_equal(source.expert(matrix, 3), unpacked.expert(matrix, 3))


def test_the_bundled_model_with_its_vocabulary(tmp_path: Path) -> None:
    with open_checkpoint(BUNDLED_MODEL) as nano:
        (path,) = write_gguf(nano, tmp_path / "nano.gguf")
        with open_checkpoint(path) as source:
            assert source.config == nano.config
            inside = load_tokenizer(source.directory, source.config)
            write_checkpoint(source, tmp_path / "back", "huggingface")
        beside = load_tokenizer(nano.directory, nano.config)
    text = "Once upon a time, there was a little girl.<|end|> 12345"
    again = load_tokenizer(tmp_path / "back", source.config)
    for found in (inside, again):
        assert found.encode(text, ["<|end|>"]) == beside.encode(text, ["<|end|>"])
        ends = set(nano.config.eos_token_ids)  # the engine stops at either's
        assert found.eos_ids | ends == beside.eos_ids | ends
        assert found.conversation_format == beside.conversation_format == "none"


def test_the_published_vocabulary_comes_back_as_its_file(tmp_path: Path) -> None:
    config = ModelConfig(
        num_hidden_layers=1,
        num_experts=4,
        vocab_size=201_088,
        hidden_size=32,
        intermediate_size=32,
        head_dim=4,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    source = SyntheticSource(config, seed=0, threads=1)
    source.directory = tmp_path / "vocabulary"
    source.directory.mkdir()
    shutil.copy(o200k_path(), source.directory / "o200k_base.tiktoken")
    (path,) = write_gguf(source, tmp_path / "harmony.gguf")
    with open_checkpoint(path) as opened:
        assert opened.config == config
        write_checkpoint(opened, tmp_path / "back")
    written = sorted(file.name for file in (tmp_path / "back").iterdir())
    assert written == ["config.json", "model.safetensors", "o200k_base.tiktoken"]
    assert (tmp_path / "back" / "o200k_base.tiktoken").read_bytes() == o200k_path().read_bytes()


def test_no_room_and_no_overwriting(tiny: TensorSource, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there.gguf").write_bytes(b"x")
    with pytest.raises(Error, match="expected a new file"):
        write_gguf(tiny, tmp_path / "there.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"x")
    with pytest.raises(Error, match="expected a new or empty directory"):
        write_gguf(tiny, tmp_path / "folder")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Error, match=r"expected .* GB of free space, found 0\.00"):
        write_gguf(tiny, tmp_path / "new.gguf")
    assert not (tmp_path / "new.gguf").exists()


def test_an_interrupted_call_leaves_nothing(tiny: TensorSource, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for name in ("out", "out.gguf"):
        with pytest.raises(KeyboardInterrupt):
            write_gguf(tiny, tmp_path / name, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_the_format_cannot_say(tiny: TensorSource, tmp_path: Path) -> None:
    import dataclasses

    arrays = {info.name: tiny.tensor(info.name) for info in tiny.tensors()}
    source = ArraySource(dataclasses.replace(tiny.config, swiglu_limit=5.0), arrays)
    with pytest.raises(Error, match=r"swiglu_limit: expected 7\.0"):
        write_gguf(source, tmp_path / "out.gguf")


@pytest.mark.parametrize("options", [[], ["--weights", "q8"]])
def test_command(tiny_a: Path, tmp_path: Path, options: list[str], capsys: Any) -> None:
    target = tmp_path / "tiny.gguf"
    assert main(["convert", str(tiny_a), str(target), "--layout", "gguf", *options]) == 0
    assert "tiny.gguf: 1 files" in capsys.readouterr().out
    assert main(["info", str(target)]) == 0
    assert "gguf" in capsys.readouterr().out

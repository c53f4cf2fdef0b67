"""What people take for a model: each is told what it is and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.errors import Error

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:16d0f997dcfc4462089d536bffe51e6f4a1d3f6a3f8c3a9f0f8f5f7d2c1b0a99\n"
    "size 4792272488\n"
)


def refused(path: Path, *told: str) -> None:
    with pytest.raises(Error) as caught:
        open_checkpoint(path)
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize("shards", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_no_model(tmp_path: Path, shards: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / shards).write_bytes(b"")
    refused(tmp_path, "expected a model, found a PEFT adapter", "merge it into its base model")
    if shards.endswith(".safetensors"):
        refused(tmp_path / shards, "found a PEFT adapter")


def test_an_adapter_beside_a_model(original) -> None:
    (original.directory / "adapter_config.json").write_text("{}")
    open_checkpoint(original.directory)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer(original, name: str) -> None:
    original[name].write_text(POINTER)
    refused(
        original.directory,
        f"{original[name]}: expected the file itself, found a Git LFS pointer",
        "stands for 4,792,272,488 bytes",
        "git lfs pull",
    )
    refused(original["model.safetensors"], "found a Git LFS pointer")


@pytest.mark.parametrize("name", ["gpt-oss-20b-MXFP4.gguf", "gpt-oss.bin"])
def test_a_git_lfs_pointer_of_a_gguf_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    refused(tmp_path / name, "found a Git LFS pointer")
    if name.endswith(".gguf"):
        refused(tmp_path, "found a Git LFS pointer")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_another_architecture(tmp_path: Path, weights: str) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / weights).write_bytes(b"")
    refused(tmp_path, "model_type: expected 'gpt_oss', found 'llama' (LlamaForCausalLM)")


def test_pickled_weights(original) -> None:
    original["model.safetensors"].rename(original["pytorch_model.bin"])
    refused(original.directory, "found pytorch_model.bin", "save the model anew")


@pytest.mark.parametrize(("marker", "what"), [("state.pt", ""), ("adapters.json", "fine-tuning ")])
def test_a_run(tmp_path: Path, original, marker: str, what: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / marker).write_bytes(b"")
    (run / "config.json").write_text("{}")
    refused(run, f"found a {what or 'training '}run ({marker})", f"gptoss export {run} {run}/model")
    original.directory.rename(run / "model")
    refused(run, f"use {run}/model")
    open_checkpoint(run / "model")

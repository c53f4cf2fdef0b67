"""A checkpoint small enough to be broken in a hundred ways, and tools to break it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.model.config import ModelConfig

SMALL = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    vocab_size=64,
    hidden_size=64,
    intermediate_size=32,
    head_dim=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=16,
)


class Broken:
    """A checkpoint directory whose files can be changed byte by byte or key by key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __getitem__(self, name: str) -> Path:
        return self.directory / name

    def header(
        self, edit: Callable[[dict[str, Any]], None], name: str = "model.safetensors"
    ) -> None:
        """Change a file's header; its data stays as it is."""
        header, data = self.parse(name)
        edit(header)
        self.write(header, data, name)

    def parse(self, name: str = "model.safetensors") -> tuple[dict[str, Any], bytes]:
        content = self[name].read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        return json.loads(content[8 : 8 + length]), content[8 + length :]

    def write(self, header: Any, data: bytes, name: str = "model.safetensors") -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self[name].write_bytes(struct.pack("<Q", len(text)) + text + data)

    def json(self, edit: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
        value = json.loads(self[name].read_text())
        edit(value)
        self[name].write_text(json.dumps(value))


@pytest.fixture(scope="session")
def small_source() -> SyntheticSource:
    return SyntheticSource(SMALL, seed=1, name="small", threads=1)


@pytest.fixture
def original(tmp_path: Path, small_source: SyntheticSource) -> Broken:
    """One file in the original layout."""
    write_checkpoint(small_source, tmp_path / "original-layout")
    return Broken(tmp_path / "original-layout")


@pytest.fixture
def sharded(tmp_path: Path, small_source: SyntheticSource) -> Broken:
    """Six files and an index in the Hugging Face layout."""
    write_checkpoint(small_source, tmp_path / "sharded", "huggingface", max_shard_bytes=14_500)
    return Broken(tmp_path / "sharded")


@pytest.fixture
def broken_copy() -> Callable[[Path, Path], Broken]:
    """Copies a checkpoint directory so that it can be broken."""

    def copy(directory: Path, target: Path) -> Broken:
        shutil.copytree(directory, target)
        return Broken(target)

    return copy

"""JSON of a checkpoint written to do harm: any value at any place gives a model or an Error."""

from __future__ import annotations

import dataclasses
import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss.checkpoint import open_checkpoint, write_checkpoint, write_panels
from gptoss.checkpoint.source import TensorInfo
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.errors import Error
from gptoss.model import ModelConfig, parse_config, read_config, to_huggingface, to_original

from ..hostile import damaged

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
UNSCALED = ModelConfig(1, 4, 64, 32, 32, 8, 4, 2, rope_scaling_factor=1.0, eos_token_ids=(3, 5))
INDEX = "model.safetensors.index.json"
FILE = "model.safetensors"
often = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextmanager
def only_errors(about: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unknown keys
        try:
            yield
        except Error as error:
            message = str(error)
            assert str(about) in message and "\n" not in message and len(message) < 2000


@often
@given(
    data=st.one_of(
        damaged(to_original(SMALL)),
        damaged(to_huggingface(SMALL)),
        damaged(to_huggingface(UNSCALED, "bf16")),
        damaged({**to_huggingface(SMALL), "rope_parameters": {"rope_type": "default"}}),
    )
)
def test_any_value_in_config_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with only_errors(path):
        config = read_config(path)
        assert parse_config(to_original(config)) == config
        assert config.parameters() > 0 and config.context_length > 0


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "sharded"
    source = SyntheticSource(SMALL, seed=1, name="small", threads=1)
    write_checkpoint(source, directory, "huggingface", max_shard_bytes=40_000)
    return directory


def opens(directory: Path) -> None:
    with only_errors(directory), open_checkpoint(directory) as source:
        for info in source.tensors():
            assert source.tensor(info.name).shape == info.shape


@often
@given(data=st.data())
def test_any_value_in_the_index(sharded: Path, data: st.DataObject) -> None:
    good = json.loads((sharded / INDEX).read_bytes())
    try:
        (sharded / INDEX).write_bytes(data.draw(damaged(good)))
        opens(sharded)
    finally:
        (sharded / INDEX).write_text(json.dumps(good))


@settings(often, max_examples=30)
@given(data=st.data())
def test_any_value_in_generation_config_json(sharded: Path, data: st.DataObject) -> None:
    """It is copied, and never read."""
    (sharded / "generation_config.json").write_bytes(
        data.draw(damaged({"do_sample": True, "eos_token_id": [1, 2], "temperature": 1.0}))
    )
    with open_checkpoint(sharded) as source:
        assert source.config.eos_token_ids == ()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of one file each."""
    source = SyntheticSource(SMALL, seed=1, name="small", threads=1)
    found = {}
    for name in ("published", "packed"):
        found[name] = tmp_path_factory.mktemp("models") / name
    write_checkpoint(source, found["published"])
    write_panels(source, found["packed"], threads=1)
    return found


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("kind", ["published", "packed"])
@often
@given(data=st.data())
def test_any_value_in_the_header(single: dict[str, Path], kind: str, data: st.DataObject) -> None:
    content = (single[kind] / FILE).read_bytes()
    header, tensors = header_of(content)
    if data.draw(st.booleans()):  # a few tensors make most of it
        metadata = data.draw(damaged(header.pop("__metadata__")))
        text = json.dumps(header)[:-1].encode() + b', "__metadata__": ' + metadata + b"}"
    else:
        text = data.draw(damaged(header))
    try:
        (single[kind] / FILE).write_bytes(with_header(text, tensors))
        opens(single[kind])
    finally:
        (single[kind] / FILE).write_bytes(content)


@often
@given(data=st.data())
def test_any_value_in_the_checksums(single: dict[str, Path], data: st.DataObject) -> None:
    content = (single["packed"] / FILE).read_bytes()
    header, tensors = header_of(content)
    good = json.loads(header["__metadata__"]["checksums"])
    header["__metadata__"]["checksums"] = data.draw(damaged(good)).decode()
    try:
        (single["packed"] / FILE).write_bytes(with_header(json.dumps(header).encode(), tensors))
        opens(single["packed"])
    finally:
        (single["packed"] / FILE).write_bytes(content)


@pytest.mark.parametrize("text", ["[" * 100_000, "\ud800", "{}", "", '{"a": NaN}', "7" * 5000])
def test_checksums_that_are_none(single: dict[str, Path], text: str) -> None:
    content = (single["packed"] / FILE).read_bytes()
    header, tensors = header_of(content)
    header["__metadata__"]["checksums"] = text
    try:
        (single["packed"] / FILE).write_bytes(with_header(json.dumps(header).encode(), tensors))
        with pytest.raises(Error, match="metadata: checksums: expected an object with 16") as error:
            open_checkpoint(single["packed"])
        assert len(str(error.value)) < 1000
    finally:
        (single["packed"] / FILE).write_bytes(content)


class Counting(SyntheticSource):
    """Counts how often all of its tensors are gone through."""

    listed = 0

    def tensors(self) -> list[TensorInfo]:
        self.listed += 1
        return super().tensors()


def test_many_layers_are_written_without_listing_them_for_each(tmp_path: Path) -> None:
    source = Counting(dataclasses.replace(SMALL, num_hidden_layers=40), threads=1)
    write_checkpoint(source, tmp_path / "out")
    assert source.listed <= 2


def test_bytes_of_a_model_are_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def nbytes(info: TensorInfo) -> int:
        nonlocal asked
        asked += 1
        return 1

    monkeypatch.setattr(TensorInfo, "nbytes", property(nbytes))
    source = SyntheticSource(SMALL, threads=1)
    assert source.nbytes == source.nbytes == asked == len(source.tensors())

"""Damaged and hostile files: `gptoss.Error`, naming what was expected, and nothing else."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf_dialects import write
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.gguf_write import write_gguf
from gptoss.checkpoint.source import TensorSource
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.errors import Error
from gptoss.gguf import types
from gptoss.gguf.reader import GgufFile
from gptoss.gguf.types import TENSOR_TYPES, U32
from gptoss.gguf.writer import encode_header
from gptoss.model import ModelConfig

SMALL = ModelConfig(
    num_hidden_layers=1,
    num_experts=4,
    vocab_size=16,
    hidden_size=32,
    intermediate_size=32,
    head_dim=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=8,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_gguf(SyntheticSource(SMALL, seed=0, threads=1), path)
    return path


def read_everything(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_checkpoint(path) as source:
            for info in source.tensors():
                assert source.tensor(info.name).shape == info.shape


def read_or_refused(path: Path) -> None:
    try:
        read_everything(path)
    except Error as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 4000


def test_cut_short_at_every_length(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    header = GgufFile(small).tensors["token_embd.weight"].begin
    for length in [*range(4, header, 7), *range(header, len(data), 997), len(data) - 33]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(data[:length])
        with pytest.raises(Error, match="end of the file|missing|cannot be read"):
            open_checkpoint(path)


@settings(max_examples=400, deadline=None)
@given(
    place=st.integers(0, 4000),
    new=st.one_of(
        st.binary(min_size=1, max_size=9),
        st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 62), b"\x01" + b"\0" * 7]),
    ),
)
def test_overwritten(small: Path, tmp_path_factory: Any, place: int, new: bytes) -> None:
    data = bytearray(small.read_bytes())
    data[place : place + len(new)] = new
    path = tmp_path_factory.mktemp("flipped") / "flipped.gguf"
    path.write_bytes(data)
    if data[:4] == b"GGUF":
        read_or_refused(path)


Edit = Callable[[bytearray], None]


def put(place: int, value: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        data[place : place + len(value)] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(4, struct.pack("<I", 1)), "expected version 2 or 3 of GGUF, little-endian, found 1"),
        (put(4, struct.pack(">I", 3)), "found version 3, big-endian"),
        (put(8, struct.pack("<Q", 1 << 40)), "expected at most 65536 tensors"),
        (put(16, struct.pack("<Q", 1 << 40)), "expected at most 65536 keys"),
        (put(24, struct.pack("<Q", 1 << 40)), "expected a name of at most 1024 bytes"),
        (put(32, b"\xff"), "metadata key 0: expected UTF-8"),
        (put(32 + 20, struct.pack("<I", 99)), "expected a type of GGUF, found number 99"),
    ],
)
def test_headers(small: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    data = bytearray(small.read_bytes())
    edit(data)
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(Error, match=message):
        open_checkpoint(path)


def raw_file(
    path: Path, tensors: list[tuple[str, tuple[int, ...], int, int]], nbytes: int, align: int = 32
) -> Path:
    """A header that says (name, shape as stored, type, offset) of each tensor, and zeros."""
    head = encode_header([("general.alignment", U32, align)], [])
    head = head[: head.index(b"general.alignment") + 17 + 8]
    parts = [head[:8], struct.pack("<Q", len(tensors)), head[16:]]
    for name, shape, kind, offset in tensors:
        parts += [struct.pack("<Q", len(name)), name.encode(), struct.pack("<I", len(shape))]
        parts += [struct.pack("<Q", size) for size in shape]
        parts.append(struct.pack("<IQ", kind, offset))
    data = b"".join(parts)
    path.write_bytes(data + bytes(-len(data) % 32) + bytes(nbytes))
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", (8,), 0, 0), ("a", (8,), 0, 32)], "appears twice"),
        ([("a", (16,), 0, 0), ("b", (8,), 0, 32)], "overlaps"),
        ([("a", (8,), 0, 8)], "offset: expected a multiple of 32, found 8"),
        ([("a", (8,), 0, 1 << 63)], "found the end of the file"),
        ([("a", (64,), 0, 0)], "found the end of the file"),
        ([("a", (1 << 40, 1 << 40), 0, 0)], "absurd sizes"),
        ([("a", (0,), 0, 0)], "absurd sizes"),
        ([("a", (31,), 8, 0)], "expected rows of a multiple of 32 values for Q8_0"),
        ([("a", (8,), 5, 0)], "expected a type of tensors that is known here, found 5"),
        ([("a", (1, 1, 1, 1, 1), 0, 0)], "expected 1 to 4 dimensions, found 5"),
        ([("a", (), 0, 0)], "expected 1 to 4 dimensions, found 0"),
    ],
)
def test_tensor_descriptions(tmp_path: Path, tensors: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        GgufFile(raw_file(tmp_path / "raw.gguf", tensors, 128))


@pytest.mark.parametrize("align", [0, 3, 1 << 30])
def test_alignment(tmp_path: Path, align: int) -> None:
    with pytest.raises(Error, match="expected a power of two"):
        GgufFile(raw_file(tmp_path / "raw.gguf", [], 0, align))


def test_endless_arrays(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    many = [("a", types.TEXT, [""] * 1000)]
    data = bytearray(encode_header(many, []))
    place = data.index(struct.pack("<Q", 1000))
    data[place : place + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(data)
    with pytest.raises(Error, match="expected at most 4194304 values in arrays"):
        GgufFile(path)
    data[place : place + 8] = struct.pack("<Q", 2000)
    path.write_bytes(data)
    with pytest.raises(Error, match="end of the file"):
        GgufFile(path)


def test_mistyped_metadata(tmp_path: Path) -> None:
    path = tmp_path / "typed.gguf"
    entries = [("a", U32, 1), ("b", types.TEXT, "x"), ("c", U32, [1]), ("d", types.F32, 1e-5)]
    path.write_bytes(encode_header(entries, []))
    file = GgufFile(path)
    assert (file.integer("a"), file.text("b"), file.array("c")) == (1, "x", [1])
    assert file.real("d") == 1e-5
    for read, key, message in (
        (file.integer, "b", "b: expected an integer, found 'x'"),
        (file.integer, "c", "c: expected an integer, found 'an array of 1 values'"),
        (file.text, "a", "a: expected text, found 1"),
        (file.array, "a", "a: expected an array, found 1"),
        (file.real, "b", "b: expected a number, found 'x'"),
        (file.integer, "e", "e: expected an integer, found no such key"),
    ):
        with pytest.raises(Error, match=message):
            read(key)
    file.close()
    with pytest.raises(Error, match="the file has been closed"):
        file.integer("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "llama"}, "expected gpt-oss or gptoss, found 'llama'"),
        ({"gpt-oss.rope.scaling.type": "linear"}, "rope.scaling.type: expected 'yarn'"),
        ({"gpt-oss.rope.dimension_count": 32}, "rope.dimension_count: expected 64, found 32"),
        ({"gpt-oss.attention.value_length": 32}, "value_length: expected 64, found 32"),
        ({"gpt-oss.attention.sliding_window_pattern": 3}, "expected 2, found 3"),
        ({"gpt-oss.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor: expected 1.0"),
        ({"gpt-oss.expert_used_count": 9}, "expert_used_count: expected at most"),
        ({"gpt-oss.block_count": 3}, "unexpected tensors: 'blk.3"),
        ({"gpt-oss.block_count": 5}, "missing tensors: 'blk.4"),
        ({"gpt-oss.embedding_length": 64}, "expected shape .512, 64., found .512, 128."),
        ({"tokenizer.ggml.eos_token_id": 512}, "expected ids within the vocabulary of 512"),
    ],
)
def test_metadata_of_another_model(
    tiny: TensorSource, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    import gguf

    path = write(tiny, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(path)
    entries = []
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        kind = int(field.types[0])
        entries.append((key, kind, changes.pop(key, field.contents())))
    for key, value in changes.items():
        kind = {str: types.TEXT, int: U32, float: types.F32}[type(value)]
        entries.append((key, kind, value))
    file = GgufFile(path)
    names = {0: "F32", 30: "BF16", 39: "MXFP4"}
    ordered = sorted(file.tensors.values(), key=lambda entry: entry.begin)
    head = encode_header(entries, [(e.name, names[e.number], e.shape) for e in ordered])
    path.write_bytes(head + path.read_bytes()[ordered[0].begin :])
    with pytest.raises(Error, match=message):
        open_checkpoint(path)


def test_k_quants_are_refused_by_name(tiny: TensorSource, tmp_path: Path) -> None:
    path = write(tiny, tmp_path / "model.gguf", kind=Type.Q4_0)
    with pytest.raises(Error, match="type Q4_0 cannot be read: .* ggml-org/gpt-oss-20b-GGUF"):
        open_checkpoint(path)
    assert {"Q4_K", "Q6_K", "IQ4_XS"} <= {kind.name for kind in TENSOR_TYPES.values()}


def test_a_block_shared_by_q_and_k(tmp_path: Path) -> None:
    source = SyntheticSource(SMALL, seed=0, threads=1)
    path = write(source, tmp_path / "m.gguf", fused_qkv=Type.Q8_0)  # biases of 16, 8 and 8 values
    with pytest.raises(Error, match=r"attn_qkv\.bias: expected q, k and v of whole blocks of Q8_0"):
        open_checkpoint(path)


def test_parts(tiny: TensorSource, tmp_path: Path) -> None:
    write(tiny, tmp_path / "m.gguf", split_max_tensors=30)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    for place in (tmp_path, parts[0], parts[1]):
        with open_checkpoint(place) as source:
            assert source.files == parts
            assert source.directory == parts[0]
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(parts[0].read_bytes())
    with pytest.raises(Error, match=r"split\.count: expected 1 by its name"):
        open_checkpoint(alone)
    with pytest.raises(Error, match="expected one model, found"):
        open_checkpoint(tmp_path)
    alone.unlink()
    first, second = parts[0].read_bytes(), parts[1].read_bytes()
    parts[0].write_bytes(second)
    parts[1].write_bytes(first)
    with pytest.raises(Error, match=r"split\.no: expected 0 by its name, found 1"):
        open_checkpoint(parts[0])
    parts[1].unlink()
    with pytest.raises(Error, match="missing m-00002-of"):
        open_checkpoint(parts[0])


def test_a_first_part_without_tensors(tiny: TensorSource, tmp_path: Path) -> None:
    """As gguf-split --no-tensor-first-split writes it."""
    write(tiny, tmp_path / "m.gguf", split_max_tensors=30, small_first_shard=True)
    with open_checkpoint(tmp_path) as source:
        assert not GgufFile(source.files[0]).tensors
        assert source.config.vocab_size == tiny.config.vocab_size
        np.testing.assert_array_equal(
            source.tensor("embedding.weight"), tiny.tensor("embedding.weight")
        )


def test_a_blob_without_a_suffix(small: Path, tmp_path: Path) -> None:
    """As Ollama keeps them."""
    blob = tmp_path / ("sha256-" + "0" * 64)
    blob.write_bytes(small.read_bytes())
    with open_checkpoint(blob) as source:
        assert source.layout == "gguf"
    with pytest.raises(Error, match="closed"):
        source.tensor("embedding.weight")


def test_sizes_of_types_are_ggmls() -> None:
    import gguf

    ours = {number: (kind.block, kind.nbytes) for number, kind in TENSOR_TYPES.items()}
    del ours[types.MXFP4_OLLAMA]  # unknown to ggml
    known = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items() if int(kind) in ours}
    assert ours.keys() >= known.keys() >= {0, 1, 8, 30, 39}
    assert known == {number: ours[number] for number in known}

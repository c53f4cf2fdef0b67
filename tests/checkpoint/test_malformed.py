"""Every way in which a checkpoint can be broken, each with an error of its own."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.safetensors import SafetensorsFile, encode_header
from gptoss.errors import Error

INDEX = "model.safetensors.index.json"


def refused(path: Path, *parts: str) -> str:
    """The message of the Error that opening `path` raises, which must contain each of `parts`."""
    with pytest.raises(Error) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "\n" not in message
    assert len(message) < 1000
    return message


# ---- one file ----


@pytest.mark.parametrize("size", [0, 1, 7])
def test_no_room_for_a_header_length(original, size: int) -> None:
    original["model.safetensors"].write_bytes(b"\x10" * size)
    found = "an empty file" if size == 0 else f"a file of {size} bytes"
    refused(original.directory, "model.safetensors", "8 bytes of header length", found)


def test_header_reaches_beyond_the_file(original) -> None:
    content = original["model.safetensors"].read_bytes()
    size = len(content)
    original["model.safetensors"].write_bytes(struct.pack("<Q", size - 7) + content[8:])
    refused(original.directory, f"header length {size - 7} reaches beyond", f"at most {size - 8}")


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 64) - 1])
def test_header_too_large(original, length: int) -> None:
    content = original["model.safetensors"].read_bytes()
    original["model.safetensors"].write_bytes(struct.pack("<Q", length) + content[8:])
    refused(original.directory, "header length: expected at most 100000000", f"found {length}")


def test_truncated_data(original) -> None:
    content = original["model.safetensors"].read_bytes()
    original["model.safetensors"].write_bytes(content[:-1])
    refused(original.directory, "tensor 'unembedding.weight'", "data_offsets", "truncated")


def test_every_truncation_is_an_error(original) -> None:
    content = original["model.safetensors"].read_bytes()
    for size in range(0, len(content), 509):
        original["model.safetensors"].write_bytes(content[:size])
        refused(original.directory, "model.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "expected JSON"),
        (b"not json", "expected JSON"),
        (b"{", "expected JSON"),
        (b"[]", "expected a JSON object"),
        (b"7", "expected a JSON object"),
        (b"\xff\xfe{}", "expected UTF-8 text"),
        (b'{"\xc3": 1}', "expected UTF-8 text"),
        (b'{"norm.scale": {}, "norm.scale": {}}', "key 'norm.scale' appears twice"),
        (b'{"a": {"dtype": "U8", "dtype": "U8"}}', "key 'dtype' appears twice"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deep"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "an integer too long to read"),
        (b'{"a": NaN}', "NaN is not JSON"),
    ],
)
def test_header_is_not_json(original, header: bytes, message: str) -> None:
    _, data = original.parse()
    original.write(header, data)
    refused(original.directory, "model.safetensors: header", message)


def test_metadata(original, small_source) -> None:
    original.header(lambda h: h.update({"__metadata__": {"format": "pt", "note": "é\u0000"}}))
    open_checkpoint(original.directory).close()
    original.header(lambda h: h.pop("__metadata__"))
    open_checkpoint(original.directory).close()
    for bad in ([], "x", {"a": 1}, {"a": {}}, None):
        original.header(lambda h, bad=bad: h.update({"__metadata__": bad}))
        refused(original.directory, "__metadata__: expected an object with text values")


ENTRIES: list[tuple[Any, str]] = [
    ([], "expected dtype, shape and data_offsets, found []"),
    ("BF16", "expected dtype, shape and data_offsets"),
    ({}, "expected dtype, shape and data_offsets"),
    ({"dtype": "BF16", "shape": [64]}, "expected dtype, shape and data_offsets"),
    ({"dtype": "BF16", "shape": [64], "data_offsets": [0, 128], "x": 1}, "expected dtype, shape"),
    ({"dtype": "F5"}, "dtype: expected one of"),
    ({"dtype": 5}, "dtype: expected one of"),
    ({"dtype": []}, "dtype: expected one of"),
    ({"shape": 64}, "shape: expected sizes of 0 or more, found 64"),
    ({"shape": [-64]}, "shape: expected sizes of 0 or more, found [-64]"),
    ({"shape": [64.0]}, "shape: expected sizes of 0 or more"),
    ({"shape": [True]}, "shape: expected sizes of 0 or more"),
    ({"shape": ["64"]}, "shape: expected sizes of 0 or more"),
    ({"shape": None}, "shape: expected sizes of 0 or more"),
    ({"shape": [1] * 40 + [64]}, "shape: absurd sizes"),
    ({"shape": [10**30]}, "shape: absurd sizes"),
    ({"shape": [2**62] * 30}, "expected an integer of 1862 bits bytes"),
    ({"shape": [2**32, 2**32]}, "expected 36893488147419103232 bytes"),
    ({"shape": [0]}, "expected 0 bytes for BF16 [0], found 128"),
    ({"shape": []}, "expected 2 bytes for BF16 [], found 128"),
    ({"shape": [63]}, "expected 126 bytes for BF16 [63], found 128"),
    ({"dtype": "F32"}, "expected 256 bytes for F32 [64], found 128"),
    ({"data_offsets": [0]}, "data_offsets: expected two offsets"),
    ({"data_offsets": [0, 1, 2]}, "data_offsets: expected two offsets"),
    ({"data_offsets": "ab"}, "data_offsets: expected two offsets"),
    ({"data_offsets": [-128, 0]}, "data_offsets: expected two offsets of 0 or more"),
    ({"data_offsets": [0.0, 128.0]}, "data_offsets: expected two offsets"),
    ({"data_offsets": [128, 0]}, "data_offsets: expected begin ≤ end, found [128, 0]"),
    ({"data_offsets": [10**9, 10**9 + 128]}, "the file is truncated or the offset out of range"),
    ({"data_offsets": [10**40, 10**40 + 128]}, "the file is truncated or the offset out of range"),
]


@pytest.mark.parametrize(("change", "message"), ENTRIES, ids=range(len(ENTRIES)))
def test_entry_of_a_tensor(original, change: Any, message: str) -> None:
    def edit(header: dict[str, Any]) -> None:
        whole = not isinstance(change, dict) or len(change) != 1
        header["norm.scale"] = change if whole else {**header["norm.scale"], **change}

    original.header(edit)
    refused(original.directory, "model.safetensors: tensor 'norm.scale'", message)


def test_overlapping_offsets(original) -> None:
    def edit(header: dict[str, Any]) -> None:
        header["block.1.attn.norm.scale"]["data_offsets"] = header["norm.scale"]["data_offsets"]

    original.header(edit)
    refused(original.directory, "overlaps tensor", "block.1.attn.norm.scale", "norm.scale")


def test_a_tensor_partly_over_another(original) -> None:
    def edit(header: dict[str, Any]) -> None:
        begin, end = header["norm.scale"]["data_offsets"]
        header["norm.scale"]["data_offsets"] = [begin - 2, end - 2]

    original.header(edit)
    refused(
        original.directory, "tensor 'norm.scale' overlaps tensor", "expected it to start at byte"
    )


def test_bytes_that_belong_to_no_tensor(original) -> None:
    header, data = original.parse()
    original.write(header, data + b"\0")
    refused(original.directory, "found 1 more bytes that belong to no tensor")
    last = header["unembedding.weight"]["data_offsets"]
    shifted = {**header["unembedding.weight"], "data_offsets": [n + 4 for n in last]}
    original.write({**header, "unembedding.weight": shifted}, data + b"\0" * 4)
    refused(
        original.directory, "4 bytes between tensor 'norm.scale' and tensor 'unembedding.weight'"
    )
    original.write({}, b"x")
    refused(original.directory, "expected the data to end at byte", "the header")


def test_no_tensors_at_all(original) -> None:
    original.write({}, b"")
    refused(original.directory, "expected gpt-oss tensors", "no tensor at all")


def test_tensors_of_another_model(original) -> None:
    original.write({"bert.weight": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"1234")
    refused(original.directory, "expected gpt-oss tensors", "'bert.weight'")


# ---- tensors against config.json ----


def test_missing_tensor(original) -> None:
    header, data = original.parse()
    begin, _ = header.pop("unembedding.weight")["data_offsets"]
    original.write(header, data[:begin])
    refused(original.directory, "missing tensors", "config.json", "'unembedding.weight'")


def test_extra_tensor(original) -> None:
    header, data = original.parse()
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [len(data), len(data) + 2]}
    original.write({**header, "block.0.attn.\ud800": entry}, data + b"ab")
    refused(original.directory, "model.safetensors: unexpected tensors", r"block.0.attn.\ud800")


def test_renamed_tensor(original) -> None:
    original.header(lambda h: h.update({"norm.weight": h.pop("norm.scale")}))
    refused(original.directory, "missing tensors", "'norm.scale'")


def test_misshapen_tensor(original) -> None:
    original.header(lambda h: h["block.0.mlp.gate.weight"].update(shape=[64, 4]))
    refused(
        original.directory,
        "model.safetensors: tensor block.0.mlp.gate.weight: expected shape [4, 64]",
        "found [64, 4]",
    )


@pytest.mark.parametrize("dtype", ["I16", "U16"])
def test_wrong_dtype(original, dtype: str) -> None:
    original.header(lambda h: h["norm.scale"].update(dtype=dtype))
    refused(original.directory, f"tensor norm.scale: expected dtype BF16, found {dtype}")


def test_a_dtype_that_can_be_saved_otherwise(original) -> None:
    original.header(
        lambda h: h["norm.scale"].update(dtype="F64", shape=[h["norm.scale"]["shape"][0] // 4])
    )
    refused(original.directory, "expected dtype BF16, found F64", "save the model in bfloat16")


def test_wrong_dtype_of_experts(original) -> None:
    name = "block.0.mlp.mlp2_weight.blocks"
    original.header(lambda h: h[name].update(dtype="I8"))
    refused(original.directory, f"tensor {name}: expected dtype U8, found I8")


CONTRADICTIONS: list[tuple[str, Any, str]] = [
    ("num_hidden_layers", 3, "missing tensors"),
    ("num_hidden_layers", 1, "unexpected tensors"),
    ("num_hidden_layers", 0, "config.json: num_hidden_layers: expected 1..1024, found 0"),
    ("num_experts", 8, "mlp.gate.weight: expected shape [8, 64]"),
    ("vocab_size", 65, "embedding.weight: expected shape [65, 64]"),
    ("vocab_size", 10**15, "config.json: vocab_size: expected 1..16777216"),
    ("hidden_size", 96, "embedding.weight: expected shape [64, 96]"),
    ("intermediate_size", 64, "mlp1_weight.blocks: expected shape [4, 128, 2, 16]"),
    ("num_attention_heads", 8, "attn.qkv.weight: expected shape [96, 64]"),
    ("num_key_value_heads", 1, "attn.qkv.weight: expected shape [48, 64]"),
    ("head_dim", 16, "attn.qkv.weight: expected shape [128, 64]"),
]


@pytest.mark.parametrize(("key", "value", "message"), CONTRADICTIONS)
def test_config_contradicts_tensors(original, key: str, value: Any, message: str) -> None:
    original.json(lambda config: config.update({key: value}))
    refused(original.directory, message, "config.json")


def test_no_config(original) -> None:
    original["config.json"].unlink()
    refused(original.directory, "config.json: cannot be read: No such file")


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 63, 1)])
def test_scale_of_0xff(original, place: tuple[int, ...]) -> None:
    name = "block.1.mlp.mlp1_weight.scales"  # [4, 64, 2]
    header, data = original.parse()
    changed = bytearray(data)
    offset = (place[0] * 64 + place[1]) * 2 + place[2]
    changed[header[name]["data_offsets"][0] + offset] = 0xFF
    original.write(header, bytes(changed))
    with open_checkpoint(original.directory) as source:
        source.tensor("block.0.mlp.mlp1_weight.scales")
        with pytest.raises(Error) as caught:
            source.tensor(name)
        message = str(caught.value)
        assert name in message
        assert str(original.directory) in message
        assert f"expected MXFP4 scale bytes 0..254, found 0xFF (NaN) at {list(place)}" in message
        with pytest.raises(Error, match=f"{name}, expert {place[0]}: .*0xFF"):
            source.expert("block.1.mlp.mlp1_weight", place[0])
        source.expert("block.1.mlp.mlp1_weight", 2)


# ---- several files ----


def test_index_names_a_missing_shard(sharded) -> None:
    sharded["model-00002-of-00006.safetensors"].unlink()
    refused(sharded.directory, INDEX, "names the shard model-00002-of-00006.safetensors, which is")


def edit_map(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda index: change(index["weight_map"])


def test_tensor_in_another_shard_than_the_index_says(sharded) -> None:
    def swap(weights: dict[str, Any]) -> None:
        first, last = "model.embed_tokens.weight", "lm_head.weight"
        weights[first], weights[last] = weights[last], weights[first]

    sharded.json(edit_map(swap), INDEX)
    refused(sharded.directory, INDEX, "tensor 'model.embed_tokens.weight'", "found in model-00001")


def test_index_names_a_tensor_that_is_not_there(sharded) -> None:
    sharded.json(edit_map(lambda w: w.update(ghost="model-00001-of-00006.safetensors")), INDEX)
    refused(sharded.directory, "model-00001-of-00006.safetensors: tensor 'ghost': expected by")


def test_index_leaves_a_tensor_out(sharded) -> None:
    sharded.json(edit_map(lambda w: w.pop("model.norm.weight")), INDEX)
    refused(sharded.directory, "tensor 'model.norm.weight' is not named in")


def test_tensor_in_two_shards(sharded) -> None:
    name, first = "model-00001-of-00006.safetensors", "model.embed_tokens.weight"
    header, data = sharded.parse(name)
    entry, part = header[first], data[slice(*header[first]["data_offsets"])]
    other = "model-00006-of-00006.safetensors"
    header, data = sharded.parse(other)
    header[first] = {**entry, "data_offsets": [len(data), len(data) + len(part)]}
    sharded.write(header, data + part, other)
    refused(sharded.directory, other, f"tensor '{first}' is in {name} as well")


@pytest.mark.parametrize(
    "file",
    [
        "../model-00001-of-00006.safetensors",
        "/etc/x.safetensors",
        "sub/model.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x\0.safetensors",
        "x\n.safetensors",
        "\ud800.safetensors",
        "a" * 300 + ".safetensors",
        "config.json",
        "",
        5,
        None,
        ["model-00001-of-00006.safetensors"],
    ],
)
def test_index_names_a_file_outside_the_directory(sharded, file: Any) -> None:
    sharded.json(edit_map(lambda w: w.update({"lm_head.weight": file})), INDEX)
    refused(
        sharded.directory,
        f"{INDEX}: weight_map: tensor 'lm_head.weight': expected the name of a .safetensors file",
    )


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 5])
def test_index_without_a_weight_map(sharded, weight_map: Any) -> None:
    sharded.json(lambda index: index.update(weight_map=weight_map), INDEX)
    refused(sharded.directory, f"{INDEX}: weight_map: expected an object")
    sharded.json(lambda index: index.pop("weight_map"), INDEX)
    refused(sharded.directory, f"{INDEX}: weight_map: expected an object")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 99_999])
def test_index_is_not_json(sharded, content: bytes) -> None:
    sharded[INDEX].write_bytes(content)
    refused(sharded.directory, INDEX, "expected")


def test_shards_missing_without_an_index(sharded) -> None:
    sharded[INDEX].unlink()
    sharded["model-00002-of-00006.safetensors"].unlink()
    sharded["model-00005-of-00006.safetensors"].unlink()
    refused(sharded.directory, "expected shards 1..6 of 6, missing number 2, 5")


def test_shards_missing_of_many(sharded) -> None:
    sharded[INDEX].unlink()
    for path in sharded.directory.glob("*.safetensors"):
        path.rename(sharded[path.name.replace("of-00006", "of-999999999")])
    refused(sharded.directory, "missing number 7, 8, 9", "and more")


def test_shards_of_different_sets(sharded) -> None:
    sharded[INDEX].unlink()
    sharded["model-00002-of-00006.safetensors"].rename(sharded["model-00002-of-00007.safetensors"])
    refused(sharded.directory, "expected model.safetensors, an index, or shards of one model")


def test_shards_with_contradicting_numbers(sharded) -> None:
    sharded[INDEX].unlink()
    sharded["model-00006-of-00006.safetensors"].rename(sharded["model-00009-of-00006.safetensors"])
    sharded["model-00001-of-00006.safetensors"].rename(sharded["model-00000-of-00006.safetensors"])
    refused(sharded.directory, "shard numbers contradict each other")


def test_one_shard_is_not_a_model(sharded) -> None:
    path = sharded["model-00001-of-00006.safetensors"]
    refused(path, "expected a whole model, found one shard of several")
    for other in [*sharded.directory.glob("*.safetensors"), sharded[INDEX]]:
        if other != path:
            other.unlink()
    refused(sharded.directory, "expected shards 1..6 of 6, missing number 2, 3, 4, 5, 6")


def test_index_beside_an_unrelated_model(sharded) -> None:
    sharded["model.safetensors"].write_bytes(b"x")
    refused(sharded.directory, "holds both model.safetensors and an index")


def test_mixed_layouts(sharded, original) -> None:
    sharded[INDEX].unlink()
    for path in sharded.directory.glob("*.safetensors"):
        path.rename(sharded[path.name.replace("of-00006", "of-00007")])
    original["model.safetensors"].rename(sharded["model-00007-of-00007.safetensors"])
    refused(sharded.directory, "unexpected tensors")


# ---- no model ----


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "found nothing there")
    refused(tmp_path, "expected a model (config.json and *.safetensors), found an empty directory")
    (tmp_path / "model.bin").write_bytes(b"text")
    refused(tmp_path, "expected a model", "'model.bin'")
    refused(tmp_path / "model.bin", "expected a .safetensors or GGUF file, or a directory")
    with pytest.raises(Error, match="NUL"):
        open_checkpoint("a\0b")
    with pytest.raises(Error, match=r"cannot be read|found nothing"):
        open_checkpoint("a" * 5000)


def test_a_folder_in_place_of_a_file(original) -> None:
    original["model.safetensors"].unlink()
    original["model.safetensors"].mkdir()
    refused(original.directory, "model.safetensors: expected a file, found a folder")


def test_a_dangling_link(original) -> None:
    original["model.safetensors"].unlink()
    os.symlink("gone", original["model.safetensors"])
    refused(original.directory, "model.safetensors: expected a file, found none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_a_pipe_in_place_of_a_file(original) -> None:
    for name in ("model.safetensors", "config.json"):
        original[name].unlink()
        os.mkfifo(original[name])
    refused(original.directory, "expected a file")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_unreadable(original) -> None:
    for name in ("model.safetensors", "config.json"):
        original[name].chmod(0)
        refused(original.directory, f"{name}: cannot be read: Permission denied")
        original[name].chmod(0o600)


def test_headers_of_our_own_are_aligned_and_read_back(tmp_path: Path) -> None:
    tensors = [("a", "U8", (3,)), ("é", "BF16", (2, 2)), ("c", "U8", (0, 5))]
    content = encode_header(tensors, {"format": "pt"})
    assert len(content) % 64 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(content + bytes(range(11)))
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert [(e.name, e.dtype, e.shape) for e in file.entries.values()] == tensors
    assert file.view("a").tolist() == [0, 1, 2]
    assert file.view("é").tolist() == [[0x0403, 0x0605], [0x0807, 0x0A09]]
    assert file.view("c").shape == (0, 5)

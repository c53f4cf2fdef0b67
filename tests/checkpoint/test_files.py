from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.safetensors import SafetensorsFile, encode_header
from gptoss.checkpoint.source import ArraySource, TensorSource, transpose
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.errors import Error
from gptoss.model import mxfp4
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16

MLP1, MLP2 = "block.1.mlp.mlp1_weight", "block.1.mlp.mlp2_weight"


def assert_same(found: TensorSource, expected: TensorSource) -> None:
    assert found.tensors() == expected.tensors()
    for info in expected.tensors():
        array = found.tensor(info.name)
        assert np.array_equal(array, expected.tensor(info.name)), info.name
        assert array.shape == info.shape
        assert array.dtype == (np.uint16 if info.dtype == "BF16" else np.uint8)
        assert array.flags.c_contiguous
        assert not array.flags.writeable


def file_tensors(directory: Path) -> dict[str, bytes]:
    """Stored name → bytes, read without the code under test for names and offsets."""
    found = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        file = SafetensorsFile(path)
        for name, entry in file.entries.items():
            found[name] = content[entry.begin : entry.end]
    return found


def test_both_golden_layouts_are_the_same_model(tiny_a: Path, tiny_a_hf: Path) -> None:
    with open_checkpoint(tiny_a) as ours, open_checkpoint(str(tiny_a_hf)) as theirs:
        assert (ours.layout, theirs.layout) == ("original", "huggingface")
        assert ours.expert_dtype == theirs.expert_dtype == "mxfp4"
        assert [path.name for path in ours.files] == ["model.safetensors"]
        assert len(theirs.files) == 2
        assert ours.directory == tiny_a
        assert ours.name == str(tiny_a)
        assert_same(theirs, ours)
        assert ours.nbytes == sum(map(len, file_tensors(tiny_a).values()))


def test_tensors_are_views_of_the_file(tiny_a: Path) -> None:
    with open_checkpoint(tiny_a) as source:
        for info in source.tensors():
            array = source.tensor(info.name)
            assert not array.flags.owndata
            again = source.tensor(info.name)
            assert array.ctypes.data == again.ctypes.data, info.name
        q, k, v = (source.tensor(f"block.0.attn.{part}.weight") for part in "qkv")
        assert k.ctypes.data == q.ctypes.data + q.nbytes
        assert v.ctypes.data == k.ctypes.data + k.nbytes
        with pytest.raises(ValueError, match="read-only"):
            q[0, 0] = 1


def test_qkv_rows_against_the_file(tiny_a: Path) -> None:
    stored = np.frombuffer(file_tensors(tiny_a)["block.2.attn.qkv.weight"], np.uint16)
    stored = stored.reshape(-1, 128)  # q 8·64 rows, k 2·64, v 2·64
    with open_checkpoint(tiny_a) as source:
        assert np.array_equal(source.tensor("block.2.attn.q.weight"), stored[:512])
        assert np.array_equal(source.tensor("block.2.attn.k.weight"), stored[512:640])
        assert np.array_equal(source.tensor("block.2.attn.v.weight"), stored[640:])


def test_views_outlive_the_source(tiny_a: Path) -> None:
    source = open_checkpoint(tiny_a)
    array = source.tensor("unembedding.weight")
    total = int(array.sum())
    source.release("unembedding.weight")
    assert int(array.sum()) == total
    source.close()
    source.close()
    assert int(array.sum()) == total
    with pytest.raises(Error, match=r"model\.safetensors: tensor 'norm.scale': .*closed"):
        source.tensor("norm.scale")


def test_a_misaligned_file_is_copied_tensor_by_tensor(original, small_source) -> None:
    header, data = original.parse()
    for pad in (0, 1):
        text = json.dumps(header).encode()
        original.write(text + b" " * ((len(text) + pad) % 2), data)
        with open_checkpoint(original.directory) as source:
            assert source.tensor("norm.scale").flags.aligned
            assert_same(source, small_source)


def test_unknown_names(tiny_a: Path) -> None:
    with open_checkpoint(tiny_a) as source:
        for name in ("block.4.attn.sinks", "block.0.attn.qkv.weight", "", MLP1):
            with pytest.raises(Error, match="no tensor is called"):
                source.tensor(name)
        with pytest.raises(Error, match="no expert matrices are called"):
            source.expert("block.1.attn.q.weight", 0)
        with pytest.raises(Error, match=r"expected an expert in 0\.\.7, found 8"):
            source.expert(MLP1, 8)


@pytest.mark.parametrize("max_shard_bytes", [None, 30_000, 1])
@pytest.mark.parametrize("layout", ["original", "huggingface"])
def test_write_and_read_back(
    tmp_path: Path, small_source: SyntheticSource, layout: str, max_shard_bytes: int | None
) -> None:
    seen: list[tuple[int, int]] = []
    written = write_checkpoint(
        small_source, tmp_path / "out", layout, max_shard_bytes, lambda *now: seen.append(now)
    )
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert seen == sorted(seen)
    assert seen[-1] == (small_source.nbytes, small_source.nbytes)
    with open_checkpoint(tmp_path / "out") as source:
        assert source.layout == layout
        assert source.config == small_source.config
        assert_same(source, small_source)
        if max_shard_bytes == 30_000:
            assert len(source.files) > 2
            dash = "--" if layout == "original" else "-"
            assert (
                source.files[0].name == f"model{dash}00001-of-{len(source.files):05d}.safetensors"
            )
            sizes = [path.stat().st_size for path in source.files]
            assert max(sizes) < 30_000 + 5_000  # data and header


@pytest.mark.parametrize("max_shard_bytes", [None, 200_000])
def test_byte_exact_round_trip(tmp_path: Path, tiny_a: Path, max_shard_bytes: int | None) -> None:
    """original → huggingface → original, and the same from the other side."""
    expected = file_tensors(tiny_a)
    with open_checkpoint(tiny_a) as source:
        write_checkpoint(source, tmp_path / "hf", "huggingface", max_shard_bytes)
    with open_checkpoint(tmp_path / "hf") as source:
        write_checkpoint(source, tmp_path / "back", "original", max_shard_bytes)
    assert file_tensors(tmp_path / "back") == expected


def test_huggingface_names_are_the_published_ones(tmp_path: Path, tiny_a_hf: Path) -> None:
    with open_checkpoint(tiny_a_hf) as source:
        write_checkpoint(source, tmp_path / "hf", "huggingface")
    assert file_tensors(tmp_path / "hf") == file_tensors(tiny_a_hf)


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path, small_source) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    write_checkpoint(small_source, tmp_path / "out")
    tensors = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert {
        name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()
    } == {
        name: ({"BF16": "bfloat16", "U8": "uint8"}[dtype], shape)
        for name, (dtype, shape) in small_source.config.tensor_shapes().items()
    }


def test_bf16_experts(tmp_path: Path, small_source: SyntheticSource) -> None:
    """Unpacked and transposed on disk, handed out as [E, rows, K], packed again on request."""
    write_checkpoint(small_source, tmp_path / "bf16", "huggingface-bf16")
    stored = file_tensors(tmp_path / "bf16")
    with open_checkpoint(tmp_path / "bf16") as source:
        assert source.layout == "huggingface-bf16"
        assert source.expert_dtype == "bf16"
        for layer in range(2):
            for ours, theirs in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
                name = f"block.{layer}.mlp.{ours}_weight"
                packed = (
                    small_source.tensor(name + ".blocks"),
                    small_source.tensor(name + ".scales"),
                )
                values = mxfp4.dequantize(*packed)
                assert np.array_equal(bf16_to_f32(source.tensor(name)), values)
                bits = np.frombuffer(
                    stored[f"model.layers.{layer}.mlp.experts.{theirs}"], np.uint16
                )
                experts, rows, inner = values.shape
                assert np.array_equal(
                    bf16_to_f32(bits).reshape(experts, inner, rows), values.transpose(0, 2, 1)
                )
                for index in range(experts):
                    assert np.array_equal(source.expert(name, index), values[index])
                    assert np.array_equal(small_source.expert(name, index), values[index])
    for rule in ("mx", "mse"):
        with open_checkpoint(tmp_path / "bf16", experts="mxfp4", rule=rule) as source:
            assert source.expert_dtype == "mxfp4"
            scales = source.tensor(MLP1 + ".scales")  # either half may be asked for first
            blocks = source.tensor(MLP1 + ".blocks")
            assert np.array_equal(
                mxfp4.dequantize(blocks, scales),
                mxfp4.dequantize(
                    small_source.tensor(MLP1 + ".blocks"), small_source.tensor(MLP1 + ".scales")
                ),
            )
            assert np.array_equal(source.tensor("norm.scale"), small_source.tensor("norm.scale"))
            assert np.array_equal(blocks, source.tensor(MLP1 + ".blocks"))
            source.release(MLP1 + ".blocks")
            source.release("norm.scale")


def test_bf16_experts_are_packed_where_the_layout_wants_it(tmp_path: Path, small_source) -> None:
    write_checkpoint(small_source, tmp_path / "bf16", "huggingface-bf16", max_shard_bytes=20_000)
    with open_checkpoint(tmp_path / "bf16") as source:
        write_checkpoint(source, tmp_path / "original-layout", "original")
        write_checkpoint(source, tmp_path / "again", "huggingface-bf16")
    assert file_tensors(tmp_path / "again") == file_tensors(tmp_path / "bf16")
    with open_checkpoint(tmp_path / "original-layout") as source:
        for name in (MLP1, MLP2):
            for index in range(source.config.num_experts):
                assert np.array_equal(source.expert(name, index), small_source.expert(name, index))


def test_transposing_blocks_of_uneven_size() -> None:
    matrix = np.arange(300 * 130, dtype=np.uint16).reshape(300, 130)
    out = np.empty((130, 300), dtype=np.uint16)
    transpose(matrix, out)
    assert np.array_equal(out, matrix.T)


def test_arrays(tmp_path: Path, small_source: SyntheticSource) -> None:
    arrays = {info.name: small_source.tensor(info.name) for info in small_source.tensors()}
    config = small_source.config
    assert_same(ArraySource(config, arrays), small_source)
    # q, k and v may come as one
    for kind in ("weight", "bias"):
        for layer in range(2):
            parts = [arrays.pop(f"block.{layer}.attn.{part}.{kind}") for part in "qkv"]
            arrays[f"block.{layer}.attn.qkv.{kind}"] = np.concatenate(parts)
    source = ArraySource(config, arrays)
    assert source.layout == "arrays"
    assert_same(source, small_source)
    # float32 is rounded to bf16
    exact = np.full(config.hidden_size, 1 + 2.0**-9, dtype=np.float32)
    source = ArraySource(config, {**arrays, "norm.scale": exact})
    assert np.array_equal(source.tensor("norm.scale"), f32_to_bf16(exact))
    write_checkpoint(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as written:
        assert (bf16_to_f32(written.tensor("norm.scale")) == 1.0).all()


def test_arrays_with_float32_experts_are_packed_without_bf16_between(
    tmp_path: Path, small_source: SyntheticSource
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        info.name: small_source.tensor(info.name)
        for info in small_source.tensors()
        if "_weight." not in info.name
    }
    for layer in range(2):
        for name, rows, inner in (("mlp1", 64, 64), ("mlp2", 64, 32)):
            values = rng.standard_normal((4, rows, inner)).astype(np.float32)
            arrays[f"block.{layer}.mlp.{name}_weight"] = values
    source = ArraySource(small_source.config, arrays)
    assert source.expert_dtype == "bf16"
    assert np.array_equal(source.expert(MLP1, 2), arrays[MLP1][2])
    assert np.array_equal(source.tensor(MLP1), f32_to_bf16(arrays[MLP1]))
    for rule in ("mx", "mse"):
        write_checkpoint(source, tmp_path / rule, rule=rule)
        blocks, scales = mxfp4.quantize(arrays[MLP1], rule)
        with open_checkpoint(tmp_path / rule) as written:
            assert np.array_equal(written.tensor(MLP1 + ".blocks"), blocks)
            assert np.array_equal(written.tensor(MLP1 + ".scales"), scales)
    arrays[MLP2][3, 5, 7] = np.nan
    with pytest.raises(Error, match=f"arrays: tensor {MLP2}, expert 3: .*NaN"):
        write_checkpoint(source, tmp_path / "nan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mse", "mx"]  # nothing left behind


def test_bad_arrays(small_source: SyntheticSource) -> None:
    config = small_source.config
    good = {info.name: small_source.tensor(info.name) for info in small_source.tensors()}
    with pytest.raises(Error, match="arrays: missing tensors: 'norm.scale'"):
        ArraySource(config, {name: good[name] for name in good if name != "norm.scale"})
    with pytest.raises(Error, match="mine: unexpected tensors: 'norm.bias'"):
        ArraySource(config, {**good, "norm.bias": good["norm.scale"]}, name="mine")
    with pytest.raises(Error, match=r"norm.scale: expected shape \[64\], found \[32\]"):
        ArraySource(config, {**good, "norm.scale": good["norm.scale"][:32]})
    with pytest.raises(Error, match="norm.scale: expected uint16 or float32, found float64"):
        ArraySource(config, {**good, "norm.scale": np.ones(64)})
    with pytest.raises(Error, match="blocks: expected uint8, found float32"):
        ArraySource(config, {**good, MLP1 + ".blocks": np.ones((4, 64, 2, 16), np.float32)})
    with pytest.raises(Error, match="expected an array, found list"):
        ArraySource(config, {**good, "norm.scale": [1.0] * 64})  # type: ignore[dict-item]
    with pytest.raises(Error, match="qkv.weight: expected 64 rows, found"):
        ArraySource(config, {**good, "block.0.attn.qkv.weight": np.zeros((3, 64), np.uint16)})
    scales = good[MLP1 + ".scales"].copy()
    scales[1, 2, 1] = 255
    source = ArraySource(config, {**good, MLP1 + ".scales": scales})
    with pytest.raises(Error, match=rf"{MLP1}.scales: .*found 0xFF \(NaN\) at \[1, 2, 1\]"):
        source.tensor(MLP1 + ".scales")


def test_where_a_model_is_found(tmp_path: Path, tiny_a: Path, tiny_a_hf: Path) -> None:
    # a single file beside its config.json
    with open_checkpoint(tiny_a / "model.safetensors") as source:
        assert source.directory == tiny_a
    renamed = tmp_path / "renamed"
    shutil.copytree(tiny_a, renamed)
    (renamed / "model.safetensors").rename(renamed / "weights.safetensors")
    open_checkpoint(renamed).close()
    # a checkout with the original weights only, the tokenizer above them
    checkout = tmp_path / "checkout"
    shutil.copytree(tiny_a, checkout / "original")
    with open_checkpoint(checkout) as source:
        assert source.files == [checkout / "original" / "model.safetensors"]
        assert source.directory == checkout / "original"
    (checkout / "tokenizer.json").write_text("{}")
    for path in (checkout, checkout / "original"):
        with open_checkpoint(path) as source:
            assert source.directory == checkout
    # with both, the files at the top count
    shutil.copytree(tiny_a_hf, checkout, dirs_exist_ok=True)
    with open_checkpoint(checkout) as source:
        assert source.layout == "huggingface"
    # files of a download cache are links
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny_a.iterdir():
        os.symlink(path, linked / path.name)
    open_checkpoint(linked).close()


@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index(sharded, small_source: SyntheticSource, first: int) -> None:
    sharded["model.safetensors.index.json"].unlink()
    paths = sorted(sharded.directory.glob("*.safetensors"))
    for number, path in enumerate(paths, start=first):
        path.rename(sharded[f"x-{number:05d}-of-{len(paths):05d}.safetensors"])
    with open_checkpoint(sharded.directory) as source:
        assert_same(source, small_source)


def test_shards_numbered_as_published_for_20b(sharded, small_source: SyntheticSource) -> None:
    """model-00000-of-00002, -00001- and -00002-: one file more than the names say."""
    sharded["model.safetensors.index.json"].unlink()
    paths = sorted(sharded.directory.glob("*.safetensors"))
    for number, path in enumerate(paths):
        path.rename(sharded[f"model-{number:05d}-of-{len(paths) - 1:05d}.safetensors"])
    with open_checkpoint(sharded.directory) as source:
        assert_same(source, small_source)


def test_tokenizer_files_travel_along(tmp_path: Path, tiny_a: Path) -> None:
    shutil.copytree(tiny_a, tmp_path / "in")
    for name in ("tokenizer.json", "tokenizer_config.json", "x.tiktoken", "golden.npz", "notes.md"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    with open_checkpoint(tmp_path / "in") as source:
        write_checkpoint(source, tmp_path / "out", "huggingface")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "x.tiktoken",
    }
    assert (tmp_path / "out" / "x.tiktoken").read_bytes() == b"x.tiktoken"


def test_writer_refuses(tmp_path: Path, small_source: SyntheticSource) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(Error, match=f"{name}: expected a new or empty directory"):
            write_checkpoint(small_source, tmp_path / name)
    with pytest.raises(Error, match="cannot be written"):
        write_checkpoint(small_source, tmp_path / "file" / "below")
    with pytest.raises(Error, match="layout: expected one of original, .* found 'gguf'"):
        write_checkpoint(small_source, tmp_path / "new", "gguf")
    for bad in (0, -1, 1.5, True):
        with pytest.raises(Error, match="max_shard_bytes: expected above 0"):
            write_checkpoint(small_source, tmp_path / "new", max_shard_bytes=bad)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    write_checkpoint(small_source, tmp_path / "empty")
    open_checkpoint(tmp_path / "empty").close()


def test_writer_wants_enough_space(
    tmp_path: Path, small_source: SyntheticSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(Error, match=r"expected 0\.02 GB of free space, found 0\.00 GB"):
        write_checkpoint(small_source, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, small_source) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(small_source, tmp_path / "out", progress=stop)
    assert not list(tmp_path.iterdir())


def test_unpacking_refuses_what_bf16_cannot_hold(tmp_path: Path, small_source) -> None:
    arrays = {info.name: small_source.tensor(info.name).copy() for info in small_source.tensors()}
    arrays[MLP1 + ".scales"][2, 0, 0] = 254
    arrays[MLP1 + ".blocks"][2, 0, 0] = 0x77
    source = ArraySource(small_source.config, arrays)
    with pytest.raises(Error, match=f"tensor {MLP1}, expert 2: .*cannot be unpacked"):
        write_checkpoint(source, tmp_path / "out", "huggingface-bf16")


def test_bad_options(tiny_a: Path) -> None:
    with pytest.raises(Error, match="experts: expected None or 'mxfp4', found 'int8'"):
        open_checkpoint(tiny_a, experts="int8")
    with pytest.raises(Error, match="rule: expected 'mx' or 'mse', found 'best'"):
        open_checkpoint(tiny_a, rule="best")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_released_pages_leave_the_process(tmp_path: Path) -> None:
    """A backend that has repacked a tensor must not go on holding the file's pages."""
    size = 32 << 20
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_header([("a", "U8", (size,)), ("b", "U8", (size,))], {}))
    with path.open("ab") as out:
        out.write(bytes(2 * size))
    file = SafetensorsFile(path)
    before = resident()
    views = [file.view(name) for name in "ab"]
    assert sum(int(view.sum()) for view in views) == 0
    assert resident() - before > 1.8 * size
    file.release("a")
    assert 0.8 * size < resident() - before < 1.2 * size  # the neighbour stays
    assert int(views[0].sum()) == 0


def resident() -> int:
    """Bytes of files that this process has mapped and touched."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile")

"""Q8_0: exact as int8 weights, rounded once as bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf_dialects import write

from gptoss.checkpoint import write_checkpoint, write_gguf
from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.panels import write_panels
from gptoss.checkpoint.source import ArraySource, TensorSource
from gptoss.errors import Error
from gptoss.gguf.blocks import dequantize_q8_0, quantize_q8_0
from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16

DENSE = ("attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.out.weight")


@pytest.fixture(scope="module")
def stored(tiny: TensorSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny, tmp_path_factory.mktemp("q8_0") / "model.gguf", kind=Type.Q8_0)


def stored_values(path: Path) -> dict[str, np.ndarray]:
    """float64, by the names in the file, as the `gguf` package has the blocks."""
    values = {}
    for tensor in GGUFReader(path).tensors:
        if tensor.tensor_type == Type.Q8_0:
            blocks = tensor.data.reshape(-1, 34)
            scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float64)
            values[tensor.name] = (blocks[:, 2:].view(np.int8) * scales).reshape(
                tuple(reversed(tensor.shape.tolist()))
            )
    return values


def test_as_bf16_it_is_rounded_once(stored: Path) -> None:
    values = stored_values(stored)
    with open_checkpoint(stored) as source:
        for ours, theirs in (
            ("embedding.weight", "token_embd.weight"),
            ("unembedding.weight", "output.weight"),
            ("block.2.attn.k.weight", "blk.2.attn_k.weight"),
        ):
            exact = values[theirs].astype(np.float32)
            assert np.array_equal(exact, values[theirs])  # float32 holds the products
            np.testing.assert_array_equal(source.tensor(ours), f32_to_bf16(exact))


def test_as_int8_nothing_is_rounded(stored: Path, tiny_a: Path, logits) -> None:
    """Logits are linear in the unembedding: three bf16 matrices add up to the stored one."""
    tokens = np.load(tiny_a / "golden.npz")["tokens_5"]
    values = stored_values(stored)["output.weight"]
    matrices, rest = [], values
    for _ in range(3):
        matrices.append(f32_to_bf16(rest.astype(np.float32)))
        rest = rest - bf16_to_f32(matrices[-1])
    assert not rest.any()
    with open_checkpoint(stored) as source:
        arrays = {info.name: source.tensor(info.name).copy() for info in source.tensors()}

        class OnlyUnembedding(ArraySource):
            q8_0 = frozenset({"unembedding.weight"})

            def tensor(self, name: str) -> np.ndarray:
                if name.endswith(".q8_0"):
                    return source.tensor(name)
                return super().tensor(name)

            def release(self, name: str) -> None:
                pass

        # what else weights="q8" would quantize is zero in both
        for layer in range(source.config.num_hidden_layers):
            for name in DENSE:
                arrays[f"block.{layer}.{name}"][:] = 0
        found = logits(OnlyUnembedding(source.config, arrays), tokens, weights="q8")
        parts = []
        for matrix in matrices:
            arrays["unembedding.weight"] = matrix
            parts.append(logits(ArraySource(source.config, arrays), tokens).astype(np.float64))
    wanted = sum(parts)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    rounded = np.abs(parts[1]).max() / np.abs(wanted).max()
    assert error < 2e-6 < 1e-4 < rounded


def test_ranks_share_it(stored: Path, tiny_a: Path, logits) -> None:
    """Rows and blocks of a rank are those of the whole: only the order of sums differs."""
    tokens = np.load(tiny_a / "golden.npz")["tokens_5"]
    with open_checkpoint(stored) as source:
        alone = logits(source, tokens, weights="q8")
        shared = logits(source, tokens, weights="q8", tensor_parallel=2)
    np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_scales_that_are_no_numbers(stored: Path, tmp_path: Path) -> None:
    data = bytearray(stored.read_bytes())
    tensor = next(t for t in GGUFReader(stored).tensors if t.name == "output.weight")
    data[tensor.data_offset : tensor.data_offset + 2] = b"\x00\x7c"
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with open_checkpoint(path) as source:
        for name in ("unembedding.weight", "unembedding.weight.q8_0"):
            with pytest.raises(Error, match=r"output\.weight: expected finite scales"):
                source.tensor(name)


def test_packing_would_round_twice(stored: Path, tmp_path: Path) -> None:
    with open_checkpoint(stored) as source:
        with pytest.raises(Error, match="Q8_0, which packing would round a second time"):
            write_panels(source, tmp_path / "packed", "q8")
        write_panels(source, tmp_path / "packed", "published")


def test_beside_experts_that_are_quantized(tiny: TensorSource, tmp_path: Path) -> None:
    """Experts made MXFP4 when they are read leave the other matrices as they are stored."""
    write_checkpoint(tiny, tmp_path / "bf16", "huggingface-bf16")
    with open_checkpoint(tmp_path / "bf16") as unpacked:
        (path,) = write_gguf(unpacked, tmp_path / "bf16.gguf", "q8")
    name = "block.1.attn.k.weight"
    with open_checkpoint(path) as plain, open_checkpoint(path, experts="mxfp4") as source:
        assert source.expert_dtype == "mxfp4"
        assert name in source.q8_0 == plain.q8_0
        np.testing.assert_array_equal(source.tensor(f"{name}.q8_0"), plain.tensor(f"{name}.q8_0"))
        with pytest.raises(Error, match="Q8_0, which packing would round a second time"):
            write_panels(source, tmp_path / "packed", "q8")


def test_values_beyond_the_largest_scale_are_refused(tiny: TensorSource, tmp_path: Path) -> None:
    arrays = {info.name: tiny.tensor(info.name) for info in tiny.tensors()}
    arrays["unembedding.weight"] = arrays["unembedding.weight"].copy()
    for value in (1e7, np.inf, np.nan):
        arrays["unembedding.weight"][3, 5] = f32_to_bf16(np.array([value], np.float32))[0]
        source = ArraySource(tiny.config, arrays)
        with pytest.raises(Error, match=r"unembedding\.weight: expected finite values below"):
            write_gguf(source, tmp_path / "out.gguf", "q8")
    assert not list(tmp_path.iterdir())


def test_quantization_is_ggmls(tiny: TensorSource) -> None:
    from gguf import quants

    values = bf16_to_f32(tiny.tensor("unembedding.weight"))
    values[0, :32] = 0
    found = quantize_q8_0(values)
    expected = quants.quantize(values, Type.Q8_0)
    np.testing.assert_array_equal(found.reshape(len(values), -1), expected)
    np.testing.assert_array_equal(
        dequantize_q8_0(found).reshape(values.shape), quants.dequantize(expected, Type.Q8_0)
    )

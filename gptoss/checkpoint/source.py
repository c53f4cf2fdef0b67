"""Where weights come from: the interface that backends, the reference and the writer read.

A source hands out tensors by the seam's names: those of OpenAI's original checkpoint, except that
`attn.qkv` comes as its three row blocks `attn.q`, `attn.k` and `attn.v`. The Hugging Face layout
stores them apart and the original one together, and row blocks are what both can give as views.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error, shown
from gptoss.model import ModelConfig, bf16_to_f32, f32_to_bf16, mxfp4

Array = NDArray[Any]
BYTES = {"BF16": 2, "U8": 1}
_NUMPY = {"BF16": np.dtype(np.uint16), "U8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a source: dtype is "BF16" (carried as uint16) or "U8"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]


def seam_tensors(config: ModelConfig, expert_dtype: str = "mxfp4") -> dict[str, TensorInfo]:
    """Every tensor that a source of this model must hand out, in the order of the layers.

    With expert_dtype "bf16" the pairs `mlp1_weight.blocks`, `.scales` [E, rows, K/32, 16] and
    [E, rows, K/32] are replaced by one `mlp1_weight` [E, rows, K], and `mlp2_weight` likewise.
    """
    if expert_dtype not in ("mxfp4", "bf16"):
        raise Error(f"experts: expected 'mxfp4' or 'bf16', found {shown(expert_dtype)}")
    found: dict[str, TensorInfo] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        found[name] = TensorInfo(name, dtype, shape)

    for name, (dtype, shape) in config.tensor_shapes().items():
        if ".attn.qkv." in name:
            for part, rows in row_blocks(config).items():
                size = rows.stop - rows.start
                add(name.replace(".qkv.", f".{part}."), dtype, (size, *shape[1:]))
        elif expert_dtype == "bf16" and name.endswith(".blocks"):
            experts, rows_, blocks, _ = shape
            add(name.removesuffix(".blocks"), "BF16", (experts, rows_, blocks * mxfp4.BLOCK))
        elif expert_dtype == "bf16" and name.endswith(".scales"):
            continue
        else:
            add(name, dtype, shape)
    return found


def row_blocks(config: ModelConfig) -> dict[str, slice]:
    """The rows of the original `attn.qkv` that q, k and v take."""
    q, kv = config.query_size, config.kv_size
    return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}


class TensorSource(ABC):
    """A model's configuration and tensors.

    layout: "original", "huggingface", "huggingface-bf16", "packed", "gguf", "synthetic" or
    "arrays".
    files: the files that tensors are read from. directory: where tokenizer files may lie.
    expert_dtype: "mxfp4" (`.blocks` and `.scales`, uint8) or "bf16" (one uint16 tensor per matrix).
    panels: "published" or "q8" where matrices come as panels (gptoss.checkpoint.panels), else None.
    conversation_format: what a written copy is to say of how it speaks: "harmony", "none" (it was
    never taught conversations), or None: what the tokenizer's files say already.
    q8_0: matrices, by name, that are stored in GGUF's Q8_0 and also come as that: `tensor` knows
    them as `name.q8_0`, uint8 [rows, K/32, 34], a float16 scale and 32 int8.
    Views stay valid at least while the source is open.
    """

    config: ModelConfig
    name: str
    layout: str
    expert_dtype: str
    files: list[Path]
    directory: Path | None
    panels: str | None = None
    q8_0: frozenset[str] = frozenset()
    conversation_format: str | None = None

    def __init__(
        self,
        config: ModelConfig,
        *,
        name: str,
        layout: str,
        expert_dtype: str = "mxfp4",
        files: list[Path] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.config = config
        self.name = name
        self.layout = layout
        self.expert_dtype = expert_dtype
        self.files = files or []
        self.directory = directory
        self._infos = seam_tensors(config, expert_dtype)

    def tensors(self) -> list[TensorInfo]:
        """Everything that `tensor` hands out, in the order of the layers."""
        return list(self._infos.values())

    def info(self, name: str) -> TensorInfo:
        """dtype and shape of one tensor. Raises Error for a name this source does not have."""
        info = self._infos.get(name)
        if info is None:
            raise Error(f"{self.name}: no tensor is called {shown(name)}")
        return info

    @cached_property  # asked for with each tensor when progress is shown
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self._infos.values())

    def tensor(self, name: str) -> Array:
        """A tensor by its seam name: read-only, C-contiguous, bf16 as uint16, MXFP4 as uint8.

        Raises Error for an unknown name and for MXFP4 scales that hold 0xFF.
        """
        info = self.info(name)
        array = self._read(info)
        if name.endswith(".scales"):
            mxfp4.check_scales(array, f"{self.name}: tensor {name}")
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    @abstractmethod
    def _read(self, info: TensorInfo) -> Array:
        """The tensor, of the dtype and shape that `info` says."""

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        """One expert's matrix, float32 [rows, K], from `name` = "block.n.mlp.mlp1_weight" or mlp2.

        Exact for both expert dtypes, and never more than one expert in memory.
        """
        if self.expert_dtype == "bf16":
            self._check_expert(name, index)
            return bf16_to_f32(self._read_expert(name, index))
        self._check_expert(name + ".blocks", index)
        blocks = self._read_expert(name + ".blocks", index)
        scales = self._read_expert(name + ".scales", index)
        mxfp4.check_scales(scales, f"{self.name}: tensor {name}.scales, expert {index}")
        return mxfp4.dequantize(blocks, scales)

    def _check_expert(self, name: str, index: int) -> None:
        if (
            name.split(".")[3:4] not in (["mlp1_weight"], ["mlp2_weight"])
            or name not in self._infos
        ):
            raise Error(f"{self.name}: no expert matrices are called {shown(name)}")
        if not 0 <= index < self.config.num_experts:
            raise Error(
                f"{self.name}: {name}: expected an expert in 0..{self.config.num_experts - 1}, "
                f"found {shown(index)}"
            )

    def _read_expert(self, name: str, index: int) -> Array:
        """One expert's part of tensor `name`; overridden where that spares reading it all."""
        return self._read(self._infos[name])[index]

    def release(self, name: str) -> None:  # noqa: B027  a hint, not a duty
        """Say that `name` is not needed soon: the memory under its view may go back to the system.

        The view stays valid; reading it again reads the file again.
        """

    def close(self) -> None:  # noqa: B027  not every source holds something to close
        """Let go of the files. Asking for tensors afterwards is an Error."""

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ArraySource(TensorSource):
    """Tensors that are already in memory, for export from a trainer and for tests.

    `arrays` maps seam names to arrays; `attn.qkv.weight` and `.bias` may stand for the three row
    blocks. bf16 tensors are uint16 bits, or float32 that is rounded to nearest even when read.
    Experts are given either as uint8 `.blocks` and `.scales` in every layer, or as one matrix
    [E, rows, K] (uint16 or float32) in every layer, which makes expert_dtype "bf16".
    Raises Error for missing, extra, misshapen and mistyped arrays.
    """

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, Array],
        *,
        name: str = "arrays",
        directory: Path | None = None,
    ) -> None:
        mxfp4 = not any(key.endswith(("mlp1_weight", "mlp2_weight")) for key in arrays)
        super().__init__(
            config,
            name=name,
            layout="arrays",
            expert_dtype="mxfp4" if mxfp4 else "bf16",
            directory=directory,
        )
        self._arrays = dict(self._split(arrays))
        missing = [key for key in self._infos if key not in self._arrays]
        if missing:
            raise Error(f"{name}: missing tensors: {listed(missing)}")
        extra = [key for key in self._arrays if key not in self._infos]
        if extra:
            raise Error(f"{name}: unexpected tensors: {listed(extra)}")
        for key, array in self._arrays.items():
            self._check(self._infos[key], array)

    def _split(self, arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        blocks = row_blocks(self.config)
        total = blocks["v"].stop
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise Error(f"{self.name}: {key}: expected an array, found {type(array).__name__}")
            if ".attn.qkv." not in key:
                yield key, array
                continue
            if array.ndim == 0 or len(array) != total:
                raise Error(f"{self.name}: {key}: expected {total} rows, found {array.shape}")
            for part, rows in blocks.items():
                yield key.replace(".qkv.", f".{part}."), array[rows]

    def _check(self, info: TensorInfo, array: Array) -> None:
        allowed = [_NUMPY[info.dtype]]
        if info.dtype == "BF16":
            allowed.append(np.dtype(np.float32))
        if array.dtype not in allowed:
            raise Error(
                f"{self.name}: {info.name}: expected {' or '.join(map(str, allowed))}, "
                f"found {array.dtype}"
            )
        if array.shape != info.shape:
            raise Error(
                f"{self.name}: {info.name}: expected shape {list(info.shape)}, "
                f"found {list(array.shape)}"
            )

    def _read(self, info: TensorInfo) -> Array:
        array = np.ascontiguousarray(self._arrays[info.name])
        return f32_to_bf16(array) if array.dtype == np.float32 else array

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        """As in TensorSource, but float32 arrays are given as they are, not rounded to bf16."""
        matrix = self._arrays.get(name)
        if matrix is not None and matrix.dtype == np.float32:
            self._check_expert(name, index)
            return np.ascontiguousarray(matrix[index])
        return super().expert(name, index)


def transpose(matrix: Array, out: Array) -> None:
    """out [cols, rows] = matrix [rows, cols], in tiles that stay in the cache."""
    tile = 128
    for row in range(0, matrix.shape[0], tile):
        for col in range(0, matrix.shape[1], tile):
            out[col : col + tile, row : row + tile] = matrix[row : row + tile, col : col + tile].T


def listed(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    text = ", ".join(shown(name) for name in names[:6])
    return text if len(names) <= 6 else f"{text} and {len(names) - 6} more"

"""From a fine-tuning run to the weights of a checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gptoss.checkpoint import QuantizedExperts, TensorInfo, TensorSource, row_blocks
from gptoss.model import ModelConfig, bf16_to_f32, f32_to_bf16, mxfp4


class Factors(NamedTuple):
    """Of a difference scale·B·A; float32 a [(E,) r, in], b [(E,) out, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def difference(self, expert: int | None = None) -> NDArray[np.float32]:
        """[out, in]; of one expert where there is one for each."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return difference(a.float(), b.float(), self.scale).numpy()


class MergedSource(TensorSource):
    """A base with differences added to some of its matrices; one matrix in memory at a time.

    Everything else is handed on as it is. Experts that have differences are given dequantized
    (expert_dtype "bf16"; `expert` gives float32, not rounded); see `merged_source`.
    """

    def __init__(
        self,
        base: TensorSource,
        config: ModelConfig,
        factors: Mapping[str, Factors],
        rows: Mapping[str, NDArray[np.float32]] | None = None,
        row_ids: Sequence[int] = (),
    ) -> None:
        """`factors`: by names such as "block.0.attn.qkv.weight", "block.0.mlp.mlp1_weight".

        `rows`: of "embedding.weight" and "unembedding.weight", what is added to rows `row_ids`.
        """
        unpacked = any(name.endswith("_weight") for name in factors)
        super().__init__(
            config,
            name=f"{base.name}, fine-tuned",
            layout=base.layout,
            expert_dtype="bf16" if unpacked else base.expert_dtype,
            files=base.files,
            directory=base.directory,
        )
        self._base = base
        self._held = {info.name for info in base.tensors()}
        self._factors = dict(factors)
        self._rows = dict(rows or {})
        self._row_ids = list(row_ids)

    def _read(self, info: TensorInfo) -> NDArray[Any]:
        name = info.name
        if self.expert_dtype == "bf16" and name.endswith("_weight"):
            out = np.empty(info.shape, np.uint16)
            for index in range(len(out)):
                out[index] = f32_to_bf16(self.expert(name, index))
            return out
        if name in self._rows:
            table = np.array(self._base.tensor(name))
            table[self._row_ids] = f32_to_bf16(bf16_to_f32(table[self._row_ids]) + self._rows[name])
            return table
        found, rows = self._difference(name)
        if found is None:
            return self._base.tensor(name)
        return f32_to_bf16(bf16_to_f32(self._base.tensor(name)) + found.difference()[rows])

    def _difference(self, name: str) -> tuple[Factors | None, slice]:
        """What is added to a dense tensor, and which rows of it."""
        head, _, part = name.removesuffix(".weight").rpartition(".")
        if name.endswith(".weight") and head.endswith(".attn") and part in ("q", "k", "v"):
            return self._factors.get(f"{head}.qkv.weight"), row_blocks(self.config)[part]
        return self._factors.get(name), slice(None)

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        matrix = self._base.expert(name, index)
        found = self._factors.get(name)
        return matrix if found is None else matrix + found.difference(index)

    def release(self, name: str) -> None:
        for known in (name, f"{name}.blocks", f"{name}.scales"):
            if known in self._held:
                self._base.release(known)

    def close(self) -> None:
        self._base.close()


class QuantizedMerged(QuantizedExperts):
    """`QuantizedExperts` whose experts are quantized one by one: it may be a base itself."""

    def expert(self, name: str, index: int) -> NDArray[np.float32]:
        blocks, scales = mxfp4.quantize(self._base.expert(name, index), self._rule)
        return mxfp4.dequantize(blocks, scales)


def factors_of(trained: Mapping[str, Tensor], scale: float) -> dict[str, Factors]:
    """Adapters by the name of the matrix they change, from parameters by the model's names."""
    found = {}
    for name, a in trained.items():
        if not name.endswith(".a"):
            continue
        stem = name.removesuffix(".a")
        b = trained[f"{stem}.b"]
        if ".mlp.adapters." in stem:  # block.n.mlp.adapters.mlp1
            target = stem.replace(".adapters.", ".") + "_weight"
        else:  # block.n.attn.qkv.adapter
            target = stem.removesuffix(".adapter") + ".weight"
        found[target] = Factors(a, b, scale)
    return found


def difference(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """What is added to the weights, float32 [..., out, in]; merging and training share it."""
    return (b @ a) * scale

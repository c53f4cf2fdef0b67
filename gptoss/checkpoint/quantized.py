"""A source whose experts are quantized to MXFP4 as they are read."""

from __future__ import annotations

import numpy as np

from gptoss.checkpoint.source import Array, TensorInfo, TensorSource
from gptoss.errors import Error
from gptoss.model import mxfp4


class QuantizedExperts(TensorSource):
    """A source with bf16 experts, seen as one with MXFP4 experts; quantized when asked for.

    Quantization goes expert by expert, so that besides the result only one expert is in memory.
    """

    def __init__(self, base: TensorSource, rule: str = "mx") -> None:
        super().__init__(
            base.config,
            name=base.name,
            layout=base.layout,
            files=base.files,
            directory=base.directory,
        )
        self.conversation_format = base.conversation_format
        self.q8_0 = base.q8_0
        self._base = base
        self._rule = rule
        # both halves come from one pass; the one not asked for waits for the next question
        self._waiting: tuple[str, Array] | None = None

    def info(self, name: str) -> TensorInfo:
        return self._base.info(name) if name.endswith(".q8_0") else super().info(name)

    def _read(self, info: TensorInfo) -> Array:
        if info.dtype != "U8" or info.name.endswith(".q8_0"):
            return self._base.tensor(info.name)
        if self._waiting is not None and self._waiting[0] == info.name:
            array = self._waiting[1]
            self._waiting = None
            return array
        matrix = info.name.rpartition(".")[0]
        halves = {half: f"{matrix}.{half}" for half in ("blocks", "scales")}
        out = {name: np.empty(self._infos[name].shape, dtype=np.uint8) for name in halves.values()}
        for index in range(self.config.num_experts):
            try:
                blocks, scales = mxfp4.quantize(self._base.expert(matrix, index), self._rule)
            except Error as error:
                raise Error(f"{self.name}: tensor {matrix}, expert {index}: {error}") from None
            out[halves["blocks"]][index] = blocks
            out[halves["scales"]][index] = scales
        array = out.pop(info.name)
        self._waiting = out.popitem()
        return array

    def release(self, name: str) -> None:
        self._base.release(name.removesuffix(".blocks").removesuffix(".scales"))

    def close(self) -> None:
        self._waiting = None
        self._base.close()

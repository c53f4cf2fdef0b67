from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss.native.arrays import SamplingBatch, StepOutput

PAGE_SIZE: int
WEIGHT_FORMATS: dict[str, int]

class Backend:
    def __init__(
        self,
        config: Any,
        source: Any,
        *,
        device: str = "cpu",
        activation: str = "bf16",
        threads: int = 0,
        weights: str = "published",
        kv: str = "bf16",
        tensor_parallel: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None: ...
    @property
    def page_size(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int | None: ...
    def plan_kv(self, bytes: int) -> int: ...
    def alloc_kv(self, pages: int) -> None: ...
    def step(
        self,
        token_ids: ArrayLike,
        seq_start: ArrayLike,
        context_len: ArrayLike,
        block_table: ArrayLike,
        logits_rows: ArrayLike,
        sampling: SamplingBatch | None = None,
        *,
        want_logits: bool = False,
        want_hidden: bool = False,
    ) -> StepOutput: ...
    def info(self) -> dict[str, str]: ...
    def close(self) -> None: ...

def plugin_directory() -> str: ...
def find_nccl() -> str | None: ...
def backends() -> list[dict[str, Any]]: ...
def cpu_features() -> dict[str, Any]: ...
def panel_shape(format: str, rows: int, cols: int) -> tuple[int, int]: ...
def pack(
    format: str,
    *,
    weight: NDArray[np.uint16] | None = None,
    blocks: NDArray[np.uint8] | None = None,
    scales: NDArray[np.uint8] | None = None,
    threads: int = 0,
) -> NDArray[np.uint8]: ...
def unpack_mxfp4(
    packed: NDArray[np.uint8],
    blocks: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    *,
    halves: bool,
    threads: int = 0,
) -> None: ...
def dequantize_q8_0(blocks: NDArray[np.uint8], threads: int = 0) -> NDArray[np.uint16] | None: ...

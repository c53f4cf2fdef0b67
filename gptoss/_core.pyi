from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLING_DTYPE: np.dtype[Any]
PAGE_SIZE: int
WEIGHT_FORMATS: dict[str, int]

class SamplingBatch:
    rows: NDArray[Any]
    history_start: NDArray[np.int32]
    history_ids: NDArray[np.int32]
    history_counts: NDArray[np.int32]
    bias_start: NDArray[np.int32]
    bias_ids: NDArray[np.int32]
    bias_values: NDArray[np.float32]
    masks: NDArray[np.uint32]
    mask_rows: NDArray[np.int32] | None
    def __init__(
        self,
        rows: NDArray[Any],
        *,
        history_start: ArrayLike | None = None,
        history_ids: ArrayLike | None = None,
        history_counts: ArrayLike | None = None,
        bias_start: ArrayLike | None = None,
        bias_ids: ArrayLike | None = None,
        bias_values: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        mask_rows: ArrayLike | None = None,
    ) -> None: ...

class StepOutput:
    tokens: NDArray[np.int32] | None
    logprobs: NDArray[np.float32] | None
    top_ids: NDArray[np.int32] | None
    top_logprobs: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    hidden: NDArray[np.float32] | None

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

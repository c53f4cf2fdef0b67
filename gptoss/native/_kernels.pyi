from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE: int
ATTENTION_TOKENS: int

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]

def isas() -> list[str]: ...
def products(isa: str) -> list[str]: ...

class Packed:
    format: str
    rows: int
    cols: int
    data: U8
    def __init__(self, format: str, rows: int, cols: int, data: U8) -> None: ...

def pack(
    format: str,
    *,
    weight: U16 | None = None,
    blocks: U8 | None = None,
    scales: U8 | None = None,
    threads: int = 1,
) -> Packed: ...
def matmul_f32(
    x: F32,
    packed: Packed,
    *,
    isa: str,
    bias: U16 | None = None,
    row_ids: I32 | None = None,
    begin: int = 0,
    end: int | None = None,
) -> F32: ...
def quantize(x: F32, *, isa: str) -> tuple[I16, F32]: ...
def matmul_i16(
    q: I16,
    scale: F32,
    packed: Packed,
    *,
    isa: str,
    bias: U16 | None = None,
    row_ids: I32 | None = None,
    begin: int = 0,
    end: int | None = None,
) -> F32: ...
def to_tiles(x: F32, *, isa: str) -> U16: ...
def matmul_bf16(
    tiles: U16,
    rows: int,
    packed: Packed,
    *,
    isa: str,
    bias: U16 | None = None,
    begin: int = 0,
    end: int | None = None,
) -> F32: ...
def rms_norm(x: F32, scale: U16, eps: float, *, isa: str) -> F32: ...
def rope(x: F32, cos: F32, sin: F32, *, isa: str) -> F32: ...
def attention(
    q: F32,
    sinks: U16,
    k: NDArray[Any],
    v: NDArray[Any],
    pages: I32,
    position: int,
    *,
    isa: str,
    window: int | None = None,
    k_scale: F32 | None = None,
    v_scale: F32 | None = None,
) -> F32: ...
def swiglu(u: F32, limit: float, *, isa: str, round: bool = False) -> F32: ...
def to_bf16(x: F32, *, isa: str) -> U16: ...
def round_bf16(x: F32, *, isa: str) -> F32: ...
def add_scaled(y: F32, x: F32, a: float, *, isa: str) -> F32: ...
def route(logits: F32, count: int) -> tuple[I32, F32]: ...
def yarn(config: Any) -> tuple[NDArray[np.float64], float]: ...
def uniform_draw(seed: int, draw: int) -> float: ...
def read_seconds(
    data: NDArray[np.uint64], threads: int, repeat: int
) -> tuple[list[float], int]: ...
def peak_seconds(rounds: int, threads: int, *, isa: str) -> tuple[float, float]: ...
def linear_seconds(
    matrices: list[Packed], rows: int, threads: int, repeat: int, *, isa: str, bf16: bool = True
) -> list[float]: ...
def cuda(
    kernel: str,
    arrays: Sequence[tuple[np.ndarray | None, str]],
    sizes: Sequence[int],
    numbers: Sequence[float] = (),
    *,
    library: str = "",
    repeat: int = 1,
    major: int = 9,
    multiprocessors: int = 132,
    shared_bytes: int = 232448,
) -> F64: ...

"""Every CUDA kernel at the model's shapes, beside what the GPU's memory and arithmetic allow.

    python bench/cuda.py --library build/gpu/cuda/libgptoss_cuda.so

Microseconds are medians of runs with cold caches (256 MB are overwritten before each), measured on
the device. The ceiling of a kernel is the larger of its bytes over the measured copy bandwidth and
its operations over the rate of torch.matmul (8192 x 8192 x 8192), or of our own product where torch
is missing. Inputs are random: products of zeros draw less power and run faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss.checkpoint.synthetic import PRESETS
from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.native import _kernels

PAGE = 16
Arrays = list[tuple[np.ndarray | None, str]]


@dataclass
class Case:
    kernel: str
    shape: str
    arrays: Arrays
    sizes: Sequence[int]
    numbers: Sequence[float] = ()
    bytes: float = 0.0
    operations: float = 0.0


def bf16(random: np.random.Generator, *shape: int) -> np.ndarray:
    """0.5 to 2, either sign."""
    bits = random.integers(0, 1 << 16, shape, np.uint16)
    return bits & np.uint16(0x80FF) | np.uint16(0x3F00)


def f32(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def gemm(random: np.random.Generator, kernel: str, m: int, n: int, k: int) -> Case:
    y = np.empty((m, n), np.float32)
    arrays: Arrays = [(bf16(random, m, k), "in"), (bf16(random, n, k), "in"), (None, "in")]
    return Case(
        kernel, f"{m} x {n} x {k}", [*arrays, (y, "out")], [m, n, k, 0],
        bytes=2.0 * (m * k + n * k) + 4.0 * m * n, operations=2.0 * m * n * k,
    )  # fmt: skip


def experts(
    random: np.random.Generator, c: ModelConfig, kernel: str, tokens: int, paired: bool
) -> Case:
    """Experts drawn evenly; gate and up, or down."""
    n, k = (2 * c.intermediate_size, c.hidden_size) if paired else (c.hidden_size,
                                                                   c.intermediate_size)  # fmt: skip
    chosen = c.experts_per_token
    ids = np.argsort(random.random((tokens, c.num_experts)), axis=1)[:, :chosen].astype(np.int32)
    pairs = tokens * chosen
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    counts = np.bincount(ids.reshape(-1), minlength=c.num_experts)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    present = np.flatnonzero(counts)
    active = np.zeros(c.num_experts + 1, np.int32)
    active[0], active[1 : 1 + len(present)] = len(present), present
    chunks = -(-k // 64)
    codes = random.integers(0, 256, (c.num_experts, n // 16, chunks, 512), np.uint8)
    scales = random.integers(118, 128, (c.num_experts, n // 16, chunks, 32), np.uint8)
    x = bf16(random, tokens if paired else pairs, k)
    pair_of_row = order if paired else None
    out = np.empty((pairs, n // 2), np.uint16) if paired else np.empty((pairs, n), np.float32)
    inputs = [x, codes, scales, bf16(random, c.num_experts, n), start, active, pair_of_row]
    name = "gate, up" if paired else "down"
    return Case(
        kernel, f"{name}, {tokens} tokens, {len(present)} experts",
        [*((a, "in") for a in inputs), (out, "out")],
        [len(x), pairs, c.num_experts, n, k, chosen if paired else 1, int(paired)], [7.0],
        bytes=len(present) * n * k * 17 / 32 + x.nbytes + out.nbytes,
        operations=2.0 * pairs * n * k,
    )  # fmt: skip


def attention(
    random: np.random.Generator, c: ModelConfig, kernel: str, batch: int, context: int, window: int
) -> Case:
    """Decoding: a token of each sequence; prefill: the whole context of one."""
    heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    prefill = kernel == "attention_prefill"
    blocks = -(-context // PAGE)
    kv = bf16(random, batch * blocks, 2, kv_heads, PAGE, dim)
    pages = random.permutation(batch * blocks).astype(np.int32).reshape(batch, blocks)
    tokens = context if prefill else batch
    position = np.arange(context) if prefill else np.full(batch, context - 1)
    sequence = np.zeros(tokens, np.int32) if prefill else np.arange(batch, dtype=np.int32)
    tile = 128 // (heads // kv_heads) if prefill else 1
    tiles = np.array([(t, min(tile, tokens - t)) for t in range(0, tokens, tile)], np.int32)
    splits = 1
    while not prefill and splits < 64 and batch * kv_heads * splits < 264 and 32 * splits <= blocks:
        splits *= 2
    splits = 1 if window < context else splits
    out = np.empty((tokens, heads, dim), np.uint16)
    parts = np.empty(len(tiles) * heads * splits * (dim + 2), np.float32)
    ended = np.zeros(len(tiles) * kv_heads, np.int32)
    inputs = [bf16(random, tokens, heads, dim), kv, bf16(random, heads), pages, sequence,
              position.astype(np.int32), tiles]  # fmt: skip
    seen = np.minimum(position + 1, window)
    return Case(
        kernel, f"batch {batch}, context {context}" + (", window" if window < context else ""),
        [*((a, "in") for a in inputs), (out, "out"), (parts, "out"), (ended, "inout")],
        [tokens, len(tiles), heads, kv_heads, dim, batch, blocks, len(kv), window, splits],
        [dim**-0.5],
        bytes=(0.0 if prefill else 4.0 * kv_heads * dim * seen.sum()) + 2.0 * out.nbytes,
        operations=4.0 * heads * dim * float(seen.sum()),
    )  # fmt: skip


def route(random: np.random.Generator, c: ModelConfig, rows: int) -> Case:
    n, experts, chosen = c.hidden_size, c.num_experts, c.experts_per_token
    x, scale = f32(random, rows, n), bf16(random, n)
    w, bias, t = bf16(random, experts, n), bf16(random, experts), np.empty((rows, n), np.uint16)
    ids, weights = np.empty((rows, chosen), np.int32), np.empty((rows, chosen), np.float32)
    arrays: Arrays = [(x, "inout"), *((None, "in") for _ in range(4))]
    arrays += [(scale, "in"), (w, "in"), (bias, "in"), (t, "out"), (ids, "out"), (weights, "out")]
    arrays += [(None, "in")] * 5  # grouping is a launch of its own
    return Case(
        "route", f"{rows} tokens", arrays, [rows, n, experts, chosen, 0, 0, 0], [1e-5],
        bytes=x.nbytes + t.nbytes + w.nbytes, operations=2.0 * rows * n * experts,
    )  # fmt: skip


def norm(random: np.random.Generator, c: ModelConfig, rows: int) -> Case:
    n = c.hidden_size
    x, y = f32(random, rows, n), np.empty((rows, n), np.uint16)
    arrays: Arrays = [(x, "inout"), *((None, "in") for _ in range(4))]
    arrays += [(bf16(random, n), "in"), (None, "in"), (y, "out")]
    return Case("rms_norm", f"{rows} tokens", arrays, [rows, n, rows, 0, 0, 0], [1e-5],
                bytes=x.nbytes + y.nbytes)  # fmt: skip


def sample(random: np.random.Generator, c: ModelConfig, rows: int, **options: float) -> Case:
    names = ("temperature", "top_p", "min_p", "top_k", "repetition", "presence", "frequency",
             "n_logprobs", "uniform", "history0", "history1", "bias0", "bias1", "mask",
             "unused")  # fmt: skip
    formats = ("<f4",) * 3 + ("<i4",) + ("<f4",) * 3 + ("<i4", "<f8") + ("<i4",) * 6
    row = np.zeros(rows, list(zip(names, formats, strict=True)))
    row["top_p"] = row["repetition"] = 1
    row["mask"] = -1
    for name, value in options.items():
        row[name] = value
    logits = f32(random, rows, c.vocab_size)
    result = np.empty((rows, 3), np.int32)
    arrays: Arrays = [(logits, "in"), (None, "in"), (row, "in"), *((None, "in") for _ in range(5))]
    arrays += [(result, "out"), (None, "out"), (None, "out")]
    text = ", ".join(f"{name} {value}" for name, value in options.items()) or "greedy"
    return Case("sample", f"{rows} rows, {text}", arrays, [rows, c.vocab_size, 0, 0, 0, 0],
                bytes=2.0 * logits.nbytes)  # fmt: skip


def cases(c: ModelConfig, small: bool) -> Iterator[Callable[[np.random.Generator], Case]]:
    """Made one after the other: some hold gigabytes."""
    qkv, q, hidden = c.query_size + 2 * c.kv_size, c.query_size, c.hidden_size
    many, context = (80, 200) if small else (8192, 32768)
    for rows in (1, 8, 16):
        for n, k in ((qkv, hidden), (hidden, q), (c.vocab_size, hidden)):
            yield lambda r, m=rows, n=n, k=k: gemm(r, "gemv_bf16", m, n, k)  # type: ignore[misc]
    for kernel in ("gemm_bf16", "gemm_hopper"):
        for m, n, k in ((64, qkv, hidden), (many, qkv, hidden), (many, hidden, q)):
            yield lambda r, f=kernel, m=m, n=n, k=k: gemm(r, f, m, n, k)  # type: ignore[misc]
        yield lambda r, f=kernel: gemm(r, f, many, many, many)  # type: ignore[misc]
    for paired in (True, False):
        for tokens in (1, 8, 64):
            yield lambda r, t=tokens, p=paired: experts(r, c, "experts_few", t, p)  # type: ignore[misc]
        for kernel in ("experts_tiles", "experts_hopper"):
            yield lambda r, f=kernel, p=paired: experts(r, c, f, many, p)  # type: ignore[misc]
    for batch in (1, 8):
        yield lambda r, b=batch: attention(r, c, "attention_decode", b, context, 1 << 30)  # type: ignore[misc]
    yield lambda r: attention(r, c, "attention_decode", 64, context // 8, c.sliding_window)
    for window in (1 << 30, c.sliding_window):
        yield lambda r, w=window: attention(r, c, "attention_prefill", 1, many, w)  # type: ignore[misc]
    for rows in (1, many):
        yield lambda r, n=rows: route(r, c, n)  # type: ignore[misc]
        yield lambda r, n=rows: norm(r, c, n)  # type: ignore[misc]
    yield lambda r: sample(r, c, 1)
    yield lambda r: sample(r, c, 64, temperature=1.0, top_p=0.9)


def torch_rates(n: int) -> dict[str, float]:
    """torch.matmul's operations per second on random bf16, and torch's copy bandwidth."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def seconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(8):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return float(np.median(times[3:]))

    a, b = torch.randn(2, n, n, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    return {
        "matmul": 2.0 * n**3 / seconds(lambda: a @ b.T),
        "copy": 2.0 * x.numel() / seconds(lambda: y.copy_(x)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", required=True, help='libgptoss_cuda.so; "": the emulation')
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try this program")
    arguments = parser.parse_args(argv)
    library, repeat = arguments.library, arguments.repeat
    config = PRESETS["gpt-oss-20b"]
    if arguments.small:
        config = ModelConfig(num_hidden_layers=2, num_experts=4, vocab_size=300, hidden_size=64,
                             intermediate_size=64, head_dim=16, num_attention_heads=4,
                             num_key_value_heads=2, sliding_window=32)  # fmt: skip

    def run(case: Case) -> float:
        found = _kernels.cuda(case.kernel, case.arrays, case.sizes, case.numbers, library=library,
                              repeat=repeat + 1)  # fmt: skip
        return float(np.median(found))

    random = np.random.default_rng(0)
    rates = torch_rates(8192)
    count = 1 << (12 if arguments.small else 28)
    copy = Case("copy", "", [(f32(random, count), "in"), (np.empty(count, np.float32), "out")],
                [count])  # fmt: skip
    bandwidth = 8.0 * count / run(copy)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s read and written", end="")
    print(f"; torch: {rates['copy'] / 1e9:.0f}" if rates else "")
    peak = rates.get("matmul")
    if peak is not None:
        print(f"torch.matmul 8192 x 8192 x 8192: {peak / 1e12:.0f} TFLOP/s")

    print("| kernel | shape | µs | GB/s | TFLOP/s | of the ceiling |")
    print("|---|---|---|---|---|---|")
    for make in cases(config, arguments.small):
        case = make(random)
        if arguments.only not in case.kernel:
            continue
        try:
            seconds = run(case)
        except Error as error:
            print(f"| {case.kernel} | {case.shape} | {error} | | | |")
            continue
        floor = case.bytes / bandwidth
        if peak is not None:
            floor = max(floor, case.operations / peak)
        print(f"| {case.kernel} | {case.shape} | {seconds * 1e6:.1f} | "
              f"{case.bytes / seconds / 1e9:.0f} | {case.operations / seconds / 1e12:.1f} | "
              f"{floor / seconds:.0%} |")  # fmt: skip
        sys.stdout.flush()


if __name__ == "__main__":
    main()

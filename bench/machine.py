"""What the machine allows: how fast it reads memory and how fast it multiplies."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from gptoss.errors import Error
from gptoss.eval.machine import Spread, read_bandwidth
from gptoss.native import _core

try:
    from gptoss.native import _kernels
except ImportError:  # a user's installation, which measures neither arithmetic nor a GPU's memory
    _kernels = None


def multiply_peak(threads: int, repeat: int, isa: str) -> Spread | None:
    """Operations per second of the threads' fastest multiply-add instruction, on registers."""
    if _kernels is None:
        return None
    rounds = 1 << 16
    while _kernels.peak_seconds(rounds, threads, isa=isa)[0] < 0.05:
        rounds *= 2
    found = [_kernels.peak_seconds(rounds, threads, isa=isa) for _ in range(repeat)]
    return Spread.of([operations / seconds for seconds, operations in found])


def cuda_copy(library: str, repeat: int, count: int) -> Spread:
    """Bytes per second that the GPU's memory reads and writes, copying `count` float32."""
    arrays = [(np.ones(count, np.float32), "in"), (np.empty(count, np.float32), "out")]
    seconds = _kernels.cuda("copy", arrays, [count], library=library, repeat=repeat + 1)
    return Spread.of([8.0 * count / s for s in seconds])


def cuda_product(library: str, repeat: int, n: int) -> Spread:
    """Operations per second of our own bf16 product of n x n matrices, on random numbers."""
    bits = np.random.default_rng(0).integers(0, 1 << 16, (2, n, n), np.uint16)
    x, w = bits & 0x80FF | 0x3F00  # 0.5 to 2, either sign
    arrays = [(x, "in"), (w, "in"), (None, "in"), (np.empty((n, n), np.float32), "out")]
    for kernel in ("gemm_hopper", "gemm_bf16"):
        try:
            seconds = _kernels.cuda(
                kernel, arrays, [n, n, n, 0], library=library, repeat=repeat + 1
            )
        except Error:
            continue  # not a Hopper GPU
        return Spread.of([2.0 * n**3 / s for s in seconds])
    raise Error("no bf16 product runs on this GPU")


def measure_machine(device: str, threads: int, repeat: int) -> tuple[Spread | None, Spread | None]:
    """Bytes and operations per second of what the model runs on; None where measuring needs a
    developer's build."""
    missing = "is not measured: that needs a developer's build (make install)"
    print(f"machine   {platform.machine()}, {threads} threads, {_core.cpu_features()['isa']}")
    if device == "cpu":
        isa = _core.cpu_features()["isa"].split()[0]
        bandwidth, peak = read_bandwidth(threads, repeat), multiply_peak(threads, repeat, isa)
        print(f"          reads memory at {bandwidth.show(1e9)} GB/s")
        print(f"          multiplies at {peak.show(1e9, 0)} GFLOP/s" if peak is not None
              else f"          what it multiplies at {missing}")  # fmt: skip
        return bandwidth, peak
    reason = {status["name"]: status["reason"] for status in _core.backends()}[device]
    if _kernels is None:
        print(f"          {reason}\n          what it reads and multiplies at {missing}")
        return None, None
    library = str(Path(_core.plugin_directory()) / "libgptoss_cuda.so")
    emulated = reason.startswith("emulated")  # for tests
    bandwidth = cuda_copy(library, repeat, 1 << (10 if emulated else 28))
    n = 64 if emulated else 8192
    peak = cuda_product(library, repeat, n)
    print(f"          {reason}")
    print(f"          copies memory at {bandwidth.show(1e9, 0)} GB/s, read and written")
    print(f"          our bf16 product of {n} x {n} x {n}: {peak.show(1e12, 0)} TFLOP/s")
    return bandwidth, peak

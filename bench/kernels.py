"""Each product and format on gpt-oss-20b's shapes, beside what the machine allows.

    python bench/kernels.py --threads 2 --rows 1,8,16,64,512

For each number of operand rows: the time of one product [rows, 2880] · [5760, 2880]ᵀ through the
engine's own split over threads (operand conversion included), the weight bytes per second and their
share of the read bandwidth measured in the same run, the operations per second and their share of
the fastest multiply-add instruction's. Weights are taken in turn from more memory than the caches
hold. Medians; of what the machine allows, the best.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

import numpy as np

from gptoss.native import _core, _kernels

ROWS, COLUMNS = 5760, 2880  # of the weights: the first expert product of gpt-oss-20b
MEMORY = 200_000_000  # bytes of weights taken in turn


def random_matrix(format: str, random: np.random.Generator) -> _kernels.Panels:
    """Real numbers of either sign, so that the chip's clock is the real one."""
    if format == "mxfp4":
        blocks = random.integers(0, 256, (ROWS, COLUMNS // 32, 16), np.uint8)
        scales = random.integers(110, 125, (ROWS, COLUMNS // 32), np.uint8)
        return _kernels.pack("mxfp4", blocks=blocks, scales=scales, threads=2)
    weight = random.integers(0x3C00, 0x4000, (ROWS, COLUMNS), np.uint16)
    weight |= random.integers(0, 2, (ROWS, COLUMNS), np.uint16) << 15
    return _kernels.pack(format, weight=weight, threads=2)


def read_bandwidth(threads: int) -> float:
    """Bytes per second that the threads read from memory, as in bench.py."""
    data = np.ones(1 << 26, np.uint64)
    parts = np.array_split(data, 8 * threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(9):
            start = perf_counter()
            for _ in pool.map(np.max, parts):
                pass
            seconds.append(perf_counter() - start)
    return data.nbytes / min(seconds[1:])


def measure(isa: str, threads: int, rows: list[int], repeat: int) -> None:
    bandwidth = read_bandwidth(threads)
    found = [_kernels.peak_seconds(1 << 22, threads, isa=isa) for _ in range(30)]
    peak = max(operations / time for time, operations in found)
    print(
        f"{isa}, {threads} threads: reads {bandwidth / 1e9:.1f} GB/s, "
        f"multiplies {peak / 1e9:.0f} GFLOP/s"
    )
    random = np.random.default_rng(0)
    print(
        f"{'format':8}{'rows':>6}{'time':>12}{'weights':>12}{'share':>7}{'products':>16}{'share':>7}"
    )
    for format in ("mxfp4", "q8", "bf16"):
        matrices = [random_matrix(format, random)]
        size = matrices[0].data.nbytes
        matrices += [random_matrix(format, random) for _ in range(MEMORY // size)]
        for count in rows:
            taken = _kernels.linear_seconds(matrices, count, threads, repeat, isa=isa)
            time = median(taken)
            flops = 2.0 * ROWS * COLUMNS * count / time
            print(
                f"{format:8}{count:>6}{time * 1e6:>9.0f} us{size / time / 1e9:>7.1f} GB/s"
                f"{size / time / bandwidth:>7.0%}{flops / 1e9:>9.0f} GFLOP/s{flops / peak:>7.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    features = _core.cpu_features()
    parser.add_argument("--isa", default=features["isa"].split()[0], choices=_kernels.isas())
    parser.add_argument("--threads", type=int, default=features["threads"])
    parser.add_argument("--rows", default="1,2,4,8,16,64,512", help="operand rows")
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args()
    rows = [int(part) for part in arguments.rows.split(",")]
    measure(arguments.isa, arguments.threads, rows, arguments.repeat)


if __name__ == "__main__":
    main()

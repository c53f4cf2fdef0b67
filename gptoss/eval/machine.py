"""The machine that a model runs on: what it is, how fast it reads memory, how much is in use."""

from __future__ import annotations

import os
import platform
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from gptoss.engine import available_memory
from gptoss.native import _core

BANDWIDTH_BYTES = 1 << 30  # read to measure the bandwidth: more than any cache holds


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def show(self, scale: float = 1.0, digits: int = 1) -> str:
        return (
            f"{self.median / scale:.{digits}f} ({self.low / scale:.{digits}f}"
            f" to {self.high / scale:.{digits}f})"
        )


def read_bandwidth(threads: int, repeat: int) -> Spread:
    """Bytes per second that the threads read from 1 GiB of memory, by NumPy."""
    data = np.ones(BANDWIDTH_BYTES // 8, np.uint64)
    parts = np.array_split(data, 8 * threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat + 1):
            start = perf_counter()
            for _ in pool.map(np.max, parts):
                pass
            seconds.append(perf_counter() - start)
    return Spread.of([data.nbytes / s for s in seconds[1:]])


def forget_peak_memory() -> None:
    """Reset the peak, so that measuring the machine does not count (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # elsewhere the peak includes the gigabyte that read_bandwidth read


def peak_memory() -> int:
    """Most bytes that the process held at a time, mapped files included."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def describe_machine() -> dict[str, Any]:
    """CPU, instruction set, cores, memory in bytes, system, Python and NumPy; names of nobody."""
    features = _core.cpu_features()
    return {
        "cpu": cpu_name(),
        "isa": features["isa"],
        "cores": os.cpu_count(),
        "threads": features["threads"],
        "memory": total_memory(),
        "memory_free": available_memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "devices": [each["name"] for each in _core.backends() if each["available"]],
    }


def cpu_name() -> str:
    """As its maker calls it, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """Bytes of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None

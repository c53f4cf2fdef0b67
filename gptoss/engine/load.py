"""Opening a model: which device, which files, how large a step and a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

from numpy.typing import NDArray

from gptoss.checkpoint import PackedSource, TensorSource
from gptoss.errors import Error, shown
from gptoss.native import _core

# What a step holds at most, by default: enough to keep the device's arithmetic busy.
STEP_TOKENS = {"cpu": 512, "cuda": 4096}


MAX_BATCH = {"cpu": 64, "cuda": 256}
# The core's own limits, and those of its integers.
MAX_VALUES = {
    "threads": 4096,
    "tensor_parallel": 8,
    "max_batch": (1 << 31) - 1,
    "step_tokens": (1 << 31) - 1,
    "kv_bytes": (1 << 63) - 1,
    "priority": (1 << 63) - 1,
}


class ReportingSource:
    """A tensor source that tells how far its reader is."""

    def __init__(self, source: TensorSource, progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._progress = progress
        self._read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensor(self, name: str) -> NDArray[Any]:
        array = self._source.tensor(name)
        self._read += array.nbytes
        self._progress(self._read, self._source.nbytes)
        return array


def check_panels(
    source: TensorSource,
    weights: str | None,
    device: str,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Raise Error unless a packed model is whole and what was asked for."""
    if not isinstance(source, PackedSource):
        return
    if device != "cpu":
        raise Error(
            f"{source.name}: is packed for the CPU: expected device 'cpu', found {device!r}",
            field="device",
        )
    if weights not in (None, source.packed):
        raise Error(
            f"{source.name}: is packed with weights {source.packed!r}, asked for {weights!r}: "
            f"convert the checkpoint again",
            field="weights",
        )
    source.verify(threads or _core.cpu_features()["threads"], progress)


def free_model(backend: Any, source: TensorSource) -> None:
    backend.close()  # it may still read the source's arrays
    source.close()


def choose_device(device: str, backends: Iterable[dict[str, Any]]) -> str:
    known = {backend["name"]: backend for backend in backends}
    if device == "auto":
        return "cuda" if known.get("cuda", {}).get("available") else "cpu"
    if not isinstance(device, str) or device not in known:
        raise Error(
            f"device: expected 'auto' or one of {sorted(known)}, found {device!r}", field="device"
        )
    if not known[device]["available"]:
        raise Error(
            f"device: {device!r} is not available: {known[device]['reason']}", field="device"
        )
    return device


def check_integer(option: str, value: object, low: int = 1) -> int:
    """`value` as a plain int: those of NumPy overflow in arithmetic with others."""
    high = MAX_VALUES[option]
    # bool is an int to Python; here True is more likely a mistake than a 1.
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise Error(
            f"{option}: expected an integer from {low} to {high}, found {shown(value)}",
            field=option,
        )
    return int(value)


def check_optional_integer(option: str, value: object) -> int | None:
    """None stands for the default."""
    return None if value is None else check_integer(option, value)

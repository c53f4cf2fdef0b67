"""Models of exact published geometry with seeded random weights: "synthetic:gpt-oss-20b?layers=4".

Speed and memory can be measured on them without the real weights. Values are scaled so that
activations stay finite and the router spreads tokens over all experts; the text is noise.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.checkpoint.source import Array, TensorInfo, TensorSource
from gptoss.errors import Error, shown
from gptoss.model import ModelConfig, f32_to_bf16, mxfp4

PREFIX = "synthetic:"
PRESETS: dict[str, ModelConfig] = {
    "gpt-oss-20b": ModelConfig(
        num_hidden_layers=24,
        num_experts=32,
        vocab_size=201_088,
        hidden_size=2880,
        intermediate_size=2880,
        head_dim=64,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    "gpt-oss-120b": ModelConfig(
        num_hidden_layers=36,
        num_experts=128,
        vocab_size=201_088,
        hidden_size=2880,
        intermediate_size=2880,
        head_dim=64,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    "tiny": ModelConfig(
        num_hidden_layers=4,
        num_experts=8,
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=128,
        head_dim=64,
        num_attention_heads=8,
        num_key_value_heads=1,
        sliding_window=32,
    ),
}
_KEYS = {  # spec key → configuration field
    "layers": "num_hidden_layers",
    "experts": "num_experts",
    "vocab": "vocab_size",
}
_CHUNK = 1 << 20  # bytes made at a time; each chunk has a generator of its own
_NIBBLE_RMS = math.sqrt(float(np.mean(np.square(mxfp4.VALUES, dtype=np.float64))))


class SyntheticSource(TensorSource):
    """Random tensors, made when asked for and not kept.

    The same (geometry, seed) gives the same bytes on every machine; a tensor depends neither on the
    order of requests nor on the number of threads.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, name: str = "synthetic", threads: int = 0
    ) -> None:
        """threads: how many fill a tensor, 0 for as many as the process may use."""
        super().__init__(config, name=name, layout="synthetic")
        self.seed = seed
        self._threads = threads or _usable_threads()

    @classmethod
    def from_spec(cls, spec: str) -> SyntheticSource:
        """From "synthetic:PRESET?layers=L&experts=E&vocab=V&seed=S", all keys optional.

        Raises Error for an unknown preset, key or value.
        """
        preset, mark, query = spec.removeprefix(PREFIX).partition("?")
        if preset not in PRESETS:
            raise Error(
                f"{shown(spec)}: expected a preset out of {', '.join(PRESETS)}, "
                f"found {shown(preset)}"
            )
        seed, seen = 0, set()
        changes: dict[str, Any] = {}
        for item in query.split("&") if mark else []:
            key, _, text = item.partition("=")
            if key != "seed" and key not in _KEYS:
                raise Error(
                    f"{shown(spec)}: expected keys out of seed, {', '.join(_KEYS)}, "
                    f"found {shown(key)}"
                )
            if key in seen:
                raise Error(f"{shown(spec)}: {key} is given twice")
            seen.add(key)
            if not (text.isascii() and text.isdigit() and len(text) <= 18):
                raise Error(
                    f"{shown(spec)}: {key}: expected a whole number of 0 or more, "
                    f"found {shown(text)}"
                )
            if key == "seed":
                seed = int(text)
            else:
                changes[_KEYS[key]] = int(text)
        if "vocab_size" in changes:
            changes["eos_token_ids"] = ()  # the published ids may lie beyond it
        try:
            config = replace(PRESETS[preset], **changes)
        except Error as error:
            raise Error(f"{shown(spec)}: {error}") from None
        return cls(config, seed=seed, name=spec)

    def _read(self, info: TensorInfo) -> Array:
        out = np.empty(info.shape, dtype=np.uint16 if info.dtype == "BF16" else np.uint8)
        self._fill(info, out.reshape(-1), 0)
        return out

    def _read_expert(self, name: str, index: int) -> Array:
        info = self.info(name)
        out = np.empty(info.shape[1:], dtype=np.uint16 if info.dtype == "BF16" else np.uint8)
        self._fill(info, out.reshape(-1), index * out.size)
        return out

    def _fill(self, info: TensorInfo, out: Array, first: int) -> None:
        """Fill `out` with the tensor's elements `first` and following."""
        make = self._maker(info)
        per_chunk = _CHUNK // out.itemsize
        key = int.from_bytes(hashlib.blake2b(info.name.encode(), digest_size=8).digest(), "little")

        def fill(chunk: int) -> None:
            begin = max(chunk * per_chunk, first)
            end = min((chunk + 1) * per_chunk, first + out.size)
            skip = begin - chunk * per_chunk
            words = -(-(end - chunk * per_chunk) * out.itemsize // 8)
            # the raw stream of a bit generator is the same in every release of NumPy
            raw = np.random.SFC64([self.seed, key, chunk]).random_raw(words)
            values = raw.view(out.dtype)[skip : skip + end - begin]
            make(values, out[begin - first : end - first])

        chunks = range(first // per_chunk, -(-(first + out.size) // per_chunk))
        if len(chunks) < 4 or self._threads == 1:
            for chunk in chunks:
                fill(chunk)
            return
        with ThreadPoolExecutor(self._threads) as pool:  # NumPy lets go of the GIL in these calls
            list(pool.map(fill, chunks))

    def _maker(self, info: TensorInfo) -> Callable[[Array, Array], None]:
        """A function that turns uniform bits into elements of this tensor."""
        if info.name.endswith(".blocks"):
            return _copy
        if info.name.endswith(".scales"):
            return _scale_maker(info.shape[-1] * mxfp4.BLOCK)
        mean, deviation = self._distribution(info)
        table = f32_to_bf16(mean + deviation * _normal_table())

        def look_up(raw: Array, out: Array) -> None:
            np.take(table, raw, out=out, mode="wrap")

        return look_up

    def _distribution(self, info: TensorInfo) -> tuple[float, float]:
        """Mean and standard deviation of a bf16 tensor."""
        if info.name.endswith("norm.scale"):
            return 1.0, 0.1
        if info.name.endswith("sinks") or info.name == "embedding.weight":
            return 0.0, 1.0
        if info.name.endswith("bias"):
            return 0.0, 0.02
        return 0.0, 1.0 / math.sqrt(info.shape[-1])


def _copy(raw: Array, out: Array) -> None:
    out[:] = raw


def _scale_maker(fan_in: int) -> Callable[[Array, Array], None]:
    """Scale bytes, two neighbouring powers of two mixed so that weights have the right deviation.

    Uniform nibbles have a root mean square of 2.93, so the scales' must be 1/sqrt(fan_in)/2.93.
    """
    square = 1.0 / (fan_in * _NIBBLE_RMS**2)
    exponent = math.floor(math.log2(square) / 2)
    low = 4.0**exponent
    share = (square - low) / (3 * low)  # of the larger, whose square is four times the smaller's
    threshold = np.uint8(round(share * 255))
    base = np.uint8(exponent + 127)

    def make(raw: Array, out: Array) -> None:
        np.add(raw < threshold, base, out=out, dtype=np.uint8, casting="unsafe")

    return make


@cache
def _normal_table() -> NDArray[np.float32]:
    """65536 equally likely values of a standard normal variable, for 16 random bits: float32."""
    upper = [NormalDist().inv_cdf((2 * i + 1) / (1 << 17)) for i in range(1 << 15)]
    half = np.array(upper, dtype=np.float32)
    return np.concatenate([half, -half[::-1]])


def _usable_threads() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(count or 1, 8)

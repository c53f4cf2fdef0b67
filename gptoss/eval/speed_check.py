"""How fast a model loads, reads and writes here, and how much memory that takes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from gptoss.engine import available_memory
from gptoss.errors import Error
from gptoss.eval.cost import bytes_of, step_bytes
from gptoss.eval.machine import (
    BANDWIDTH_BYTES,
    Spread,
    forget_peak_memory,
    peak_memory,
    read_bandwidth,
    total_memory,
)
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session, random_tokens
from gptoss.request import SamplingParams

PROMPT, OUTPUT = 512, 64  # tokens
WARM_UP = 16
REPEAT = 3
# What a process may hold besides weights and cache: Python, the vocabulary, buffers of a step,
# pages of mapped files on their way.
ROOM = 1.5 * 2**30  # bytes


class Speed:
    """Measures; the bandwidth of memory before the model fills that."""

    def __init__(self, session: Session, quick: bool = False) -> None:
        self._session = session
        self._repeat = 1 if quick else REPEAT
        self._bandwidth: Spread | None = None

    def bandwidth(self) -> Outcome:
        """How fast this machine reads memory, with as many threads as the engine uses."""
        if self._session.options.device != "cpu":
            raise Skipped("the model does not run from this machine's memory")
        if available_memory() < 2 * BANDWIDTH_BYTES:
            raise Skipped("too little free memory to measure with")
        threads = self._session.threads
        self._bandwidth = read_bandwidth(threads, REPEAT)
        forget_peak_memory()
        line = f"{threads} threads read {self._bandwidth.show(1e9)} GB/s"
        return Outcome(line, figures={"bytes_per_second": self._bandwidth.median})

    def load(self) -> Outcome:
        """Open the model as the user wants it run."""
        session = self._session
        start = perf_counter()
        engine = session.engine()
        seconds = perf_counter() - start
        info = engine.info()
        size = int(info["weight_bytes"])
        line = (
            f"{size / 1e9:.2f} GB in {seconds:.1f} s on {info['backend']}: activation "
            f"{info['activation']}, weights {info['dense_weights']}, experts "
            f"{info['expert_weights']}, keys and values {info['kv_cache']}"
        )
        return Outcome(line, figures={"seconds": seconds, "weight_bytes": size, **_plain(info)})

    def speed(self) -> Outcome:
        """Tokens per second of a prompt and of an answer, of random tokens, alone."""
        session, engine = self._session, self._session.engine()
        config = session.config
        length = min(PROMPT, config.context_length // 2)
        steps = min(OUTPUT, config.context_length - length)
        prompts, answers = [], []
        for repetition in range(self._repeat + 1):
            warm_up = repetition == 0
            count = min(WARM_UP, length) if warm_up else length
            ids = random_tokens(config, count, seed=100 + repetition).tolist()
            params = SamplingParams(
                max_tokens=4 if warm_up else steps, temperature=1.0, seed=0, ignore_eos=True
            )
            (completion,) = engine.generate(ids, params)
            if not warm_up:
                prompts.append(completion.timing.prefill_tokens_per_second)
                answers.append(completion.timing.tokens_per_second)
        size = bytes_of(engine.info(), session.source.expert_dtype)
        needed = step_bytes(config, 1, length + steps // 2, size)
        reading, writing = median(prompts), median(answers)
        if not (reading > 0 and writing > 0 and math.isfinite(reading + writing)):
            raise Error(f"expected speeds above 0, found {reading} and {writing} tokens/s")
        line = (
            f"prefill of {length} tokens: {reading:.1f} tokens/s; decode: {writing:.1f} tokens/s, "
            f"{needed / 1e9:.3f} GB a token"
        )
        figures: dict[str, Any] = {
            "prefill_tokens_per_second": reading,
            "decode_tokens_per_second": writing,
            "bytes_per_token": needed,
            "share_of_bandwidth": None,
        }
        if self._bandwidth is not None:
            share = needed * writing / self._bandwidth.median
            line += f", {share:.0%} of the measured bandwidth"
            figures["share_of_bandwidth"] = share
        return Outcome(line, figures=figures)

    def memory(self) -> Outcome:
        """The most that the process held, as the user wants the model run."""
        info = self._session.engine().info()
        peak = peak_memory()
        weights, cache = int(info["weight_bytes"]), int(info["kv_bytes"])
        total, swapped = total_memory(), swapped_memory()
        line = (
            f"{peak / 1e9:.2f} GB at peak: weights {weights / 1e9:.2f}, "
            f"up to {cache / 1e9:.2f} for keys and values"
        )
        if total is not None:
            line += f"; the machine has {total / 1e9:.1f}"
        if swapped:
            line += f"; {swapped / 1e9:.2f} GB of this process are swapped out"
        # Of a file that is mapped, what was read may stay until it is needed for something else.
        limit = self._session.source.nbytes * 1.1 + cache + ROOM
        failed = info["backend"] == "cpu" and peak > limit
        if failed:
            line += f"; expected at most {limit / 1e9:.2f}"
        figures = {"peak": peak, "weights": weights, "cache": cache, "swapped": swapped}
        return Outcome(line, failed, figures)


def swapped_memory() -> int:
    """Bytes of this process that lie in swap space; 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmSwap:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """What of an engine's description belongs into a report: no names of folders."""
    kept = (
        "backend",
        "isa",
        "threads",
        "activation",
        "dense_weights",
        "expert_weights",
        "kv_cache",
    )
    return {key: info[key] for key in kept if key in info}

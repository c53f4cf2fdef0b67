"""How fast a model runs here, beside what the machine allows.

    python bench.py --model synthetic:gpt-oss-20b --device cpu --prefill 512 --decode 64 --batch 1,4

Measures the machine first: how fast it reads memory and how fast it multiplies bf16 matrices.
Then loads the model and times prompts (prefill) and single-token steps (decode), straight on the
backend: no tokenizer, no scheduler. Each repetition uses other random tokens. Figures are medians,
with the smallest and the largest beside them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import gptoss
from gptoss import _core, _kernels
from gptoss.checkpoint import open_checkpoint
from gptoss.config import ModelConfig
from gptoss.errors import Error
from gptoss.kv_cache import PagePool, SequencePages, peak_pages

STEP_TOKENS = 512  # most prompt tokens in one step, as in the engine
BF16 = 2  # bytes
MXFP4 = 17 / 32  # bytes: 16 bytes of values and 1 of scale for 32 weights


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


# The machine.


def read_bandwidth(threads: int, repeat: int) -> Spread:
    """Bytes per second that the threads read from 1 GiB of memory."""
    data = np.ones(1 << 27, np.uint64)
    seconds, _ = _kernels.read_seconds(data, threads, repeat + 1)
    return Spread.of([data.nbytes / s for s in seconds[1:]])


def gemm_peak(threads: int, repeat: int) -> Spread | None:
    """bf16 multiply-adds per second, times two, of oneDNN at (2048 x 2880) · (2880 x 5760).

    None where this CPU has no bf16 matrix product (then the engine runs on float32 arithmetic).
    """
    rows, n, cols = 2048, 5760, 2880
    seconds = _kernels.gemm_seconds(rows, n, cols, threads, repeat)
    return None if seconds is None else Spread.of([2.0 * rows * n * cols / s for s in seconds])


# The model: what a token costs. Norms, biases and activations are left out (under 0.1%).


def dense_weights(c: ModelConfig) -> int:
    """Weights that every token uses: attention and router of all layers, unembedding."""
    attention = (2 * c.query_size + 2 * c.kv_size) * c.hidden_size
    router = c.num_experts * c.hidden_size
    return c.num_hidden_layers * (attention + router) + c.vocab_size * c.hidden_size


def expert_weights(c: ModelConfig) -> int:
    """Weights of one expert in one layer."""
    return 3 * c.hidden_size * c.intermediate_size


def distinct_experts(c: ModelConfig, tokens: int) -> float:
    """Experts of a layer that so many tokens touch, if the router chose evenly."""
    return c.num_experts * (1.0 - (1.0 - c.experts_per_token / c.num_experts) ** tokens)


def visible_keys(c: ModelConfig, depth: int) -> int:
    """Keys that the token at position `depth` sees, summed over the layers."""
    sliding = (c.num_hidden_layers + 1) // 2
    return sliding * min(depth + 1, c.sliding_window) + (c.num_hidden_layers - sliding) * (
        depth + 1
    )


def step_bytes(
    c: ModelConfig, batch: int, depth: int, kv_element: int, expert_bytes: float
) -> float:
    """Bytes that a decode step of `batch` sequences must read: each weight and each key once."""
    experts = distinct_experts(c, batch) * expert_weights(c) * expert_bytes
    keys = batch * visible_keys(c, depth) * 2 * c.kv_size * kv_element
    return dense_weights(c) * BF16 + c.num_hidden_layers * experts + keys


def token_operations(c: ModelConfig, depth: int, logits: bool) -> float:
    """Multiplications and additions for one token."""
    weights = dense_weights(c) + c.num_hidden_layers * c.experts_per_token * expert_weights(c)
    if not logits:
        weights -= c.vocab_size * c.hidden_size
    return 2.0 * weights + 4.0 * visible_keys(c, depth) * c.query_size


# Running it.


class Runner:
    """Steps a backend by hand, with page tables as the scheduler makes them."""

    def __init__(
        self, backend: _core.Backend, config: ModelConfig, batch: int, length: int
    ) -> None:
        self.backend = backend
        self.config = config
        pages = batch * peak_pages(length, STEP_TOKENS, config.sliding_window, backend.page_size)
        backend.alloc_kv(pages)
        self.pages = pages
        self.reset()

    def reset(self) -> None:
        self.pool = PagePool(self.pages)

    def sequence(self) -> SequencePages:
        return SequencePages(self.pool, self.backend.page_size, self.config.sliding_window)

    def step(self, tokens: np.ndarray, sequences: list[SequencePages], start: int) -> np.ndarray:
        """tokens [S, n], the sequences' tokens start … start+n-1; the next ones, drawn greedily."""
        count, end = tokens.shape[1], start + tokens.shape[1]
        for pages in sequences:
            pages.grow(end)
        blocks = -(-end // self.backend.page_size)
        table = np.stack([pages.table[:, :blocks] for pages in sequences], axis=1)
        offsets = np.arange(len(sequences) + 1, dtype=np.int32) * count
        rows = np.zeros(len(sequences), _core.SAMPLING_DTYPE)
        rows["top_p"] = rows["repetition_penalty"] = 1.0
        output = self.backend.step(
            tokens.reshape(-1),
            offsets,
            np.full(len(sequences), end, np.int32),
            table,
            offsets[1:] - 1,
            _core.SamplingBatch(rows),
        )
        for pages in sequences:
            pages.trim(end)
        assert output.tokens is not None
        return output.tokens

    def prefill(self, tokens: np.ndarray, pages: SequencePages) -> None:
        """One prompt, in chunks; ends with its first new token drawn."""
        for start in range(0, len(tokens), STEP_TOKENS):
            self.step(tokens[None, start : start + STEP_TOKENS], [pages], start)


def random_tokens(random: np.random.Generator, config: ModelConfig, count: int) -> np.ndarray:
    return random.integers(0, config.vocab_size, count, np.int32)


def time_prefill(runner: Runner, length: int, repeat: int, seed: int) -> Spread:
    """Seconds from a prompt to its first token, nothing else running."""
    seconds = []
    for repetition in range(repeat + 1):  # the first warms up
        runner.reset()
        tokens = random_tokens(np.random.default_rng([seed, repetition]), runner.config, length)
        pages = runner.sequence()
        start = perf_counter()
        runner.prefill(tokens, pages)
        seconds.append(perf_counter() - start)
    return Spread.of(seconds[1:])


def time_decode(
    runner: Runner, batch: int, depth: int, steps: int, repeat: int, seed: int
) -> tuple[Spread, Spread]:
    """Seconds of a step: (over repetitions, of each one's mean; over all single steps)."""
    means: list[float] = []
    singles: list[float] = []
    for repetition in range(repeat):
        runner.reset()
        random = np.random.default_rng([seed, 1, repetition])
        sequences = [runner.sequence() for _ in range(batch)]
        for pages in sequences:
            if depth:
                runner.prefill(random_tokens(random, runner.config, depth), pages)
        tokens = random_tokens(random, runner.config, batch)
        tokens = runner.step(tokens[:, None], sequences, depth)  # warms up
        seconds = []
        for position in range(depth + 1, depth + 1 + steps):
            start = perf_counter()
            runner.step(tokens[:, None], sequences, position)
            seconds.append(perf_counter() - start)
            # Not the drawn tokens: greedy text soon repeats itself, and with it the experts.
            tokens = random_tokens(random, runner.config, batch)
        means.append(sum(seconds) / len(seconds))
        singles += seconds
    return Spread.of(means), Spread.of(singles)


def forget_peak_memory() -> None:
    """Start the peak anew, so that measuring the machine does not count (Linux)."""
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


def integers(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 on, like 1,4: found {text!r}")
    return values


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {value}")
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="synthetic:gpt-oss-20b", help="checkpoint or synthetic:…"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    parser.add_argument("--activation", default="bf16", choices=("bf16", "f32"))
    parser.add_argument("--weights", default="published", choices=("published",))
    parser.add_argument("--prefill", type=positive, default=512, help="tokens of the prompt")
    parser.add_argument("--decode", type=positive, default=64, help="single-token steps")
    parser.add_argument("--batch", type=integers, default=[1], help="sequences per step: 1,4")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before decoding")
    parser.add_argument("--threads", type=positive, default=None, help="default: one per core")
    parser.add_argument("--repeat", type=positive, default=3, help="repetitions (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    arguments = parser.parse_args(argv)
    if arguments.depth < 0:
        parser.error(f"--depth: expected 0 or more, found {arguments.depth}")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    threads = arguments.threads or _core.cpu_features()["threads"]
    bandwidth = read_bandwidth(threads, max(5, arguments.repeat))
    gemm = gemm_peak(threads, max(5, arguments.repeat))
    print(f"machine   {platform.machine()}, {threads} threads, {_core.cpu_features()['isa']}")
    print(f"          reads memory at {bandwidth.show(1e9)} GB/s")
    if gemm is not None:
        print(f"          multiplies bf16 at {gemm.show(1e9, 0)} GFLOP/s (oneDNN)")

    forget_peak_memory()
    start = perf_counter()
    source = open_checkpoint(arguments.model)
    config = source.config
    longest = max(arguments.prefill, arguments.depth + arguments.decode + 1)
    if longest > config.context_length:
        raise Error(
            f"--prefill, --depth, --decode: expected at most {config.context_length} tokens (the "
            f"model's context), found {longest}"
        )
    backend = _core.Backend(
        config, source, device=arguments.device, activation=arguments.activation, threads=threads
    )
    load_s = perf_counter() - start
    info = backend.info()
    weight_bytes = int(info["weight_bytes"])
    print(f"model     {source.name}: {config.parameters() / 1e9:.2f} G parameters, "
          f"{weight_bytes / 1e9:.2f} GB, loaded in {load_s:.1f} s")  # fmt: skip
    runner = Runner(backend, config, max(arguments.batch), longest)

    kv_element = 4 if arguments.activation == "f32" else 2
    expert_bytes = MXFP4 if source.expert_dtype == "mxfp4" else BF16
    prefill = time_prefill(runner, arguments.prefill, arguments.repeat, arguments.seed)
    # The mean over the prompt of what its tokens see is what its middle token sees, but for the
    # window's edge; only the last token's logits are computed.
    operations = arguments.prefill * token_operations(config, arguments.prefill // 2, logits=False)
    operations += 2.0 * config.vocab_size * config.hidden_size
    prefill_rate = Spread(
        *(arguments.prefill / s for s in (prefill.median, prefill.high, prefill.low))
    )
    prefill_share = operations / prefill.median / gemm.median if gemm else None
    print(f"prefill   {arguments.prefill} tokens: {prefill_rate.show()} tokens/s, "
          f"first token after {prefill.median:.2f} s, "
          f"{operations / arguments.prefill / 1e9:.2f} GFLOP a token"
          + (f", {prefill_share:.0%} of the measured peak" if prefill_share else ""))  # fmt: skip

    decode: list[dict[str, Any]] = []
    for batch in arguments.batch:
        means, singles = time_decode(
            runner, batch, arguments.depth, arguments.decode, arguments.repeat, arguments.seed
        )
        rate = Spread(*(batch / s for s in (means.median, means.high, means.low)))
        middle = arguments.depth + arguments.decode // 2
        needed = step_bytes(config, batch, middle, kv_element, expert_bytes)
        bandwidth_share = needed / means.median / bandwidth.median
        decode.append(
            {
                "batch": batch,
                "depth": arguments.depth,
                "tokens_per_s": asdict(rate),
                "step_s": asdict(singles),
                "bytes_per_step": needed,
                "bytes_per_token": needed / batch,
                "operations_per_token": token_operations(config, middle, logits=True),
                "share_of_bandwidth": bandwidth_share,
                "share_of_peak": batch * token_operations(config, middle, logits=True)
                / means.median / gemm.median if gemm else None,
            }
        )  # fmt: skip
        print(f"decode    batch {batch}, depth {arguments.depth}: {rate.show(digits=2)} tokens/s, "
              f"{needed / batch / 1e9:.2f} GB a token, "
              f"{bandwidth_share:.0%} of the measured bandwidth")  # fmt: skip

    memory = peak_memory()
    kv_bytes = int(backend.info()["kv_bytes"])
    print(f"memory    {memory / 1e9:.2f} GB at peak, {memory / weight_bytes:.3f} x the weights "
          f"(KV cache {kv_bytes / 1e9:.2f} GB)")  # fmt: skip
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "versions": {
            "gptoss": gptoss.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onednn": _core.onednn_version(),
        },
        "cpu": _core.cpu_features(),
        "backend": backend.info(),
        "model": source.name,
        "parameters": config.parameters(),
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "bandwidth_bytes_per_s": bandwidth.median,
        "peak_flops": gemm.median if gemm else None,
        "load_s": load_s,
        "time_to_first_token_s": prefill.median,
        "prefill_tokens_per_s": prefill_rate.median,
        "decode_tokens_per_s": decode[0]["tokens_per_s"]["median"],
        "peak_memory_bytes": memory,
        "prefill": {
            "tokens": arguments.prefill,
            "tokens_per_s": asdict(prefill_rate),
            "seconds": asdict(prefill),
            "operations_per_token": operations / arguments.prefill,
            "share_of_peak": prefill_share,
        },
        "decode": decode,
        "spread": {
            "bandwidth_bytes_per_s": asdict(bandwidth),
            "peak_flops": asdict(gemm) if gemm else None,
        },
    }
    backend.close()
    source.close()
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        result = measure(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    except (Error, OSError, MemoryError) as error:
        print(f"bench.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast a model runs here, beside what the machine allows and beside a peer.

    python bench.py --model synthetic:gpt-oss-20b --weights q8 --prefill 512,2048 --decode 64 \\
        --batch 1,8 --depth 0,4096

Measures the machine first: how fast it reads memory and how fast it multiplies. Then loads the
model and times prompts (prefill) and single-token steps (decode), straight on the backend: no
tokenizer, no scheduler. Each repetition uses other random tokens. Figures are medians, with the
smallest and the largest beside them. With --peer llama.cpp each repetition is followed by the same
one of llama.cpp, so that both see the same machine.

    python bench.py serve --requests 64

puts a server under load instead: see bench/serve.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import gptoss
from bench.machine import measure_machine
from gptoss.cli.arguments import add_engine_options, add_first_model, engine_options
from gptoss.engine.load import choose_device, open_model
from gptoss.engine.pages import PagePool, SequencePages, peak_pages
from gptoss.errors import Error
from gptoss.eval.cost import Bytes, bytes_of, step_bytes, token_operations
from gptoss.eval.machine import Spread, forget_peak_memory, peak_memory
from gptoss.model.config import ModelConfig
from gptoss.native import _core, arrays

try:
    from gptoss.native import _kernels
except ImportError:  # a user's installation, which measures neither arithmetic nor a GPU's memory
    _kernels = None

SERVE = Path(__file__).with_name("serve.py")
PEER = Path(__file__).parent / "peers" / "time_llama_cpp.py"


# Running it.


class Runner:
    """Steps a backend by hand, with page tables as the scheduler makes them."""

    def __init__(
        self, backend: _core.Backend, config: ModelConfig, batch: int, length: int, step_tokens: int
    ) -> None:
        self.backend = backend
        self.config = config
        self.step_tokens = step_tokens
        pages = batch * peak_pages(length, step_tokens, config.sliding_window, backend.page_size)
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
        rows = np.zeros(len(sequences), arrays.SAMPLING_DTYPE)
        rows["top_p"] = rows["repetition_penalty"] = 1.0
        output = self.backend.step(
            tokens.reshape(-1),
            offsets,
            np.full(len(sequences), end, np.int32),
            table,
            offsets[1:] - 1,
            arrays.SamplingBatch(rows),
        )
        for pages in sequences:
            pages.trim(end)
        assert output.tokens is not None
        return output.tokens

    def prefill(self, tokens: np.ndarray, pages: SequencePages) -> None:
        """One prompt, in chunks; ends with its first new token drawn."""
        for start in range(0, len(tokens), self.step_tokens):
            self.step(tokens[None, start : start + self.step_tokens], [pages], start)


def random_tokens(random: np.random.Generator, config: ModelConfig, count: int) -> np.ndarray:
    return random.integers(0, config.vocab_size, count, np.int32)


class Prefill:
    """Seconds from a prompt to its first token, nothing else running: one repetition per call."""

    def __init__(self, runner: Runner, length: int, seed: int) -> None:
        self.runner, self.length, self.seed = runner, length, seed

    def __call__(self, repetition: int) -> float:
        self.runner.reset()
        random = np.random.default_rng([self.seed, repetition])
        tokens = random_tokens(random, self.runner.config, self.length)
        pages = self.runner.sequence()
        start = perf_counter()
        self.runner.prefill(tokens, pages)
        return perf_counter() - start


class Decode:
    """Mean seconds of a step of `batch` sequences after `depth` tokens: one repetition per call."""

    def __init__(self, runner: Runner, batch: int, depth: int, steps: int, seed: int) -> None:
        self.runner, self.batch, self.depth, self.steps = runner, batch, depth, steps
        self.seed = seed
        self.singles: list[float] = []
        self.sequences: list[SequencePages] = []
        self.position = depth  # each repetition continues where the last one ended

    def __call__(self, repetition: int) -> float:
        runner, config = self.runner, self.runner.config
        random = np.random.default_rng([self.seed, 1, repetition])
        if not self.sequences:
            runner.reset()
            self.sequences = [runner.sequence() for _ in range(self.batch)]
            for pages in self.sequences:
                if self.depth:
                    runner.prefill(random_tokens(random, config, self.depth), pages)
        tokens = random_tokens(random, config, self.batch)
        runner.step(tokens[:, None], self.sequences, self.position)  # warms up
        seconds = []
        first = self.position + 1
        self.position = first + self.steps
        for position in range(first, self.position):
            # Not the drawn tokens: greedy text soon repeats itself, and with it the experts.
            tokens = random_tokens(random, config, self.batch)
            start = perf_counter()
            runner.step(tokens[:, None], self.sequences, position)
            seconds.append(perf_counter() - start)
        self.singles += seconds
        return sum(seconds) / len(seconds)


# The peer.


class Peer:
    """llama.cpp in a child process of another environment (bench/peers/time_llama_cpp.py)."""

    def __init__(self, python: Path, model: Path, threads: int, context: int) -> None:
        command = [python, PEER, model, "--threads", str(threads), "--context", str(context)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise Error(f"--peer-python: {python}: {error.strerror}") from None
        self.version = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Error(
                "llama.cpp ended without an answer: --peer-python must have the package "
                "llama-cpp-python (pip install llama-cpp-python), --peer-model must be a GGUF file"
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **question: int) -> float:
        assert self.process.stdin is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # its end is reported where its answer is missing
        return float(self._answer()["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def open_peer(arguments: argparse.Namespace, threads: int, context: int) -> Iterator[Peer | None]:
    if arguments.peer is None:
        yield None
        return
    peer = Peer(arguments.peer_python, arguments.peer_model, threads, context)
    print(f"peer      llama.cpp (llama-cpp-python {peer.version}), {arguments.peer_model}")
    try:
        yield peer
    finally:
        peer.close()


def alternate(
    ours: Callable[[int], float], theirs: Callable[[], float] | None, repeat: int, warm_up: bool
) -> tuple[Spread, Spread | None]:
    """Seconds of each, our repetitions alternating with theirs."""
    if warm_up:
        ours(repeat)
        if theirs is not None:
            theirs()
    mine, other = [], []
    for repetition in range(repeat):
        mine.append(ours(repetition))
        if theirs is not None:
            other.append(theirs())
    return Spread.of(mine), Spread.of(other) if other else None


def per_second(count: float, seconds: Spread) -> Spread:
    return Spread(count / seconds.median, count / seconds.high, count / seconds.low)


def beside(ours: Spread, theirs: Spread | None) -> str:
    """The peer's rate and the ratio, for the end of a line."""
    if theirs is None:
        return ""
    return f" | llama.cpp {theirs.show(digits=2)}: {ours.median / theirs.median:.1f} x"


def integers(text: str, least: int = 1) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if not values or min(values) < least:
        raise argparse.ArgumentTypeError(
            f"expected numbers from {least} on, like 1,4: found {text!r}"
        )
    return values


def depths(text: str) -> list[int]:
    return integers(text, 0)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {value}")
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_first_model(parser, "synthetic:gpt-oss-20b")
    add_engine_options(
        parser,
        ["model", "device", "activation", "weights", "kv", "tensor_parallel", "step_tokens",
         "threads"],
        {"model": "synthetic:gpt-oss-20b", "device": "cpu"},
    )  # fmt: skip
    parser.add_argument("--prefill", type=integers, default=[512], help="prompt lengths: 512,2048")
    parser.add_argument("--decode", type=positive, default=64, help="single-token steps")
    parser.add_argument("--batch", type=integers, default=[1], help="sequences per step: 1,4")
    parser.add_argument(
        "--depth", type=depths, default=[0], help="tokens in the cache before decoding: 0,4096"
    )
    parser.add_argument("--repeat", type=positive, default=3, help="repetitions (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--peer", choices=("llama.cpp",), help="time it too, in turn with ours")
    parser.add_argument(
        "--peer-python", type=Path, metavar="PATH", help="a Python that has llama-cpp-python"
    )
    parser.add_argument(
        "--peer-model", type=Path, metavar="FILE", help="a GGUF (bench/peers/random_gguf.py)"
    )
    arguments = parser.parse_args(argv)
    if arguments.peer and not (arguments.peer_python and arguments.peer_model):
        parser.error("--peer: expected --peer-python and --peer-model beside it")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    options = engine_options(arguments)
    threads = options.threads or _core.cpu_features()["threads"]
    device = choose_device(options.device, _core.backends())
    step_tokens, _ = options.step_limits(device)
    bandwidth, peak = measure_machine(device, threads, max(5, arguments.repeat))

    forget_peak_memory()
    start = perf_counter()
    model = open_model(options, device)
    load_s = perf_counter() - start
    source, backend = model.source, model.backend
    config = source.config
    steps = arguments.repeat * (arguments.decode + 1)
    longest = max(*arguments.prefill, max(arguments.depth) + steps)
    if longest > config.context_length:
        raise Error(
            f"--prefill, --depth, --decode, --repeat: expected at most {config.context_length} "
            f"tokens (the model's context), found {longest}"
        )
    info = backend.info()
    weight_bytes = int(info["weight_bytes"])
    print(f"model     {source.name}: {config.parameters() / 1e9:.2f} G parameters, "
          f"{weight_bytes / 1e9:.2f} GB, loaded in {load_s:.1f} s")  # fmt: skip
    print(f"          dense weights {info['dense_weights']}, experts {info['expert_weights']}, "
          f"keys and values {info['kv_cache']}")  # fmt: skip
    size = bytes_of(info, source.expert_dtype)
    runner = Runner(backend, config, max(arguments.batch), longest, step_tokens)
    with open_peer(arguments, threads, longest + 64) as peer:
        prefill = [
            measure_prefill(arguments, runner, length, peak, peer) for length in arguments.prefill
        ]
        decode: list[dict[str, Any]] = []
        for depth in arguments.depth:
            for batch in arguments.batch:
                decode.append(
                    measure_decode(arguments, runner, batch, depth, size, bandwidth, peak, peer)
                )

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
        },
        "cpu": _core.cpu_features(),
        "backend": backend.info(),
        "model": source.name,
        "parameters": config.parameters(),
        "weight_bytes": weight_bytes,
        "kv_bytes": kv_bytes,
        "bandwidth_bytes_per_s": None if bandwidth is None else bandwidth.median,
        "peak_flops": None if peak is None else peak.median,
        "load_s": load_s,
        "time_to_first_token_s": prefill[0]["seconds"]["median"],
        "prefill_tokens_per_s": prefill[0]["tokens_per_s"]["median"],
        "decode_tokens_per_s": decode[0]["tokens_per_s"]["median"],
        "peak_memory_bytes": memory,
        "prefill": prefill,
        "decode": decode,
        "spread": {
            "bandwidth_bytes_per_s": None if bandwidth is None else asdict(bandwidth),
            "peak_flops": None if peak is None else asdict(peak),
        },
    }
    model.close()
    return result


def share_of(rate: float, limit: Spread | None) -> float | None:
    return None if limit is None else rate / limit.median


def percent(share: float | None, limit: str) -> str:
    return "" if share is None else f", {share:.0%} of the measured {limit}"


def measure_prefill(
    arguments: argparse.Namespace,
    runner: Runner,
    length: int,
    peak: Spread | None,
    peer: Peer | None,
) -> dict[str, Any]:
    config = runner.config
    theirs = None if peer is None else lambda: peer.ask(prefill=length)
    seconds, other = alternate(
        Prefill(runner, length, arguments.seed), theirs, arguments.repeat, warm_up=True
    )
    # The mean over the prompt of what its tokens see is what its middle token sees, but for the
    # window's edge; only the last token's logits are computed.
    operations = length * token_operations(config, length // 2, logits=False)
    operations += 2.0 * config.vocab_size * config.hidden_size
    rate = per_second(length, seconds)
    their_rate = None if other is None else per_second(length, other)
    share = share_of(operations / seconds.median, peak)
    print(f"prefill   {length} tokens: {rate.show()} tokens/s, "
          f"first token after {seconds.median:.2f} s, "
          f"{operations / length / 1e9:.2f} GFLOP a token{percent(share, 'peak')}"
          f"{beside(rate, their_rate)}", flush=True)  # fmt: skip
    return {
        "tokens": length,
        "tokens_per_s": asdict(rate),
        "seconds": asdict(seconds),
        "operations_per_token": operations / length,
        "share_of_peak": share,
        "peer_tokens_per_s": None if their_rate is None else asdict(their_rate),
    }


def measure_decode(
    arguments: argparse.Namespace,
    runner: Runner,
    batch: int,
    depth: int,
    size: Bytes,
    bandwidth: Spread | None,
    peak: Spread | None,
    peer: Peer | None,
) -> dict[str, Any]:
    config, steps = runner.config, arguments.decode
    theirs = None
    if peer is not None and batch == 1:
        theirs = lambda: peer.ask(decode=steps, depth=depth)  # noqa: E731
    ours = Decode(runner, batch, depth, steps, arguments.seed)
    seconds, other = alternate(ours, theirs, arguments.repeat, warm_up=False)
    rate = per_second(batch, seconds)
    their_rate = None if other is None else per_second(batch, other)
    middle = depth + arguments.repeat * (steps + 1) // 2
    needed = step_bytes(config, batch, middle, size)
    operations = token_operations(config, middle, logits=True)
    share = share_of(needed / seconds.median, bandwidth)
    print(f"decode    batch {batch}, depth {depth}: {rate.show(digits=2)} tokens/s, "
          f"{needed / batch / 1e9:.2f} GB a token{percent(share, 'bandwidth')}"
          f"{beside(rate, their_rate)}", flush=True)  # fmt: skip
    return {
        "batch": batch,
        "depth": depth,
        "tokens_per_s": asdict(rate),
        "step_s": asdict(Spread.of(ours.singles)),
        "bytes_per_step": needed,
        "bytes_per_token": needed / batch,
        "operations_per_token": operations,
        "share_of_bandwidth": share,
        "share_of_peak": share_of(batch * operations / seconds.median, peak),
        "peer_tokens_per_s": None if their_rate is None else asdict(their_rate),
    }


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["serve"]:  # a client of a server: nothing of this file
        return subprocess.call([sys.executable, str(SERVE), *argv[1:]])
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

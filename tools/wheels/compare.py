"""Steps of two installations of gptoss by turns, so that both see the same machine.

    python3 tools/wheels/compare.py PYTHON_A PYTHON_B [--rounds 15]

Each PYTHON has gptoss installed; one loads the models while the other waits. Prints, for decoding
with the bundled model and for a prompt of 256 tokens of one layer of gpt-oss-20b's geometry, on one
thread, A's CPU time, the median, and the median of the rounds' ratios, B's / A's, with the quarter
of them that lie below and above.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from time import process_time

ROOT = Path(__file__).resolve().parents[2]
DECODED = 200  # tokens
CASES = {
    "decode, bundled model": ("bundled", 1e6, "µs a token"),
    "prompt of 256, 20b, one layer": ("synthetic:gpt-oss-20b?layers=1", 1e3, "ms"),
}


def work(model: str) -> None:
    """Answers each line on standard input with seconds of CPU time: the least of three.

    CPU time, because others may take the core away; there is one thread.
    """
    sys.path.append(str(ROOT))  # for bench/; gptoss is the installed one
    from bench.model import Decode, Prefill, Runner
    from gptoss.engine import EngineOptions
    from gptoss.engine.load import open_model

    options = EngineOptions(model=None if model == "bundled" else model, device="cpu", threads=1)
    opened = open_model(options, "cpu")
    runner = Runner(opened.backend, opened.source.config, 1, 512, 256)

    def once(repetition: int) -> float:
        """Seconds of a token, or of the prompt."""
        start = process_time()
        if model == "bundled":
            Decode(runner, 1, 0, DECODED, 0)(repetition)
        else:
            Prefill(runner, 256, 0)(repetition)
        return (process_time() - start) / (DECODED if model == "bundled" else 1)

    once(0)
    for line in sys.stdin:
        print(min(once(int(line)) for _ in range(3)), flush=True)


class Worker:
    def __init__(self, python: str, model: str) -> None:
        command = [python, __file__, "--work", model]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, repetition: int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{repetition}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def compare(a: Worker, b: Worker, rounds: int, scale: float, unit: str) -> str:
    times = []
    for repetition in range(rounds):
        # Who comes first changes, too.
        first, second = (a, b) if repetition % 2 == 0 else (b, a)
        seconds = {worker: worker.seconds(repetition) for worker in (first, second)}
        times.append((seconds[a], seconds[b]))
    ratios = [theirs / ours for ours, theirs in times]
    low, _, high = quantiles(ratios, n=4)
    return (
        f"A {median(ours for ours, _ in times) * scale:.0f} {unit}, B / A"
        f" {median(ratios):.3f} ({low:.3f} to {high:.3f})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="*", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return 0
    if len(arguments.python) != 2:
        parser.error(f"expected two Pythons, found {len(arguments.python)}")
    for name, (model, scale, unit) in CASES.items():
        a, b = (Worker(python, model) for python in arguments.python)
        try:
            print(f"{name}: {compare(a, b, arguments.rounds, scale, unit)}", flush=True)
        finally:
            a.close()
            b.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What a step costs beside the model: planning, arrays, and handing out, on a backend of no cost.

    python bench/host.py                 # steps of 1, 8, 64 and 256 sequences
    python bench/host.py --queue         # prompts by the thousand through Engine.generate

Microseconds are the worker thread's own CPU time, medians over the steps of a run, of which the
fastest of several is shown: what the machine does beside them can only add. For the queue: seconds
for all prompts, and per prompt; a queue that is linear keeps the second figure.
"""

from __future__ import annotations

import argparse
from queue import SimpleQueue
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from gptoss import Engine, SamplingParams
from gptoss.engine.generation import Generation
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.worker import Worker
from gptoss.native.arrays import StepOutput

PAGE, WINDOW = 16, 128


class NoModel:
    """Draws the same token for every sequence, at once."""

    def step(self, *arrays: Any, sampling: Any, **options: Any) -> StepOutput:
        rows = len(sampling.rows) if sampling is not None else 0
        return StepOutput(tokens=np.full(rows, 65, np.int32), logprobs=np.zeros(rows, np.float32))


def step_seconds(sequences: int, tokens: int, overlap: bool) -> float:
    """Median seconds of a step in which this many sequences decode."""
    pages = sequences * 2 * (tokens // PAGE + 4)
    scheduler = Scheduler(pages, PAGE, WINDOW, max(512, 16 * sequences), sequences)
    worker = Worker(NoModel(), scheduler, overlap_from=1 if overlap else None)
    params = SamplingParams(temperature=1.0, max_tokens=tokens)
    outbox: SimpleQueue[Any] = SimpleQueue()
    for i in range(sequences):
        request = Generation(
            [(7 * i + 3 * j) % 1000 for j in range(16)],
            params,
            seed=i,
            max_tokens=tokens,
            stop_ids=frozenset([1]),
            text=None,
            token_bytes=lambda token: b"",
            outbox=outbox,
            key=i,
        )
        request.demand = tokens + 1
        worker.submit(request)
    times = []
    while worker.busy:
        begun = thread_time()
        worker.serve()
        times.append(thread_time() - begun)
    return median(times)


def steps(arguments: argparse.Namespace) -> None:
    for sequences in map(int, arguments.batch.split(",")):
        runs = [
            step_seconds(sequences, arguments.tokens, arguments.overlap)
            for _ in range(arguments.repeat)
        ]
        print(
            f"{sequences:>4} sequences: {1e6 * min(runs):8.1f} us a step "
            f"({1e6 * min(runs) / sequences:.2f} a sequence), up to {1e6 * max(runs):.1f}",
            flush=True,
        )


def queue(arguments: argparse.Namespace) -> None:
    params = SamplingParams(max_tokens=1, temperature=0)
    with Engine(threads=1) as engine:
        engine.generate([[1, 2, 3]] * 64, params)
        for count in map(int, arguments.prompts.split(",")):
            prompts = [[1 + i % 900, 2 + i // 900, 3] for i in range(count)]
            runs = []
            for _ in range(arguments.repeat):
                begun = perf_counter()
                engine.generate(prompts, params)
                runs.append(perf_counter() - begun)
            print(
                f"{count:>6} prompts: {median(runs):7.2f} s ({min(runs):.2f} to {max(runs):.2f}), "
                f"{1e3 * median(runs) / count:.3f} ms a prompt",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--batch", default="1,8,64,256", help="sequences in a step (default: 1,8,64,256)")
    add("--tokens", type=int, default=200, metavar="N", help="of each sequence (default: 200)")
    add("--overlap", action="store_true", help="plan each step while the one before it runs")
    add("--repeat", type=int, default=5, metavar="N", help="runs of each (default: 5)")
    add("--queue", action="store_true", help="time the queue instead")
    add("--prompts", default="2000,16000", help="with --queue (default: 2000,16000)")
    arguments = parser.parse_args()
    (queue if arguments.queue else steps)(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""llama.cpp as a peer of bench.py: a child process that times what it is told to.

    PYTHON bench/peers/time_llama_cpp.py MODEL.gguf --threads 2 --context 5000

runs in an environment that has the registry package llama-cpp-python; a random model of the same
geometry as ours comes from random_gguf.py. Each line of standard input is a JSON object, answered
by one line: {"prefill": n} by the seconds from n random tokens to the first new one; {"decode": n,
"depth": d} by the mean seconds of n single-token steps behind d tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from time import perf_counter

import llama_cpp
import numpy as np


class Peer:
    """A model whose cache holds `depth` random tokens between two questions."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.model = llama_cpp.Llama(
            path,
            n_ctx=context,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            logits_all=False,
            verbose=False,
        )
        self.random = np.random.default_rng(0)
        self.depth = 0

    def tokens(self, count: int) -> list[int]:
        return [int(token) for token in self.random.integers(300, 190_000, count)]

    def prefill(self, count: int) -> float:
        self.model.reset()
        self.depth = 0
        tokens = self.tokens(count)
        start = perf_counter()
        self.model.eval(tokens)
        return perf_counter() - start

    def decode(self, count: int, depth: int) -> float:
        if depth != self.depth or depth == 0:
            self.model.reset()
            if depth:
                self.model.eval(self.tokens(depth))
            self.depth = depth
        self.model.n_tokens = depth  # what the last question added is forgotten
        self.model.eval(self.tokens(1))  # warms up
        seconds = []
        for token in self.tokens(count):
            start = perf_counter()
            self.model.eval([token])
            seconds.append(perf_counter() - start)
        return sum(seconds) / len(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    arguments = parser.parse_args()
    start = perf_counter()
    peer = Peer(arguments.model, arguments.threads, arguments.context)
    ready = {"load_s": perf_counter() - start, "version": llama_cpp.__version__}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "prefill" in asked:
            seconds = peer.prefill(asked["prefill"])
        else:
            seconds = peer.decode(asked["decode"], asked["depth"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

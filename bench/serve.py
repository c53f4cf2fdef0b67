"""A server under load: how much it writes, how long clients wait, and whether anything is lost.

    python bench.py serve --requests 64 --rate 4          # beside the same, one after another
    python bench.py serve --soak 300 --streams 64         # five minutes, clients leaving at random
    python bench.py serve --prefix 1024                   # a prompt again, and one that goes on

Starts `gptoss serve` on a free port of this machine and asks it through sockets, as clients would.
Lengths of prompts and answers are drawn from log-normal distributions like those of conversations
that people shared (ShareGPT: prompts of about 220 tokens on average, answers of about 190, both
with a long tail), and cut where the context is short; arrivals are a Poisson process. All of
it depends on --seed alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ask:
    """A request. at: seconds after the start. leaves: tokens after which its client goes."""

    prompt: list[int]
    tokens: int
    at: float = 0.0
    leaves: int | None = None


@dataclass
class Answer:
    """What a client saw. times: of each token, in seconds after sending."""

    ask: Ask
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    begun: bool = False  # a status of 200 came
    refused: int = 0  # how often it was told to come again

    @property
    def whole(self) -> bool:
        return self.finish == "length" and len(self.times) == self.ask.tokens

    @property
    def served(self) -> bool:
        """Whether its client saw all that it stayed for."""
        if self.ask.leaves is None:
            return self.whole
        return self.error is None and len(self.times) >= self.ask.leaves


@dataclass(frozen=True)
class Kind:
    """What requests are like. rate: arrivals per second; 0: all at once. scale: of all lengths.
    vocabulary: ids are below it. context: tokens of prompt and answer at most.
    """

    rate: float
    scale: float
    vocabulary: int
    context: int

    def draw(self, count: int, seed: int) -> list[Ask]:
        chance, at = random.Random(seed), 0.0
        asks = []
        for _ in range(count):
            prompt = round(self.scale * min(1024, max(4, chance.lognormvariate(4.7, 1.1))))
            tokens = round(self.scale * min(800, max(4, chance.lognormvariate(4.9, 0.8))))
            prompt = min(max(1, prompt), self.context // 2)
            tokens = min(max(2, tokens), self.context // 2 - 1)
            ids = [chance.randrange(self.vocabulary) for _ in range(prompt)]
            asks.append(Ask(ids, tokens, at))
            at += chance.expovariate(self.rate) if self.rate > 0 else 0.0
        return asks


async def run_patiently(port: int, ask: Ask, address: str, key: str | None = None) -> Answer:
    """As OpenAI's clients do, which come again when they are told to (429, 503), and where nothing
    came of a request (502: both replicas that had it ended).
    """
    refused, begun = 0, time.perf_counter()
    while True:
        answer = await run(port, ask, address, key)
        told = answer.error and answer.error.split()[1:2]
        if told not in (["429"], ["502"], ["503"]) or refused > 600:
            answer.refused = refused
            answer.times = [t + answer.sent - begun for t in answer.times]
            return answer
        refused += 1
        await asyncio.sleep(0.5)


async def run(port: int, ask: Ask, address: str = HOST, key: str | None = None) -> Answer:
    """Ask, and read the stream. Never raises: what went wrong is in the answer. address, key: of
    the client.
    """
    answer = Answer(ask)
    body = json.dumps(
        {"prompt": ask.prompt, "max_tokens": ask.tokens, "stream": True, "ignore_eos": True,
         "temperature": 1.0, "seed": 1, "logprobs": 0}  # logprobs: an event for every token
    ).encode()  # fmt: skip
    bearer = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"{bearer}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    answer.sent = begun = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(
            HOST, port, limit=1 << 20, local_addr=(address, 0)
        )
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            while line := await reader.readline():
                if line.startswith(b"HTTP/1.1 "):
                    answer.begun = b" 200 " in line
                    answer.error = None if answer.begun else line.decode().strip()
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = event["error"]["message"]
                    break
                choice = event["choices"][0]
                answer.times += [time.perf_counter() - begun] * len(
                    choice["logprobs"]["tokens"] if choice["logprobs"] else ()
                )
                answer.finish = choice["finish_reason"] or answer.finish
                if ask.leaves is not None and len(answer.times) >= ask.leaves:
                    break
        finally:
            writer.close()
    except (OSError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def run_all(port: int, asks: list[Ask]) -> tuple[list[Answer], float]:
    """All as they arrive; and how long it took until the last was done."""
    begun = time.perf_counter()

    async def one(ask: Ask) -> Answer:
        await asyncio.sleep(ask.at - (time.perf_counter() - begun))
        return await run(port, ask)

    answers = await asyncio.gather(*map(one, asks))
    return list(answers), time.perf_counter() - begun


async def run_in_turn(port: int, asks: list[Ask]) -> tuple[list[Answer], float]:
    """The same, one after another."""
    begun = time.perf_counter()
    answers = [await run(port, ask) for ask in asks]
    return answers, time.perf_counter() - begun


def percentiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values) or [float("nan")]
    return {f"p{p}": ranked[min(len(ranked) - 1, len(ranked) * p // 100)] for p in (50, 95, 99)}


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    tokens = sum(len(answer.times) for answer in answers)
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:])]  # noqa: B905
    return {
        "requests": len(answers),
        "lost": sum(not answer.whole for answer in answers),
        "seconds": seconds,
        "prompt_tokens": sum(len(answer.ask.prompt) for answer in answers),
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / seconds,
        "first_token_s": percentiles([a.times[0] for a in answers if a.times]),
        "between_tokens_s": percentiles(gaps),
    }


def show(name: str, found: dict[str, Any]) -> None:
    first, between = found["first_token_s"], found["between_tokens_s"]
    print(f"{name:<18} {found['output_tokens_per_s']:8.1f} tokens/s, {found['seconds']:.1f} s, "
          f"{found['lost']} of {found['requests']} lost; first token "
          + " / ".join(f"{1e3 * first[p]:.0f}" for p in first) + " ms; between tokens "
          + " / ".join(f"{1e3 * between[p]:.1f}" for p in between) + " ms (p50 / p95 / p99)",
          flush=True)  # fmt: skip


class Server:
    """`gptoss serve` as a process. port: where it listens. key: that `get` needs, if any."""

    def __init__(
        self, options: list[str], python: str = sys.executable, descriptors: int | None = None
    ) -> None:
        self.key: str | None = None
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        command = [python, "-m", "gptoss", "serve", "--port", str(self.port)]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        # A file, not a pipe that nobody reads.
        self.log = tempfile.TemporaryFile(prefix="bench-serve-")
        self.temporary = tempfile.TemporaryDirectory(prefix="bench-serve-")  # where its files go
        # What the extra `serve` brings has no uvloop: where another package brought it,
        # a version that takes it would be measured with another loop than its users have.
        self._hidden = tempfile.TemporaryDirectory(prefix="bench-serve-")
        (Path(self._hidden.name) / "uvloop.py").write_text("raise ImportError\n")
        path = os.pathsep.join(filter(None, [self._hidden.name, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [*command, "--no-access-log", *options],
            stderr=self.log,
            cwd="/",
            env={**os.environ, "TMPDIR": self.temporary.name, "PYTHONPATH": path},
        )
        self.pid = self._process.pid

    def wait(self, seconds: float = 600) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                sys.exit(f"bench serve: the server ended: {self.said()[-2000:]}")
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("bench serve: the server does not answer")

    def said(self) -> str:
        """Its log."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), min(size, 1 << 20), max(0, size - (1 << 20))).decode(
            errors="replace"
        )

    def log_bytes(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def get(self, path: str) -> str:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        asked = urllib.request.Request(f"http://{HOST}:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def memory(self) -> tuple[int, int]:
        """Resident bytes of the process that listens, and of all."""
        each = [_of_status(pid, "VmRSS") * 1024 for pid in self.processes()]
        return each[0], sum(each)

    def processes(self) -> list[int]:
        """Its own and those of its replicas."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def threads(self) -> int:
        return sum(_of_status(pid, "Threads") for pid in self.processes())

    def descriptors(self) -> int:
        found = 0
        for pid in self.processes():
            with suppress(OSError):
                found += len(os.listdir(f"/proc/{pid}/fd"))
        return found

    def end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _of_status(pid: int, name: str) -> int:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        return int(found[1]) if found else 0
    return 0


@contextmanager
def server(
    options: list[str], python: str = sys.executable, descriptors: int | None = None
) -> Iterator[Server]:
    """descriptors: most files that it may open."""
    made = Server(options, python, descriptors)
    try:
        made.wait()
        yield made
    finally:
        made.end()


def kind_of(server: Server, arguments: argparse.Namespace) -> Kind:
    """As the arguments have it, for the model that is served."""
    context = json.loads(server.get("/v1/models"))["data"][0]["context_length"]
    return Kind(arguments.rate, arguments.scale, arguments.vocabulary, context)


def load(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same requests at once and in turn, in turns of their own so that both see the machine."""
    kind = kind_of(server, arguments)
    asyncio.run(run_all(server.port, kind.draw(2, arguments.seed)))  # warm
    together, in_turn = [], []
    for repeat in range(arguments.repeat):
        # Other tokens each time: nothing is in the prefix cache.
        again = kind.draw(arguments.requests, arguments.seed + 1000 * (repeat + 1))
        together.append(summary(*asyncio.run(run_all(server.port, again))))
        show("together", together[-1])
        again = [Ask([1, *ask.prompt], ask.tokens) for ask in again]
        in_turn.append(summary(*asyncio.run(run_in_turn(server.port, again))))
        show("one after another", in_turn[-1])
    ratios = [
        a["output_tokens_per_s"] / b["output_tokens_per_s"]
        for a, b in zip(together, in_turn, strict=True)
    ]
    print(f"together writes {median(ratios):.2f} times as much ({min(ratios):.2f} to "
          f"{max(ratios):.2f})")  # fmt: skip
    return {"together": together, "one_after_another": in_turn, "ratios": ratios}


def prefix(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time to the first token: of a new prompt, of the same again, of one that goes on."""
    chance = random.Random(arguments.seed)
    found: dict[str, list[float]] = {"new": [], "again": [], "goes on": []}
    for _ in range(max(3, arguments.repeat)):
        prompt = [chance.randrange(arguments.vocabulary) for _ in range(arguments.prefix)]
        more = [chance.randrange(arguments.vocabulary) for _ in range(32)]
        for name, ids in (("new", prompt), ("again", prompt), ("goes on", prompt + more)):
            answer = asyncio.run(run(server.port, Ask(ids, 4)))
            found[name].append(answer.times[0])
    for name, values in found.items():
        print(f"prompt of {arguments.prefix} tokens, {name:<8}: first token after "
              f"{1e3 * median(values):.1f} ms ({1e3 * min(values):.1f} to "
              f"{1e3 * max(values):.1f})")  # fmt: skip
    hits = server.metric('gptoss_admitted_prompt_tokens_total{cache="hit"}')
    print(f"tokens that the cache had: {hits:.0f}")
    return {"prefix_tokens": arguments.prefix, "first_token_s": found, "cache_hits": hits}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py serve", description=__doc__.split("\n")[0] if __doc__ else None
    )
    add = parser.add_argument
    add("--model", help="as for gptoss serve (default: the bundled model)")
    add("--requests", type=int, default=64, metavar="N")
    add("--rate", type=float, default=0.0, metavar="X", help="arrivals a second; 0: all at once")
    add("--scale", type=float, default=1.0, metavar="X", help="of all lengths (default: 1)")
    add("--repeat", type=int, default=3, metavar="N")
    add("--prefix", type=int, metavar="TOKENS", help="measure the prefix cache instead")
    add("--soak", type=float, metavar="SECONDS", help="run clients for so long instead")
    add("--streams", type=int, default=64, metavar="N", help="clients of --soak (default: 64)")
    add("--hostile", action="store_true", help="attackers beside the clients of --soak")
    add("--keyed", action="store_true", help="the server of --soak asks for keys")
    add("--vocabulary", type=int, default=4000, metavar="N", help="ids of prompts are below it")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE")
    add("options", nargs="*", help="behind --: passed on to gptoss serve")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from bench.soak import ATTACKERS_KEY, KEYS, soak

    options = ["--model", arguments.model] if arguments.model else []
    if arguments.keyed:
        options += ["--allowed-host", HOST]
        options += [word for key in (*KEYS, ATTACKERS_KEY) for word in ("--api-key", key)]
    with server([*options, *arguments.options]) as running:
        running.key = KEYS[0] if arguments.keyed else None
        if arguments.soak:
            result = soak(running, arguments)
        elif arguments.prefix:
            result = prefix(running, arguments)
        else:
            result = load(running, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())

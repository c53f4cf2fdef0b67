"""What attackers do to others' requests, to several versions in turn: python -m bench.hostile

    python -m bench.hostile --python OLD/bin/python --python NEW/bin/python --repeat 3

Of each: the longest pause of a stream while one request asks for 64 x 128 texts; how long a small
request takes behind twelve prompts of 4 MB; the time to the first token without attackers and with
those of bench/attacks.py; and what the log gains under half-open connections with 200 descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import median
from typing import Any

from bench.attacks import Client, request
from bench.serve import Ask, Server, percentiles, run, run_patiently, server
from bench.soak import ATTACKERS, Attackers

FRIEND = "127.0.0.2"
Figures = dict[str, list[float]]


async def _post(port: int, body: Any, seconds: float) -> str:
    """From the attackers' address: the status."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with Client(port) as client:
        try:
            await client.send(request(data))
            return await client.status(seconds)
        except OSError as error:
            return type(error).__name__


async def _streaming(port: int, stop: asyncio.Event, gaps: list[float]) -> None:
    """Streams one after another; between which tokens how much time passed."""
    while not stop.is_set():
        answer = await run_patiently(port, Ask([1, 2, 3], 300), FRIEND)
        times = answer.times
        gaps += [b - a for a, b in zip([0.0, *times], times, strict=False)]


async def pause(running: Server, found: Figures) -> None:
    """One request for 64 x 128 texts, twice."""
    stop = asyncio.Event()
    gaps: list[float] = []
    friend = asyncio.ensure_future(_streaming(running.port, stop, gaps))
    await asyncio.sleep(3)
    found.setdefault("longest pause of a stream, alone, s", []).append(max(gaps, default=99.0))
    gaps.clear()
    for _ in range(2):
        body = {"prompt": ["Once"] * 64, "n": 128, "max_tokens": 1000, "ignore_eos": True}
        await _post(running.port, body, 8)
        await asyncio.sleep(2)
    stop.set()
    await friend
    found.setdefault("the same under 64 x 128 texts, s", []).append(max(gaps, default=99.0))


async def _small(port: int) -> float:
    begun = time.perf_counter()
    await run(port, Ask([1, 2, 3], 1), FRIEND)
    return time.perf_counter() - begun


async def behind(running: Server, found: Figures) -> None:
    """Small requests while twelve prompts of 4 MB are read."""
    found.setdefault("a small request alone, s", []).append(
        median([await _small(running.port) for _ in range(5)])
    )
    large = b'{"prompt":"' + b"a" * (4 << 20) + b'"}'
    asked = [asyncio.ensure_future(_post(running.port, large, 300)) for _ in range(12)]
    await asyncio.sleep(0.3)
    took = [await _small(running.port)]
    while not all(each.done() for each in asked):
        took.append(await _small(running.port))
    found.setdefault("a small request behind 12 x 4 MB, the slowest, s", []).append(max(took))


async def _friends(port: int, seconds: float) -> tuple[list[float], int]:
    """(times to the first token of eight clients, how many requests were lost)."""
    end = time.perf_counter() + seconds
    first: list[float] = []
    lost = 0

    async def friend(number: int) -> None:
        nonlocal lost
        chance = random.Random(number)
        while time.perf_counter() < end:
            prompt = [chance.randrange(4000) for _ in range(40)]
            address = f"127.0.2.{number + 1}"
            asked = run_patiently(port, Ask(prompt, 32), address)
            try:
                answer = await asyncio.wait_for(asked, 120)
            except asyncio.TimeoutError:
                lost += 1
                continue
            first.extend(answer.times[:1])
            lost += not answer.whole
            await asyncio.sleep(0.2)

    await asyncio.gather(*(friend(i) for i in range(8)))
    return first, lost


async def first_tokens(running: Server, found: Figures) -> None:
    """Without attackers, then with them."""
    for name in ("without", "with"):
        attackers = Attackers(running.port, ATTACKERS) if name == "with" else None
        await asyncio.sleep(3 if attackers else 0)
        first, lost = await _friends(running.port, 20)
        if attackers is not None:
            attackers.end()
        ranked = percentiles(first)
        for p in ("p50", "p99"):
            found.setdefault(f"first token {name} attackers, {p}, s", []).append(ranked[p])
        found.setdefault(f"requests lost {name} attackers", []).append(lost)


async def half_open(running: Server, found: Figures) -> None:
    """300 connections with half a head, at 200 descriptors."""
    before, begun = running.log_bytes(), time.perf_counter()
    attackers = Attackers(running.port, {"slow_head": 300})
    await asyncio.sleep(5)
    answers = 0
    for _ in range(5):
        answer = asyncio.wait_for(run(running.port, Ask([1], 1), FRIEND), 3)
        try:
            answers += (await answer).whole
        except asyncio.TimeoutError:
            pass
        await asyncio.sleep(1)
    grown = (running.log_bytes() - before) * 60 / (time.perf_counter() - begun)
    attackers.end()
    found.setdefault("of 5 requests beside 300 half-open connections, answered", []).append(answers)
    found.setdefault("log beside these, bytes a minute", []).append(grown)


Measure = Callable[[Server, Figures], Coroutine[Any, Any, None]]
MEASURES: list[tuple[Measure, int | None]] = [
    (pause, None), (behind, None), (first_tokens, None), (half_open, 200),
]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.hostile")
    add = parser.add_argument
    add("--python", action="append", metavar="FILE", help="that has gptoss, several if need be")
    add("--repeat", type=int, default=3, metavar="N")
    add("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    pythons = arguments.python or [sys.executable]
    found: dict[str, Figures] = {python: {} for python in pythons}
    for _ in range(arguments.repeat):
        for measure, descriptors in MEASURES:
            for python in pythons:
                with server([], python, descriptors) as running:
                    asyncio.run(measure(running, found[python]))
                last = list(found[python].items())[-1]
                print(f"{python}: {last[0]}: {last[1][-1]:.3g}", file=sys.stderr, flush=True)
    for name in found[pythons[-1]]:
        print(name)
        for python in pythons:
            values = found[python][name]
            print(f"  {python}: {median(values):.3g} ({min(values):.3g} to {max(values):.3g})")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

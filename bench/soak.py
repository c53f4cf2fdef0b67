"""bench.py serve --soak: many clients for long, attackers beside them if asked, and nothing is
lost.

With --hostile every kind of bench/attacks.py runs beside the clients, who come again when they are
told to. With --replicas one replica is killed or stopped every minute; streams that it had begun
may end with an error that says so. The command ends with 1 where anything else is lost, or anything
leaks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.serve import Answer, Ask, Server, kind_of, percentiles, run, run_patiently, show, summary

ATTACKERS = {
    "slow_head": 150,
    "half_body": 20,
    "slow_reader": 10,
    "deaf": 10,
    "idle": 50,
    "flood": 2,
    "bomb": 2,
    "long_prompt": 6,
    "stranger": 4,
    "grammar": 2,
}
_HARM = 90.0  # seconds between two replicas that are harmed
_SAYS_SO = ("ended while it had this request", "does not answer", "no replica is up")


def soak(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exits with an error when anything is lost or leaked."""
    tally: dict[str, dict[str, int]] = {}
    before = _held(server)
    attackers = Attackers(server.port, ATTACKERS) if arguments.hostile else None
    answers, memory = asyncio.run(_streams(server, arguments))
    if attackers is not None:
        tally = attackers.end()
    after = _settled(server, before)
    stayed = [answer for answer in answers if answer.ask.leaves is None]
    lost = [answer for answer in stayed if not answer.whole]
    said_so = [a for a in lost if a.error and any(words in a.error for words in _SAYS_SO)]
    lost = [answer for answer in lost if answer not in said_so]
    found = summary(stayed, arguments.soak)
    show("those who stayed", {**found, "lost": len(lost)})
    left = sum(answer.ask.leaves is not None for answer in answers)
    fresh = [a.times[0] for a in stayed if a.times]
    third = max(1, len(memory) // 3)
    early, late = max(memory[third : 2 * third] or memory), max(memory[-third:])
    again = sum(answer.refused for answer in answers)
    log = server.log_bytes() * 60 / arguments.soak
    print(
        f"{len(answers)} requests of {arguments.streams} clients in {arguments.soak:.0f} s, {left} "
        f"left early, {again} told to come again; {len(lost)} lost, {len(said_so)} ended with a "
        f"replica, and said so\n"
        f"memory {memory[0] / 1e6:.0f} MB at first, at most {early / 1e6:.0f} in the second third, "
        f"{late / 1e6:.0f} in the last; log {log:.0f} bytes a minute"
    )
    for name, value in after.items():
        print(f"{name}: {before[name]} before, {value} after")
    for kind, statuses in tally.items():
        print(f"attackers, {kind}: " + ", ".join(f"{n} x {s}" for s, n in sorted(statuses.items())))
    for answer in lost[:5]:
        print(f"lost: {len(answer.times)} of {answer.ask.tokens} tokens, {answer.error}",
              file=sys.stderr)  # fmt: skip
    leaks = [name for name, value in after.items() if value > before[name] + _SLACK.get(name, 0)]
    if late > 1.15 * early + (32 << 20):
        leaks.append("memory")
    if leaks:
        print(f"leaks: {', '.join(leaks)}", file=sys.stderr)
    if lost or leaks:
        print(server.said()[-3000:], file=sys.stderr)
        sys.exit(1)
    return {**found, "left_early": left, "memory_bytes": memory, "held": after, "attackers": tally,
            "first_token_s": percentiles(fresh), "log_bytes": server.log_bytes()}  # fmt: skip


# Threads and descriptors that come when first needed, and stay.
_SLACK = {"threads": 40, "descriptors": 24, "processes": 0}


class Attackers:
    """bench.attacks as a process of its own."""

    def __init__(self, port: int, kinds: Mapping[str, int]) -> None:
        words = [f"{kind}={number}" for kind, number in kinds.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.attacks", str(port), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    def end(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads(self._process.communicate(b"")[0])
        return found


def _held(server: Server) -> dict[str, int]:
    """What a server holds while it does nothing."""
    text = server.get("/metrics")
    held = {
        "processes": len(server.processes()),
        "threads": server.threads(),
        "descriptors": server.descriptors(),
        "temporary files": len(os.listdir(server.temporary.name)),
    }
    for name in ('gptoss_kv_pages{state="used"}', 'gptoss_sequences{state="running"}',
                 'gptoss_sequences{state="waiting"}'):  # fmt: skip
        words = name.rstrip("}").split("{")
        held[name] = sum(
            round(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith(words[0] + "{") and words[1] in line
        )
    held["requests"] = json.loads(server.get("/health"))["running"]
    return held


def _settled(server: Server, before: dict[str, int]) -> dict[str, int]:
    """The same when all have left."""
    end = time.monotonic() + 100
    while True:
        with suppress(OSError, ValueError):
            after = _held(server)
            slack = {name: before[name] + _SLACK.get(name, 0) for name in after}
            if all(after[name] <= slack[name] for name in after) or time.monotonic() > end:
                return after
        time.sleep(1)


async def _streams(server: Server, arguments: argparse.Namespace) -> tuple[list[Answer], list[int]]:
    """--streams clients that ask again and again; a third of the requests are left early."""
    end = time.perf_counter() + arguments.soak
    answers: list[Answer] = []
    memory: list[int] = []
    kind = kind_of(server, arguments)

    async def client(number: int) -> None:
        chance = random.Random(arguments.seed * 1000 + number)
        address = (
            f"127.0.{1 + number // 250}.{1 + number % 250}" if arguments.hostile else "127.0.0.1"
        )
        while time.perf_counter() < end:
            (ask,) = kind.draw(1, chance.randrange(1 << 30))
            leaves = chance.randrange(ask.tokens) if chance.random() < 1 / 3 else None
            asked = Ask(ask.prompt, ask.tokens, leaves=leaves)
            if arguments.hostile:
                answers.append(await run_patiently(server.port, asked, address))
            else:
                answers.append(await run(server.port, asked))

    async def watch() -> None:
        while time.perf_counter() < end:
            with suppress(OSError):
                memory.append(server.memory())
            await asyncio.sleep(max(1.0, arguments.soak / 60))

    async def harm() -> None:
        turns = Counter[str]()
        while time.perf_counter() + _HARM < end:
            await asyncio.sleep(_HARM)
            replicas = server.processes()[1:]
            if len(replicas) < 2:
                continue
            kinds = (signal.SIGKILL, signal.SIGSTOP)
            with suppress(ProcessLookupError):
                os.kill(random.choice(replicas), kinds[turns["harmed"] % 2])
            turns["harmed"] += 1

    jobs = [watch(), *(client(i) for i in range(arguments.streams))]
    if arguments.hostile:
        jobs.append(harm())
    await asyncio.gather(*jobs)
    return answers, memory

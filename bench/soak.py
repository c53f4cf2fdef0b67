"""bench.py serve --soak: many clients for long, attackers beside them if asked, and nothing is
lost.

With --hostile every kind of bench/attacks.py runs beside the clients, who come again when they are
told to. With --replicas one replica is killed or stopped now and then; streams that it had begun
may end with an error that says so. The command ends with 1 where anything else is lost, or anything
leaks. With --keyed all of them use keys: the attackers one of their own.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
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
KEYS = tuple(f"friend-{i}" for i in range(8))  # those of the clients of --keyed
ATTACKERS_KEY = "attacker"
_HARM = 90.0  # seconds between two replicas that are harmed
_SAYS_SO = ("ended while it had this request", "does not answer")
_PATIENCE = 600.0  # seconds until a request counts as lost: an hour's test ends, whatever is silent


@dataclass
class Seen:
    """answers: of all clients. memory: resident bytes, now and then, of the process that listens
    and of all. harmed: how often replicas were killed or stopped.
    """

    answers: list[Answer] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    harmed: Counter[str] = field(default_factory=Counter)


def lost_of(answers: Sequence[Answer], harmed: bool) -> tuple[list[Answer], list[Answer]]:
    """(those that are lost, those that ended with their replica and say so).

    What had not begun goes to another replica, and what ends while none is harmed is an error.
    """
    missed = [answer for answer in answers if not answer.served]

    def excused(answer: Answer) -> bool:
        error = answer.error or ""
        return harmed and answer.begun and any(words in error for words in _SAYS_SO)

    return [a for a in missed if not excused(a)], [a for a in missed if excused(a)]


def grows(memory: Sequence[int]) -> bool:
    """Whether more is held in the last third than in the second: in the first, all is new. How much
    of half bodies is held at a time, a quarter of a gigabyte at most, is chance.
    """
    early, late = thirds(memory)
    return late > 1.15 * early + (128 << 20)


def thirds(memory: Sequence[int]) -> tuple[int, int]:
    """What was held most of the time in the second third, and in the last: medians."""
    third = max(1, len(memory) // 3)
    return round(median(memory[third : 2 * third] or memory)), round(median(memory[-third:]))


def soak(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exits with an error when anything is lost or leaked."""
    tally: dict[str, dict[str, int]] = {}
    before = _held(server)
    key = ATTACKERS_KEY if arguments.keyed else None
    attackers = Attackers(server.port, ATTACKERS, key) if arguments.hostile else None
    seen = asyncio.run(_streams(server, arguments))
    answers = seen.answers
    if attackers is not None:
        tally = attackers.end()
    after = _settled(server, before)
    stayed = [answer for answer in answers if answer.ask.leaves is None]
    lost, said_so = lost_of(answers, bool(seen.harmed))
    found = summary(stayed, arguments.soak)
    show("those who stayed", {**found, "lost": len(lost)})
    left = sum(answer.ask.leaves is not None for answer in answers)
    fresh = [a.times[0] for a in stayed if a.times]
    again = sum(answer.refused for answer in answers)
    log = server.log_bytes() * 60 / arguments.soak
    print(
        f"{len(answers)} requests of {arguments.streams} clients in {arguments.soak:.0f} s, {left} "
        f"left early, {again} told to come again; {len(lost)} lost, {len(said_so)} ended with a "
        f"replica, and said so; log {log:.0f} bytes a minute"
    )
    if seen.harmed:
        print("replicas: " + ", ".join(f"{n} {what}" for what, n in sorted(seen.harmed.items())))
    # Each by itself: replicas that are killed now and then would hide what the front gathers.
    memories = dict(zip(("who listens", "all processes"), zip(*seen.memory, strict=True),
                        strict=True))  # fmt: skip
    for name, memory in memories.items():
        early, late = thirds(memory)
        print(f"memory of {name}: {memory[0] / 1e6:.0f} MB at first, {early / 1e6:.0f} in the "
              f"second third (median), {late / 1e6:.0f} in the last")  # fmt: skip
    for name, value in after.items():
        print(f"{name}: {before[name]} before, {value} after")
    for kind, statuses in tally.items():
        print(f"attackers, {kind}: " + ", ".join(f"{n} x {s}" for s, n in sorted(statuses.items())))
    for answer in lost[:5]:
        print(f"lost: {len(answer.times)} of {answer.ask.tokens} tokens, {answer.error}",
              file=sys.stderr)  # fmt: skip
    leaks = [name for name, value in after.items() if value > before[name] + _SLACK.get(name, 0)]
    leaks += [f"memory of {name}" for name, memory in memories.items() if grows(memory)]
    if leaks:
        print(f"leaks: {', '.join(leaks)}", file=sys.stderr)
    if lost or leaks:
        print(server.said()[-3000:], file=sys.stderr)
        sys.exit(1)
    return {**found, "left_early": left, "memory_bytes": seen.memory, "held": after,
            "attackers": tally, "first_token_s": percentiles(fresh),
            "log_bytes": server.log_bytes()}  # fmt: skip


# Threads and descriptors that come when first needed, and stay: of the front as many connections to
# replicas as there were requests at a time.
_SLACK = {"threads": 40, "descriptors": 300, "processes": 0}


class Attackers:
    """bench.attacks as a process of its own."""

    def __init__(self, port: int, kinds: Mapping[str, int], key: str | None = None) -> None:
        words = [f"{kind}={number}" for kind, number in kinds.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.attacks", str(port), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **({} if key is None else {"GPTOSS_ATTACKERS_KEY": key})},
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


async def _streams(server: Server, arguments: argparse.Namespace) -> Seen:
    """--streams clients that ask again and again; a third of the requests are left early."""
    end = time.perf_counter() + arguments.soak
    seen = Seen()
    kind = kind_of(server, arguments)

    async def client(number: int) -> None:
        chance = random.Random(arguments.seed * 1000 + number)
        address = (
            f"127.0.{1 + number // 250}.{1 + number % 250}" if arguments.hostile else "127.0.0.1"
        )
        key = KEYS[number % len(KEYS)] if arguments.keyed else None
        ask_it = run_patiently if arguments.hostile else run
        while time.perf_counter() < end:
            (ask,) = kind.draw(1, chance.randrange(1 << 30))
            leaves = chance.randrange(1, ask.tokens) if chance.random() < 1 / 3 else None
            asked = Ask(ask.prompt, ask.tokens, leaves=leaves)
            try:
                answer = await asyncio.wait_for(ask_it(server.port, asked, address, key), _PATIENCE)
            except asyncio.TimeoutError:
                answer = Answer(asked, error=f"no end of it in {_PATIENCE:.0f} s")
            seen.answers.append(answer)

    async def watch() -> None:
        while time.perf_counter() < end:
            with suppress(OSError):
                seen.memory.append(server.memory())
            await asyncio.sleep(max(1.0, arguments.soak / 60))

    async def harm() -> None:
        turns = 0
        while time.perf_counter() + _HARM < end:
            await asyncio.sleep(_HARM)
            replicas = server.processes()[1:]
            if len(replicas) < 2:
                continue
            name, how = (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))[turns % 2]
            turns += 1
            with suppress(ProcessLookupError):
                os.kill(random.choice(replicas), how)
                seen.harmed[name] += 1

    jobs = [watch(), *(client(i) for i in range(arguments.streams))]
    if arguments.hostile:
        jobs.append(harm())
    await asyncio.gather(*jobs)
    return seen

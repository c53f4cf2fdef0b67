"""Clients that mean no good, for the load tests: python -m bench.attacks PORT KIND=N …

Each kind runs N times beside itself until standard input closes; then what came of them is printed,
as JSON: how often each was answered with which status. All come from 127.0.0.3, and use the key in
GPTOSS_ATTACKERS_KEY, if there is one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

HOST, FROM = "127.0.0.1", "127.0.0.3"
_KEY = os.environ.get("GPTOSS_ATTACKERS_KEY")
_HALF = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
_STREAM = b'{"prompt":"Once","max_tokens":900,"ignore_eos":true,"stream":true,"logprobs":5}'
_ONE = b'{"prompt":"Once","max_tokens":1}'
Tally = Counter[str]


def request(
    body: bytes,
    *,
    path: str = "/v1/completions",
    host: str = HOST,
    kind: str = "application/json",
    more: str = "",
    key: str | None = _KEY,
) -> bytes:
    if key is not None:
        more += f"Authorization: Bearer {key}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


class Client:
    """A connection that little is read of."""

    def __init__(self, port: int, narrow: bool = False) -> None:
        self._port = port
        self._socket = socket.socket()
        if narrow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def __aenter__(self) -> Client:
        self._socket.bind((FROM, 0))
        await asyncio.get_running_loop().sock_connect(self._socket, (HOST, self._port))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, most: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, most)

    async def status(self, seconds: float = 60.0) -> str:
        """What it is answered with, if anything."""
        try:
            said = await asyncio.wait_for(self.read(), seconds)
        except asyncio.TimeoutError:
            return "silence"
        return said.split()[1].decode() if said.startswith(b"HTTP/1.1 ") else "closed"


async def slow_head(port: int, tally: Tally) -> None:
    """A head that comes byte by byte and never ends."""
    async with Client(port) as client:
        await client.send(_HALF)
        reading = asyncio.ensure_future(client.status(3600))
        try:
            while not reading.done():
                await asyncio.sleep(1)
                await client.send(b"a")
            tally[reading.result()] += 1
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def half_body(port: int, tally: Tally) -> None:
    """15 MB are announced, and all but the last of them come."""
    async with Client(port) as client:
        whole = request(b"a" * 15_000_000)
        await client.send(whole[: random.randrange(1_000_000, 14_000_000)])
        tally[await client.status(120)] += 1


async def slow_reader(port: int, tally: Tally) -> None:
    """A stream, of which a few bytes are read now and then."""
    async with Client(port, narrow=True) as client:
        await client.send(request(_STREAM))
        tally[await client.status()] += 1
        for _ in range(60):
            await asyncio.sleep(1)
            if not await client.read(64):
                return


async def deaf(port: int, tally: Tally) -> None:
    """A stream that is not read at all."""
    async with Client(port, narrow=True) as client:
        await client.send(request(_STREAM))
        await asyncio.sleep(90)
        tally["left"] += 1


async def idle(port: int, tally: Tally) -> None:
    """A connection that is kept after a request."""
    async with Client(port) as client:
        await client.send(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        tally[await client.status()] += 1
        while await client.read():
            pass


async def flood(port: int, tally: Tally) -> None:
    """Connections that are opened and closed."""
    async with Client(port):
        tally["opened"] += 1
    await asyncio.sleep(0.02)


async def bomb(port: int, tally: Tally) -> None:
    """64 prompts, 128 texts of each, with as many probabilities as there are; now and then as many
    texts as may be.
    """
    prompts, n, logprobs = random.choice([(64, 128, 100), (2, 128, 0), (1, 128, 5), (64, 4, 0)])
    body = {"prompt": ["Once"] * prompts, "n": n, "max_tokens": 1000, "ignore_eos": True,
            "logprobs": logprobs}  # fmt: skip
    async with Client(port) as client:
        await client.send(request(json.dumps(body).encode()))
        tally[await client.status(12)] += 1
    await asyncio.sleep(0.2)


async def long_prompt(port: int, tally: Tally) -> None:
    """Megabytes of one letter, of words, of lists."""
    letters = random.choice(
        [
            b'"' + b"a" * (4 << 20) + b'"',
            b'"' + b"one two " * (1 << 19) + b'"',
            b"[" + b"[]," * (1 << 20) + b"[]]",
            b'"' + b"x" * 60_000 + b'"',
        ]
    )
    path = random.choice(["/v1/completions", "/tokenize"])
    async with Client(port) as client:
        await client.send(request(b'{"prompt":' + letters + b"}", path=path))
        tally[await client.status()] += 1


async def stranger(port: int, tally: Tally) -> None:
    """Wrong keys, names, origins, kinds of bodies, methods, and what is no HTTP."""
    asked = random.choice([
        request(_ONE, host="evil.example"),
        request(_ONE, more="Origin: http://evil.example\r\n"),
        request(_ONE, kind="text/plain"),
        request(_ONE, key="wrong"),
        request(b"a" * 3_000_000, key="wrong"),
        request(_ONE, key="wrong", path="/v1/nowhere\x1b[31m"),
        request(b"{" * 2000),
        request(b'{"prompt":"Once","max_tokens":1,"top_p":1e-46,"temperature":1e300}'),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"PUT /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
    ])  # fmt: skip
    async with Client(port) as client:
        await client.send(asked)
        tally[await client.status()] += 1
    await asyncio.sleep(0.2)


async def grammar(port: int, tally: Tally) -> None:
    """Forms of answers that cost much."""
    form = random.choice([
        {"regex": "(a|b|c){1000}(d|e){1000}"},
        {"regex": "(.*a){20}"},
        {"json": {"anyOf": [{"const": str(i)} for i in range(500)]}},
        {"choice": [str(i) * 20 for i in range(1000)]},
        {"grammar": "start: " + " ".join(f"r{i}" for i in range(300)) + "\n"
         + "\n".join(f'r{i}: "{i}" | r{(i + 1) % 300}' for i in range(300))},
    ])  # fmt: skip
    body = {"prompt": "Once", "max_tokens": 20, "structured_outputs": form}
    async with Client(port) as client:
        await client.send(request(json.dumps(body).encode()))
        tally[await client.status(30)] += 1
    await asyncio.sleep(0.2)


Attack = Callable[[int, Tally], Awaitable[None]]
_ALL: tuple[Attack, ...] = (
    *(slow_head, half_body, slow_reader, deaf, idle, flood),
    *(bomb, long_prompt, stranger, grammar),
)
KINDS = {each.__name__: each for each in _ALL}


async def attack(port: int, wanted: dict[str, int]) -> dict[str, Tally]:
    """Until standard input closes."""
    tallies = {kind: Counter[str]() for kind in wanted}

    async def again(kind: str) -> None:
        await asyncio.sleep(random.random())
        while True:
            try:
                await KINDS[kind](port, tallies[kind])
            except OSError as error:
                tallies[kind][type(error).__name__] += 1
                await asyncio.sleep(0.2)

    tasks = [asyncio.ensure_future(again(kind)) for kind, n in wanted.items() for _ in range(n)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    # A cancellation may get lost in asyncio.wait_for (before Python 3.12): they are not waited for.
    await asyncio.wait(tasks, timeout=2)
    return tallies


def main(argv: list[str]) -> int:
    wanted = {kind: int(number) for kind, _, number in (word.partition("=") for word in argv[1:])}
    loop = asyncio.new_event_loop()
    print(json.dumps(loop.run_until_complete(attack(int(argv[0]), wanted))), flush=True)
    os._exit(0)  # whatever goes on


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

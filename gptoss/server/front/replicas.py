"""Replicas that are processes of this machine: started, asked over loopback, started again when
they end, and never left behind.

Each is given one end of a socket pair. Over it comes what to serve and goes back the port; when it
closes, this process is gone, however it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from gptoss.errors import Error
from gptoss.server.errors import ApiError
from gptoss.server.front.app import Broken, Call, Unreached
from gptoss.server.front.router import DOWN, HUNG, STARTING, UP, Router

log = logging.getLogger("gptoss.server")
FIRST_DELAY, MAX_DELAY = 0.5, 30.0  # seconds before an ended replica is started again
_STEADY = 60.0  # seconds; a replica that ran this long is started again as if for the first time
PATIENCE = 10.0  # seconds that a replica has to end when it is told to
# A connection is dropped here before the replica drops it: a request on one that is just being
# closed would be lost. `gptoss.cli.replica` keeps them for longer.
_IDLE = 15.0


@dataclass(frozen=True)
class Health:
    """How a replica is watched. every: seconds between two questions. patience: seconds until one
    counts as not answered. hung: such questions in a row after which nothing more is sent there,
    and what waits goes elsewhere. killed: after which it is ended and started again.
    """

    every: float = 2.0
    patience: float = 5.0
    hung: int = 2
    killed: int = 5


@dataclass(frozen=True)
class Plan:
    """How a replica is started. command: takes a descriptor as its last argument. asked: what it
    is told over that. environment: variables that differ from ours.
    """

    command: Sequence[str]
    asked: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


class ProcessReplica:
    """An `Upstream` that is a process. Its client is there while the process answers."""

    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self._plan = plan
        self._client: httpx.AsyncClient | None = None
        self._line: asyncio.StreamWriter | None = None
        self._hung = asyncio.Event()

    async def answers(self, seconds: float) -> bool:
        """Whether it says in time that it is well."""
        client = self._client
        if client is None:
            return False
        try:
            answer = await asyncio.wait_for(client.get("/health"), seconds)
        except Exception:  # late, gone, or nonsense: whatever came, it was no answer
            return False
        return answer.status_code == 200

    @property
    def code(self) -> int | None:
        """With which the process ended; None while it runs."""
        return None if self.process is None else self.process.returncode

    def hang(self, hung: bool) -> None:
        """What waits for its first word is given up, and what is sent there now, while it hangs."""
        if hung:
            self._hung.set()
        else:
            self._hung.clear()

    def kill(self) -> None:
        """End the process at once, even where it is stopped."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def ask(self, call: Call) -> _HttpReply:
        """As `Upstream.ask`."""
        client = self._client
        if client is None:
            raise Unreached(f"replica {self.number} is down")
        try:
            # Not merged as a reference would be: "//elsewhere/" must not leave this machine.
            url = client.base_url.copy_with(raw_path=call.path.encode("latin-1"))
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ApiError(f"path: {error}") from None
        request = client.build_request(
            call.method, url, headers=dict(call.headers), content=call.body
        )
        sending = asyncio.ensure_future(client.send(request, stream=True))
        hanging = asyncio.ensure_future(self._hung.wait())
        try:
            await asyncio.wait({sending, hanging}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise Broken(f"replica {self.number} does not answer")
            return _HttpReply(self.number, sending.result())
        except asyncio.CancelledError:
            # What came in the same moment is not wanted; unread, it would be written on and on.
            if sending.done() and not sending.cancelled() and sending.exception() is None:
                await sending.result().aclose()
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise Unreached(f"replica {self.number} cannot be reached") from None
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: the client was closed meanwhile
            raise _broken(self.number) from None
        finally:
            sending.cancel()
            hanging.cancel()
            await asyncio.gather(sending, hanging, return_exceptions=True)

    async def start(self) -> None:
        """Start the process and wait until it serves. Raises Error, with its own words if any."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # A session of its own: Ctrl-C in a terminal goes to all of a group, and it is for
                # the front alone to let running requests finish.
                self.process = await asyncio.create_subprocess_exec(
                    *self._plan.command,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, **self._plan.environment},
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        reader, self._line = await asyncio.open_unix_connection(sock=ours)
        self._line.write(json.dumps(self._plan.asked).encode() + b"\n")
        said = await reader.readline()
        if not said:
            await self._drop()
            raise Error(f"replica {self.number} ended with code {await self.process.wait()}")
        found = json.loads(said)
        if "error" in found:
            await self._drop()
            await self.process.wait()
            raise Error(found["error"])
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{found['port']}",
            # An answer has no time limit; a replica that is gone closes its sockets.
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE
            ),
            headers={"accept-encoding": "identity"},  # unless the client asks for more
            trust_env=False,  # no proxy stands between us and loopback
        )

    async def ended(self) -> int:
        """Wait for the process' end: its code."""
        assert self.process is not None
        code = await self.process.wait()
        await self._drop()
        return code

    async def stop(self, patience: float) -> None:
        """End the process: what it runs is given this many seconds."""
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), patience)
            except asyncio.TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await self._drop()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if client is not None:
            await client.aclose()


class Replicas:
    """All of them. `router` is told which are up."""

    def __init__(
        self,
        plans: Sequence[Plan],
        router: Router,
        health: Health = Health(),
    ) -> None:
        self.upstreams = [ProcessReplica(i, plan) for i, plan in enumerate(plans)]
        self._router = router
        self._health = health
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all and wait until they serve. Raises Error when one does not; none is left then.

        Those that end later are started again.
        """
        starts = [asyncio.ensure_future(replica.start()) for replica in self.upstreams]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.close()
            raise
        self._keepers = [
            asyncio.ensure_future(kept)
            for replica in self.upstreams
            for kept in (self._keep(replica), self._watch(replica))
        ]

    async def close(self, patience: float = PATIENCE) -> None:
        """End all of them, by force when they take longer than `patience` seconds."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(replica.stop(patience) for replica in self.upstreams))

    async def _keep(self, replica: ProcessReplica) -> None:
        delay = FIRST_DELAY
        while True:
            clock = asyncio.get_running_loop().time
            since = clock()
            code = await replica.ended()
            self._router.set_state(replica.number, DOWN, code)
            if clock() - since > _STEADY:
                delay = FIRST_DELAY
            said = f"ended with code {code}"
            while True:
                log.error("replica %d %s; starting it in %g s", replica.number, said, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_DELAY)
                self._router.set_state(replica.number, STARTING)
                replica.hang(False)
                try:
                    await replica.start()
                    break
                except Exception as error:  # whatever it was, it is tried again
                    said = f"did not start: {error}"
                    await replica.stop(0)
                    self._router.set_state(replica.number, DOWN, replica.code)
            self._router.set_up(replica.number, True)
            log.warning("replica %d is up again", replica.number)

    async def _watch(self, replica: ProcessReplica) -> None:
        """Find out that it hangs: a process that was stopped, that is swapped out, whose device
        does not answer. All of them keep their connections open, and none ends by itself.
        """
        health, router, number = self._health, self._router, replica.number
        missed = 0
        while True:
            await asyncio.sleep(health.every)
            well = router.state[number] not in (UP, HUNG) or await replica.answers(health.patience)
            if well or router.state[number] not in (UP, HUNG):
                missed = 0
                if router.state[number] == HUNG:
                    log.warning("replica %d answers again", number)
                    replica.hang(False)
                    router.set_state(number, UP)
                continue
            missed += 1
            if missed == health.hung:
                log.error("replica %d does not answer: it gets no more requests", number)
                router.set_state(number, HUNG)
                replica.hang(True)
            if missed == health.killed:
                log.error("replica %d does not answer: it is ended", number)
                missed = 0
                replica.kill()


class _HttpReply:
    def __init__(self, number: int, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._number = number
        self._response = response

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_raw():
                yield part
        except (httpx.HTTPError, httpx.StreamError, RuntimeError):
            raise _broken(self._number) from None

    async def close(self) -> None:
        # Before its end this closes the connection, by which the replica learns of it.
        await self._response.aclose()


def _broken(number: int) -> Broken:
    return Broken(f"replica {number} ended while it had this request")


def gpus_of_replica(
    number: int, replicas: int, size: int, visible: str | None, present: int
) -> str | None:
    """CUDA_VISIBLE_DEVICES of a replica: GPUs of its own where there are enough, else None.

    size: GPUs that one replica takes. visible: the variable as it is set here. present: GPUs of the
    machine.
    """
    names = (
        [str(i) for i in range(present)]
        if visible is None
        else [name.strip() for name in visible.split(",") if name.strip()]
    )
    if len(names) < replicas * size or len(names) < 2:
        return None
    return ",".join(names[number * size : (number + 1) * size])

"""Connections that a server keeps, and those that it does not.

uvicorn reads HTTP (with h11) and knows one time limit, that of an idle connection. What is added
here is what nginx calls client_header_timeout, client_body_timeout, send_timeout and
worker_connections: a client that does not finish what it began, or does not read what it asked for,
is let go, and where there is no room those go first who ask for nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptoss.server.errors import ApiError

log = logging.getLogger("gptoss.server")
# Why connections are let go: their head is late, their body is, their answer is not read, another
# one needs room, none is left.
REASONS = ("head", "body", "write", "room", "refused")


@dataclass(frozen=True)
class Limits:
    """connections: that are open at a time. refusals: those beyond, at a time, that are told so;
    more are closed without a word. head: seconds until a request's head is complete, from its first
    byte or, of the first one, from the start of the connection. body: seconds until its body is,
    where nobody reads it. rest: seconds for what comes of a body after the answer. write: seconds
    without a byte that the client takes. idle: seconds between requests. slow: seconds after which
    a body that is not complete makes room for others; deaf: after which a client that takes nothing
    of its answer does. backlog: connections that are accepted at once.
    """

    connections: int = 1024
    refusals: int = 128
    head: float = 10.0
    body: float = 75.0  # more than the application has for it, which can say what is wrong
    rest: float = 10.0
    write: float = 60.0
    idle: float = 5.0
    slow: float = 1.0
    deaf: float = 5.0
    backlog: int = 128
    sweep: float = 1.0


class Connections:
    """The open connections of one server.

    Attributes:
        closed: how many were let go, by their reason.
    """

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self.closed: Counter[str] = Counter()
        self._open: dict[Connection, None] = {}
        # Those without a request, the one first that has been so for longest: who never made one,
        # and who may make another.
        self._silent: OrderedDict[Connection, None] = OrderedDict()
        self._kept: OrderedDict[Connection, None] = OrderedDict()
        # Those whose body is not complete, the one first that has been so for longest.
        self._coming: OrderedDict[Connection, float] = OrderedDict()
        self._deaf: list[Connection] = []
        self._refused: dict[Connection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, **given: Any) -> Connection:
        """What uvicorn calls a protocol class."""
        return Connection(self, **given)

    # Called by connections.

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for one more, made if need be."""
        if len(self._open) >= self.limits.connections:
            idlest = next(iter(self._silent), None) or self._idlest()
            idlest = idlest or self._slowest() or self._deafest()
            if idlest is not None:
                idlest.drop("room")
        if len(self._open) >= self.limits.connections:
            self.closed["refused"] += 1
            log.warning(
                "%d connections are open, all with requests: others are refused", len(self._open)
            )
            return False
        self._open[connection] = None
        self._sweep_later()
        return True

    def refuse(self, connection: Connection) -> bool:
        """Whether one for which there is no room is told so."""
        if len(self._refused) >= self.limits.refusals:
            return False
        self._refused[connection] = None
        self._sweep_later()
        return True

    def is_silent(self, connection: Connection, kept: bool) -> None:
        """It waits for a request. kept: it had one before."""
        self.is_busy(connection)
        (self._kept if kept else self._silent)[connection] = None

    def is_coming(self, connection: Connection) -> None:
        """It sends a body, from now on."""
        self.is_busy(connection)
        self._coming[connection] = asyncio.get_running_loop().time()

    def is_busy(self, connection: Connection) -> None:
        """It is being answered."""
        for waiting in (self._silent, self._kept, self._coming):
            waiting.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        self.is_busy(connection)
        self._open.pop(connection, None)
        self._refused.pop(connection, None)

    def _idlest(self) -> Connection | None:
        """Who has waited for longest between two requests, and has all of the last answer."""
        return next((each for each in self._kept if each.is_done), None)

    def _slowest(self) -> Connection | None:
        """Whose body has been coming for longest, and for long."""
        found, since = next(iter(self._coming.items()), (None, 0.0))
        late = asyncio.get_running_loop().time() - since > self.limits.slow
        return found if late else None

    def _deafest(self) -> Connection | None:
        """Who has taken nothing of an answer for longest, as of the last sweep, and for long."""
        while self._deaf:
            found = self._deaf.pop()
            if found in self._open:
                return found
        return None

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(self.limits.sweep, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        for connection in (*self._open, *self._refused):
            connection.check(now)
        deaf = [each for each in self._open if each.stalled > self.limits.deaf]
        self._deaf = sorted(deaf, key=lambda each: each.stalled)
        if self._open or self._refused:
            self._sweep_later()


class Connection(H11Protocol):
    """One connection; of what uvicorn keeps of it, h11's state and the request in work are looked
    at.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections = connections
        self._limits = connections.limits
        self._phase = _Phase(self.loop.time())
        self._is_refused = False
        self._wire: _Wire | None = None
        self.stalled = 0.0  # seconds for which it has taken nothing of what waits for it

    def __hash__(self) -> int:
        return id(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self._connections.admit(self):
            self._refuse(transport)
            return
        self._wire = _Wire(transport)
        super().connection_made(cast("asyncio.Transport", self._wire))
        self._phase = _Phase(self.loop.time())
        self._connections.is_silent(self, kept=False)

    @property
    def is_done(self) -> bool:
        """Whether nothing of an answer is left to send."""
        return self.transport.get_write_buffer_size() == 0

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        self._look()
        ahead = self._phase.name == _ANSWER and len(self.conn.trailing_data[0])
        if 0 < ahead <= _AHEAD:
            # uvicorn reads no more until the answer is sent. Then nobody would see the client
            # leave.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.forget(self)
        if not self._is_refused:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        if not self._is_refused:
            super().pause_writing()

    def resume_writing(self) -> None:
        if not self._is_refused:
            super().resume_writing()

    def drop(self, reason: str) -> None:
        """End it now, whatever is in work for it."""
        self._connections.closed[reason] += 1
        self._connections.forget(self)
        self.transport.abort()

    def check(self, now: float) -> None:
        """End it where it is late."""
        limits, phase = self._limits, self._phase
        age = now - phase.since
        if self._is_refused:
            if age > limits.sweep:
                self._connections.forget(self)
                self.transport.abort()
            return
        assert self._wire is not None
        self.stalled = self._wire.stalled(now)
        if self.stalled > limits.write:
            self.drop("write")
        elif self.transport.is_closing():
            return
        elif phase.name == _HEAD and age > limits.head:
            if phase.bytes_came:
                self.transport.write(_answer(ApiError(
                    f"head: expected it within {limits.head:g} seconds", 408)))  # fmt: skip
            self.drop_gently("head")
        elif phase.name == _BODY and age > limits.body:
            self.drop("body")
        elif phase.name == _REST and age > limits.rest:
            self.drop("body")

    def drop_gently(self, reason: str) -> None:
        """End it when what was written is sent."""
        self._connections.closed[reason] += 1
        self.transport.close()

    def _look(self) -> None:
        """What it is about now."""
        cycle = self.cycle
        answered = cycle is None or cycle.response_complete
        theirs = self.conn.their_state
        now, phase = self.loop.time(), self._phase
        if theirs is h11.IDLE and answered:
            kept = cycle is not None
            came = bool(self.conn.trailing_data[0])
            if phase.name in (_HEAD, _IDLE) and phase.of is cycle:
                if phase.name == _IDLE and came:
                    self._phase = _Phase(now, _HEAD, cycle, True)
                elif came:
                    phase.bytes_came = True
                return
            self._phase = _Phase(now, _HEAD if came or not kept else _IDLE, cycle, came)
            self._connections.is_silent(self, kept)
            return
        name = _ANSWER if theirs is not h11.SEND_BODY else _REST if answered else _BODY
        if phase.name == name and phase.of is cycle:
            return
        self._phase = _Phase(now, name, cycle)
        if name == _ANSWER:
            self._connections.is_busy(self)
        else:
            self._connections.is_coming(self)

    def _refuse(self, transport: asyncio.Transport) -> None:
        self._is_refused = True
        self.transport = transport
        self._phase = _Phase(self.loop.time())
        if not self._connections.refuse(self):
            transport.abort()
            return
        # Closed by the sweep: what the client is still sending would be answered with a reset, and
        # that can overtake the answer.
        said = ApiError("no connection is free; come again", 503, headers={"Retry-After": "1"})
        transport.write(_answer(said))
        if transport.can_write_eof():
            transport.write_eof()


_AHEAD = 1 << 16  # bytes of further requests that are kept while one is answered
# What a connection is about: a head that is not complete, waiting for another, a body, what comes
# of a body after the answer, an answer.
_HEAD, _IDLE, _BODY, _REST, _ANSWER = "head", "idle", "body", "rest", "answer"


@dataclass
class _Phase:
    """since: when it began, by the loop's clock. of: uvicorn's request, the last one where it
    waits.
    """

    since: float
    name: str = _HEAD
    of: object = None
    bytes_came: bool = False


class _Wire:
    """A transport that knows how much its client has taken."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written = 0
        self._taken = 0
        self._since: float | None = None  # when it was seen that bytes wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    def stalled(self, now: float) -> float:
        """Seconds for which the client has taken nothing of what waits for it."""
        waiting = self._transport.get_write_buffer_size()
        taken = self._written - waiting
        if not waiting or taken != self._taken or self._since is None:
            self._since = now if waiting else None
            self._taken = taken
            return 0.0
        return now - self._since


def _answer(error: ApiError) -> bytes:
    """A response to what is no request."""
    body = json.dumps(error.body()).encode()
    phrases = {408: "Request Timeout", 503: "Service Unavailable"}
    lines = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {error.status} {phrases[error.status]}\r\n{head}\r\n".encode() + body

"""A server that has no model: it hands each request to one of several that do.

What a replica is, a process of this machine or an actor elsewhere, is the business of an
`Upstream`. Everything that is checked for all of them together is checked here: keys, the size of
a request, web pages' origins, how much at once. All else a replica says itself, and is passed on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gptoss.errors import Error
from gptoss.server.admission import Admission
from gptoss.server.bodies import Bodies
from gptoss.server.connections import Connections
from gptoss.server.errors import ApiError, too_many
from gptoss.server.front.metrics import FrontMetrics
from gptoss.server.front.router import GENERATING, RESPONSES, UP, Router, survey
from gptoss.server.http import (
    CALLER_HEADER,
    CLIENT_HEADER,
    CLIENT_LEFT,
    ID_HEADER,
    Endpoint,
    address_of,
    entrance,
    guarded,
    no_route,
    request_id,
    route_of,
    unless_left,
)
from gptoss.server.pools import Pools
from gptoss.server.stream_failure import end_status, failure_events
from gptoss.server.who import Hosts, caller_of, check_key, check_keys, knows_key

_Result = TypeVar("_Result")
_GRACE = 10.0  # seconds after which an answer is ended that its replica should have ended
_METRICS_PATIENCE = 5.0  # seconds that a replica has to tell its metrics
# Of one connection, or made anew for the next one; origins are dealt with here.
_NOT_PASSED = {
    *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
    *("host", "content-length", "expect", "authorization", "proxy-authorization"),
    *("origin", "date", "server", CLIENT_HEADER, CALLER_HEADER),
}


class Unreached(Error):
    """The request did not get to the replica: another may have it."""


class Broken(ApiError):
    """The replica went away while it had the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 502)


@dataclass(frozen=True)
class Call:
    """A request as a replica gets it. path: with its query."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Reply(Protocol):
    """An answer whose status is known. Its holder calls `close`."""

    status: int
    headers: Mapping[str, str]

    def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Broken."""
        ...

    async def close(self) -> None:
        """End it; what the replica still computes for it is cancelled there."""
        ...


class Upstream(Protocol):
    """A replica, as the front sees it."""

    async def ask(self, call: Call) -> Reply:
        """Raises Unreached or Broken. To cancel this call cancels the request there."""
        ...


@dataclass(frozen=True)
class FrontOptions:
    """api_keys, max_body, max_bodies, origins, timeout, body_timeout, hosts, cache_isolation: as
    `ServerOptions` has them. inner_key: what the replicas ask for, so that nobody gets to them past
    the front.
    """

    inner_key: str
    api_keys: tuple[str, ...] = ()
    max_body: int = 16 << 20
    max_bodies: int = 256 << 20
    origins: tuple[str, ...] = ()
    timeout: float | None = 3600.0
    body_timeout: float = 60.0
    hosts: Hosts | None = None
    cache_isolation: bool = False

    def __post_init__(self) -> None:
        check_keys(self.api_keys)


def create_front(
    upstreams: Sequence[Upstream],
    router: Router,
    options: FrontOptions,
    connections: Connections | None = None,
) -> Starlette:
    """An ASGI application. The owner of the replicas tells the router which are up. connections:
    that its metrics tell of.
    """
    return _Front(upstreams, router, options, connections).app


class _Front:
    def __init__(
        self,
        upstreams: Sequence[Upstream],
        router: Router,
        options: FrontOptions,
        connections: Connections | None,
    ) -> None:
        self._upstreams = upstreams
        self._router = router
        self._options = options
        self._bodies = Bodies(options.max_body, options.body_timeout, options.max_bodies)
        self._metrics = FrontMetrics(router, self._bodies, connections)
        self._admission = Admission(router.max_running)
        self._pools = Pools()
        post = ["POST"]
        self.app = Starlette(
            routes=[
                *(Route(path, self._guarded(self._generate), methods=post) for path in GENERATING),
                Route("/metrics", self._guarded(self._show_metrics), methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/{path:path}", self._guarded(self._pass_on), methods=["GET", "POST"]),
            ],
            middleware=entrance(
                options.hosts,
                options.origins,
                bool(options.api_keys),
                client=address_of,
                answered=self._metrics.answered,
            ),
            exception_handlers={
                HTTPException: no_route(client=address_of, answered=self._metrics.answered)
            },
        )

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        return guarded(
            endpoint,
            client=address_of,
            answered=self._metrics.answered,
            is_logged=lambda response: True,  # by the replica, which has more to say
            goes_on=lambda response: isinstance(response, _Passed),
        )

    async def _generate(self, request: Request) -> Response:
        """A request that computes: sent where its prefix was read, within the limits."""
        check_key(request, self._options.api_keys)
        async with self._bodies.read(request) as data:  # held until a replica has it
            return await self._hand_on(request, data)

    async def _hand_on(self, request: Request, data: bytes) -> Response:
        path, client = request.url.path, self._caller(request)
        owner = client if self._options.cache_isolation else ""
        keys, texts = await self._pools.run(client, len(data), partial(survey, path, data, owner))
        router = self._router
        self._admission.most = router.max_running * max(1, sum(router.up))
        self._admission.take(client, texts, router.max_running)
        call = self._call(request, data, known=True)
        ending = _Ending(self._options.timeout)
        tried: set[int] = set()
        broken: Broken | None = None
        handed_on = False
        try:
            while (replica := router.take(keys, tried, texts)) is not None:
                try:
                    reply = await ending.of(
                        unless_left(request, self._upstreams[replica].ask(call))
                    )
                    if reply is None:
                        return Response(status_code=CLIENT_LEFT)
                    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
                        return await self._whole(request, reply, ending)
                    handed_on = True
                    leaves = partial(self._left, request, replica, client, texts)
                    return _Passed(reply, path, leaves, ending)
                except Unreached:
                    tried.add(replica)
                except Broken as error:
                    # Nothing was sent yet, so another may have it. But one more alone: it may be
                    # what ended the first.
                    tried.add(replica)
                    if broken is not None:
                        raise
                    broken = error
                finally:
                    if not handed_on:
                        router.release(replica, texts)
        finally:
            if not handed_on:
                self._admission.release(client, texts)
        if broken is not None:
            raise broken
        if not any(up for i, up in enumerate(router.up) if i not in tried):
            raise _none_up()
        raise too_many(f"{sum(router.running)} texts are being written, which is as many as may")

    def _left(
        self, request: Request, replica: int, client: str, texts: int, status: int, here: bool
    ) -> None:
        """A stream has ended. here: with an error of the front."""
        self._router.release(replica, texts)
        self._admission.release(client, texts)
        self._metrics.answered(route_of(request), status)
        if here:
            request.state.access.note(stream=True, replica=replica)
            request.state.access.end(status)

    async def _pass_on(self, request: Request) -> Response:
        """Any other request, to any replica. Which of them need a key it says itself: without one
        that we know the request comes there without any, and without its body.
        """
        if not knows_key(request, self._options.api_keys):
            return await self._to_any(request, self._call(request, b"", known=False))
        async with self._bodies.read(request) as data:
            return await self._to_any(request, self._call(request, data, known=True))

    async def _to_any(self, request: Request, call: Call) -> Response:
        ending = _Ending(self._options.timeout)
        tried: set[int] = set()
        while (replica := self._router.pick(tried)) is not None:
            try:
                reply = await ending.of(unless_left(request, self._upstreams[replica].ask(call)))
                if reply is None:
                    return Response(status_code=CLIENT_LEFT)
                return await self._whole(request, reply, ending)
            except Unreached:
                tried.add(replica)
            except Broken:
                tried.add(replica)
                if len(tried) > 1:
                    raise
        raise _none_up()

    def _caller(self, request: Request) -> str:
        """What tells clients apart: their keys, or else where they are."""
        return caller_of(request, bool(self._options.api_keys), address_of(request))

    def _call(self, request: Request, data: bytes, known: bool) -> Call:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in _NOT_PASSED and not name.startswith("access-control-")
        }
        headers[CLIENT_HEADER] = address_of(request)
        headers[CALLER_HEADER] = self._caller(request)
        headers[ID_HEADER] = request_id(request)
        if known:
            headers["authorization"] = f"Bearer {self._options.inner_key}"
        query = request.url.query
        path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        path = path or request.url.path
        return Call(request.method, f"{path}?{query}" if query else path, headers, data)

    async def _whole(self, request: Request, reply: Reply, ending: _Ending) -> Response:
        """The complete answer; an error where the replica ends first, not half an answer."""
        try:
            body = await ending.of(unless_left(request, _joined(reply)))
        finally:
            await reply.close()
        if body is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(body, reply.status, headers=_passed_headers(reply))

    async def _show_metrics(self, request: Request) -> Response:
        check_key(request, self._options.api_keys)
        texts = await asyncio.gather(*(self._metrics_of(i) for i in range(len(self._upstreams))))
        return Response(self._metrics.text(texts), media_type="text/plain; version=0.0.4")

    async def _metrics_of(self, replica: int) -> str | None:
        if not self._router.up[replica]:
            return None
        headers = {"authorization": f"Bearer {self._options.inner_key}"}
        call = Call("GET", "/metrics", headers)
        try:
            found = await asyncio.wait_for(
                _asked(self._upstreams[replica], call), _METRICS_PATIENCE
            )
        except (Unreached, Broken, asyncio.TimeoutError):
            return None  # it has just ended, or hangs: the others' are still wanted
        return found.decode()

    async def _health(self, request: Request) -> Response:
        router = self._router
        status = "ok" if all(router.up) else "degraded" if any(router.up) else "down"
        replicas = [
            {
                "up": state == UP,
                "state": state,
                "since": int(router.since[i]),
                "running": router.requests[i],
                "texts": router.running[i],
                "ended": router.ended[i],
                "last_code": router.code[i],
            }
            for i, state in enumerate(router.state)
        ]
        found = {"status": status, "running": sum(router.requests), "replicas": replicas}
        return JSONResponse(found, 200 if any(router.up) else 503)


class _Passed(StreamingResponse):
    """Events of a replica as they come. Whatever ends them, `at_end` is called with the status: of
    the error that they ended with, 499 where the client left; and with whether the error was found
    here, so that the replica may not have said so in its log.
    """

    def __init__(
        self, reply: Reply, path: str, at_end: Callable[[int, bool], None], ending: _Ending
    ) -> None:
        self._ended: list[tuple[int, bool]] = []
        events = _events(reply, path, ending, self._ended.append)
        super().__init__(events, reply.status, headers=_passed_headers(reply))
        self._reply = reply
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False

        async def noting(message: Message) -> None:
            nonlocal complete
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await super().__call__(scope, receive, noting)
        except ClientDisconnect:
            pass
        finally:
            # A client may leave as soon as it has the last event.
            unsaid = self.status_code if complete else CLIENT_LEFT
            self._at_end(*(self._ended[0] if self._ended else (unsaid, False)))
            await self._reply.close()


class _Ending:
    """When an answer has to be over: a while after the replica should have ended it itself."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds + _GRACE

    async def of(self, work: Awaitable[_Result]) -> _Result:
        """What comes of it. Raises ApiError (504) where that is late."""
        if self._at is None:
            return await work
        left = self._at - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(work, left)
        except asyncio.TimeoutError:
            raise ApiError(
                f"the answer took longer than {self._seconds:g} seconds", 504, code="timeout"
            ) from None


async def _events(
    reply: Reply, path: str, ending: _Ending, ended: Callable[[tuple[int, bool]], None]
) -> AsyncIterator[bytes]:
    """Whole events, and an error as the last one when the replica goes away among them; ended: is
    told the status when the last one is sent, and whether that is an error from here.
    """
    held, first, last = b"", b"", b""
    try:
        parts = reply.parts()
        while (part := await ending.of(anext(parts, None))) is not None:
            held += part
            end = held.rfind(b"\n\n") + 2
            if end > 1:
                first, last = first or held[:end], held[:end]
                yield held[:end]
                held = held[end:]
                status = end_status(last)
                if status is not None:
                    ended((status, False))
    except ApiError as error:  # Broken, or late
        ended((error.status, True))
        said = error.body()
        if path == RESPONSES:
            begun = _event_of(first, 0).get("response")
            number = _event_of(last, -1).get("sequence_number", -1) + 1
            for event in failure_events(said["error"], begun, number):
                yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        else:
            yield f"data: {json.dumps(said)}\n\n".encode()
        return
    if held:
        yield held


def _event_of(sent: bytes, place: int) -> dict[str, Any]:
    """One of some whole events; {} where there is none."""
    try:
        _, _, data = sent.strip().split(b"\n\n")[place].rpartition(b"data: ")
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _joined(reply: Reply) -> bytes:
    return b"".join([part async for part in reply.parts()])


async def _asked(upstream: Upstream, call: Call) -> bytes:
    reply = await upstream.ask(call)
    try:
        return await _joined(reply)
    finally:
        await reply.close()


def _passed_headers(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name not in _NOT_PASSED}


def _none_up() -> ApiError:
    return ApiError(
        "no replica is up; come again", 503, code="no_replica", headers={"Retry-After": "5"}
    )

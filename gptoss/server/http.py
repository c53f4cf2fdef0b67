"""Who may ask, how large a request may be, and which answers are the same from one engine and from
a front of several.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss.errors import Error
from gptoss.request import valid_text
from gptoss.server.access import Access
from gptoss.server.errors import ApiError
from gptoss.server.who import Hosts, OnlyFriends, for_origins

log = logging.getLogger("gptoss.server")
MISTAKE = ApiError("the server made a mistake; its log says more", 500)
CLIENT_LEFT = 499  # nginx's; nobody reads it

# Who asks, as a front tells a replica: an address for the log, and what tells clients apart.
CLIENT_HEADER, CALLER_HEADER = "x-gptoss-client", "x-gptoss-caller"

# What a request is called, in its answer and in the log: by the client, or by us.
ID_HEADER = "x-request-id"
# Keys of a request that mean nothing here.
IGNORED_HEADER = "x-gptoss-ignored"
_ID = re.compile(r"[\x21-\x7e]{1,200}")

_Result = TypeVar("_Result")
Endpoint = Callable[[Request], Awaitable[Response]]


def as_json(value: Any, separators: tuple[str, str] = (", ", ": ")) -> str:
    """JSON that can be sent, whatever texts are in it: what is not Unicode becomes U+FFFD.

    Raises ValueError where a number is not finite, which JSON has no word for.
    """
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=separators)
    return valid_text(_dumped(value, dumps, separators))


_FEW, _PART = 128, 1024  # elements of a list: that are looked into, that are written in one go


def _dumped(value: Any, dumps: Callable[[Any], str], separators: tuple[str, str]) -> str:
    """As `dumps` writes it, a long list part by part: what is written in C holds up all threads."""
    comma, colon = separators
    if type(value) is dict and all(type(key) is str for key in value):
        items = (f"{dumps(key)}{colon}{_dumped(v, dumps, separators)}" for key, v in value.items())
        return "{" + comma.join(items) + "}"
    if type(value) is not list:
        return dumps(value)
    if len(value) > _FEW:
        parts = (dumps(value[i : i + _PART])[1:-1] for i in range(0, len(value), _PART))
        return "[" + comma.join(parts) + "]"
    return "[" + comma.join(_dumped(each, dumps, separators) for each in value) + "]"


class Json(JSONResponse):
    """A response of JSON that `as_json` writes, without blanks, as Starlette's have none."""

    def render(self, content: Any) -> bytes:
        return as_json(content, (",", ":")).encode()


class RequestIds:
    """Middleware: `request.state.request_id`, and the header that tells it to the client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(ID_HEADER.encode(), b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                rest = [pair for pair in message["headers"] if pair[0].lower() != _ID_BYTES]
                message = {**message, "headers": [*rest, (_ID_BYTES, name.encode())]}
            await send(message)

        await self._app(scope, receive, named)


_ID_BYTES = ID_HEADER.encode()


def request_id(request: Request) -> str:
    """What `RequestIds` called it; empty where that did not see it."""
    name: str = getattr(request.state, "request_id", "")
    return name


def guarded(
    endpoint: Endpoint,
    *,
    client: Callable[[Request], str],
    answered: Callable[[str, int], None],
    is_logged: Callable[[Response], bool],
    goes_on: Callable[[Response], bool],
) -> Endpoint:
    """The endpoint, counted and in the access log; errors of ours as OpenAI's API says them.

    client: whom the log names. answered: is told each route and status. is_logged: whether the
    line of an endpoint's response is, or will be, written elsewhere. goes_on: whether its end comes
    later, and is counted then.
    """

    async def guarded(request: Request) -> Response:
        status, logged, later = 500, False, False
        access = Access(request.method, request.url.path, client(request), request_id(request))
        request.state.access = access
        try:
            response = await endpoint(request)
            status, logged, later = response.status_code, is_logged(response), goes_on(response)
        except Error as error:
            said = ApiError.of(error)
            status = said.status
            response = Json(said.body(), status, headers=said.headers)
            forget(said)
            forget(error)
        except ClientDisconnect:
            status = CLIENT_LEFT
            response = Response(status_code=status)
        except Exception as error:
            # Here, not in Starlette's middleware: that passes it on to uvicorn, which would log it
            # again and close the connection.
            response = await failed(request, error)
        finally:
            if not later:
                answered(route_of(request), status)
            if not logged:
                access.end(status)
        return response

    return guarded


def forget(error: BaseException) -> None:
    """Let go of what an error was raised from: the frames that it went through hold the request, of
    megabytes at times, and it them, until the garbage collector comes by.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


def route_of(request: Request) -> str:
    """The route's pattern."""
    path: str = request.scope["route"].path
    return path


def address_of(request: Request) -> str:
    """The client's address; empty where the connection has none."""
    return request.client.host if request.client else ""


def entrance(
    hosts: Hosts | None,
    origins: Sequence[str],
    keyed: bool,
    *,
    client: Callable[[Request], str],
    answered: Callable[[str, int], None],
) -> list[Middleware]:
    """What every request passes first. client, answered: as of `guarded`."""

    def refused(request: Request, error: ApiError) -> None:
        answered("refused", error.status)
        access = Access(request.method, request.url.path, client(request), request_id(request))
        access.end(error.status)

    def answer(error: ApiError) -> ASGIApp:
        return Json(error.body(), error.status, headers=error.headers)

    return [
        Middleware(LastResort),
        Middleware(RequestIds),
        Middleware(OnlyFriends, hosts, origins, keyed, refused, answer),
        *for_origins(origins, ID_HEADER, [ID_HEADER, IGNORED_HEADER]),
    ]


async def unless_left(request: Request, answer: Awaitable[_Result]) -> _Result | None:
    """The answer; None when the client leaves first, which cancels it."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(answer)
    watch = asyncio.ensure_future(left())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


def no_route(
    *, client: Callable[[Request], str], answered: Callable[[str, int], None]
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """A handler of what Starlette refuses by itself: said as OpenAI's API says it, counted as one
    route, whatever the path was. client, answered: as of `guarded`.
    """

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        answered("unknown", status)
        Access(request.method, request.url.path, client(request), request_id(request)).end(status)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return Json(ApiError(message, status).body(), status, headers=error.headers)

    return no_route


class LastResort:
    """Middleware, around all others: what nobody caught, logged once. Starlette's own passes it on
    to uvicorn, which would log it again and close the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if scope["type"] != "http":
                raise
            response = await failed(Request(scope), error)
            if not begun:  # else the server ends the connection: the answer is not complete
                await response(scope, receive, send)


async def failed(request: Request, error: Exception) -> Response:
    """An error in this server: the details go to the log, and the client is told no more."""
    name = request_id(request)
    log.exception("%s %s %s", request.method, request.url.path, name, exc_info=error)
    # May be made outside of the middleware that adds the header.
    return Json(MISTAKE.body(), 500, headers={ID_HEADER: name} if name else None)

"""The routes: who may ask, how much at once, and how an answer travels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gptoss.chat import HarmonyChat, PlainChat, load_chat
from gptoss.engine import AsyncEngine, Engine
from gptoss.errors import Error, shown
from gptoss.server.admission import Admission, texts_of
from gptoss.server.api.answer import Event, Surface
from gptoss.server.api.chat_completions import ChatRequest
from gptoss.server.api.completions import CompletionRequest
from gptoss.server.api.fields import Caller
from gptoss.server.api.item_memory import ItemMemory
from gptoss.server.api.metrics import Metrics
from gptoss.server.api.option_values import MAX_PRIORITY
from gptoss.server.api.responses import ResponsesRequest
from gptoss.server.api.tokenize import detokenize, tokenize, tokenizer_info
from gptoss.server.bodies import Bodies
from gptoss.server.connections import Connections
from gptoss.server.errors import ApiError, too_many
from gptoss.server.http import (
    CALLER_HEADER,
    CLIENT_HEADER,
    CLIENT_LEFT,
    IGNORED_HEADER,
    MISTAKE,
    Endpoint,
    Json,
    address_of,
    as_json,
    entrance,
    guarded,
    log,
    no_route,
    route_of,
    unless_left,
)
from gptoss.server.parse import parse_body
from gptoss.server.pools import SMALL, Pools
from gptoss.server.static import page_routes
from gptoss.server.who import Hosts, caller_of, check_key, check_keys

# What Python raises where a request is beyond what it can work on, and nobody saw it coming.
_HOSTILE = (RecursionError, UnicodeError, OverflowError)
_IGNORED_LENGTH = 1000  # characters of a header
_HEADER_SAFE = "!#$&'()*+./:=?@[]_~-"
_INLINE = 1 << 14  # tokens and log-probabilities of an answer that is written on the loop's thread
_MAX_TOLD = 1 << 23  # log-probabilities that all requests may hold, at some 200 bytes each
_GRACE = 5.0  # seconds that a client has to read why its answer ended


@dataclass(frozen=True)
class ServerOptions:
    """model_name: what clients call the model; any other name is refused. api_keys: one of them
    must come as a bearer token; none: anybody may ask. max_sequences: texts at a time, prompts
    times n; others are told to try later. max_body: bytes of a request; max_bodies: of all that are
    being read. origins: web pages that may ask, "*" for all. timeout: seconds that an answer may
    take, waiting included; None: for ever. body_timeout: seconds that a client may take to say what
    it wants. behind_front: headers that a front adds say who asks. hosts: names that it answers to;
    None: any. priorities: least and most that clients may ask for. cache_isolation: whether what
    one client sent is in the prefix cache for that client alone.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    max_sequences: int = 256
    max_body: int = 16 << 20
    max_bodies: int = 256 << 20
    origins: tuple[str, ...] = ()
    timeout: float | None = 3600.0
    body_timeout: float = 60.0
    behind_front: bool = False
    hosts: Hosts | None = None
    priorities: tuple[int, int] = (-MAX_PRIORITY, MAX_PRIORITY)
    cache_isolation: bool = False
    step_timeout: float = 300.0

    def __post_init__(self) -> None:
        check_keys(self.api_keys)


def create_app(
    engine: Engine, options: ServerOptions, connections: Connections | None = None
) -> Starlette:
    """An ASGI application, which does not close the engine. connections: for its metrics."""
    return _Server(engine, options, connections).app


class _Server:
    def __init__(
        self, engine: Engine, options: ServerOptions, connections: Connections | None
    ) -> None:
        self._engine = engine
        self._async = AsyncEngine(engine)
        self._options = options
        self._chat: HarmonyChat | PlainChat | Error
        try:
            self._chat = load_chat(engine.tokenizer)
        except Error as error:  # texts and tokens can be completed all the same
            self._chat = error
        self._created = int(time.time())
        self._admission = Admission(options.max_sequences)
        self._may_tell = 0  # log-probabilities that may be told of what runs
        self._pools = Pools()
        self._places: dict[object, tuple[str, int]] = {}  # of each that runs: whose, how many
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._items = ItemMemory()
        self._bodies = Bodies(options.max_body, options.body_timeout, options.max_bodies)
        self._metrics = Metrics(engine, self._bodies, connections)
        post, get = ["POST"], ["GET"]
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self._chat_completions), methods=post),
                Route("/v1/responses", self._guarded(self._responses), methods=post),
                Route("/v1/completions", self._guarded(self._completions), methods=post),
                Route("/v1/models", self._guarded(self._models), methods=get),
                Route("/v1/models/{name:path}", self._guarded(self._model), methods=get),
                Route("/tokenize", self._guarded(self._tokenize), methods=post),
                Route("/detokenize", self._guarded(self._detokenize), methods=post),
                Route("/tokenizer_info", self._guarded(self._tokenizer_info), methods=get),
                Route("/metrics", self._guarded(self._show_metrics), methods=get),
                Route("/health", self._health, methods=get),
                *page_routes(),
            ],
            middleware=entrance(
                options.hosts,
                options.origins,
                bool(options.api_keys),
                client=self._client,
                answered=self._metrics.answered,
            ),
            exception_handlers={
                HTTPException: no_route(client=self._client, answered=self._metrics.answered)
            },
        )

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those who may ask."""

        async def keyed(request: Request) -> Response:
            check_key(request, self._options.api_keys)
            return await endpoint(request)

        return guarded(
            keyed,
            client=self._client,
            answered=self._metrics.answered,
            # When it ends.
            is_logged=lambda response: isinstance(response, _EventStream),
            goes_on=lambda response: isinstance(response, _EventStream),
        )

    async def _body(self, request: Request, caller: Caller) -> tuple[dict[str, Any], int]:
        """The body, and its size in bytes."""
        async with self._bodies.read(request) as data:
            size = len(data)
            if size <= SMALL:
                return parse_body(data), size
            return await self._pools.run(caller.client, size, lambda: parse_body(data)), size

    def _client(self, request: Request) -> str:
        if self._options.behind_front:
            return request.headers.get(CLIENT_HEADER, "")
        return address_of(request)

    def _caller(self, request: Request) -> Caller:
        """Clients are told apart by their keys, or else by their addresses."""
        options = self._options
        client = ""
        if options.behind_front:  # all come with one key
            client = request.headers.get(CALLER_HEADER, "")
        return Caller(
            asyncio.get_running_loop(),
            client or caller_of(request, bool(options.api_keys), self._client(request)),
            priorities=options.priorities,
            isolated=options.cache_isolation,
        )

    def _format(self) -> HarmonyChat | PlainChat:
        if isinstance(self._chat, Error):
            raise ApiError(f"this model cannot chat here: {self._chat}", 503)
        return self._chat

    async def _chat_completions(self, request: Request) -> Response:
        engine, chat, model = self._async, self._format(), self._options.model_name
        return await self._answer(
            request, lambda body, caller: ChatRequest(engine, chat, body, caller, model)
        )

    async def _responses(self, request: Request) -> Response:
        engine, chat, model = self._async, self._format(), self._options.model_name
        return await self._answer(
            request,
            lambda body, caller: ResponsesRequest(engine, chat, body, caller, model, self._items),
        )

    async def _completions(self, request: Request) -> Response:
        engine, model = self._async, self._options.model_name
        return await self._answer(
            request, lambda body, caller: CompletionRequest(engine, body, caller, model)
        )

    async def _answer(
        self, request: Request, submit: Callable[[dict[str, Any], Caller], Surface]
    ) -> Response:
        caller = self._caller(request)
        body, size = await self._body(request, caller)
        surface = await self._submit(body, size, caller, lambda: submit(body, caller))
        headers = ignored_header(surface.ignored)
        if surface.streams:
            return self._stream(request, surface, headers)
        found = await self._whole(request, surface)
        if found is None:
            return Response(status_code=CLIENT_LEFT)
        if surface.answer.parts <= _INLINE:
            return Json(found, headers=headers)
        return await asyncio.to_thread(lambda: Json(found, headers=headers))

    async def _submit(
        self,
        body: dict[str, Any],
        size: int,
        caller: Caller,
        submit: Callable[[], Surface],
    ) -> Surface:
        """The running request. Raises ApiError where it is invalid or may not run now."""
        self._check_model(body.get("model"))
        texts = texts_of(body)
        self._admission.take(caller.client, texts)
        try:
            # On another thread: to render and to split a long text takes a while.
            surface = await self._pools.run(caller.client, size, submit)
            self._tell(surface)
        except _HOSTILE as error:
            self._admission.release(caller.client, texts)
            # Not what it says: that may be all of the text.
            log.warning("a request could not be worked on: %s", type(error).__name__)
            words = "nested too deep" if isinstance(error, RecursionError) else "out of bounds"
            raise ApiError(f"body: expected values that can be worked on, found {words}") from None
        except BaseException:
            self._admission.release(caller.client, texts)
            raise
        self._places[surface] = caller.client, texts
        seconds = self._options.timeout
        if seconds is not None:
            late = ApiError(f"the answer took longer than {seconds:g} seconds", 504, code="timeout")
            timer = asyncio.get_running_loop().call_later(seconds, surface.answer.fail, late)
            self._timers[surface] = timer
        return surface

    def _tell(self, surface: Surface) -> None:
        """Count what it may tell of probabilities. Raises ApiError where that is too much beside
        what runs.
        """
        told = surface.answer.told
        if self._may_tell + told > _MAX_TOLD:
            surface.answer.cancel()
            raise too_many(
                f"{self._may_tell} log-probabilities may be told of what runs, and {_MAX_TOLD} "
                "may be; ask for fewer (max_tokens, top_logprobs)"
            )
        self._may_tell += told

    def _stream(self, request: Request, surface: Surface, headers: dict[str, str]) -> Response:
        request.state.access.note(stream=True)
        # A client that does not read what it is sent is cut off a little later than one that does.
        seconds = self._options.timeout
        failed: list[int] = []

        def at_end(status: int) -> None:
            self._end(request, surface, failed[0] if failed and status == 200 else status)

        return _EventStream(
            _events(surface, failed.append),
            at_end,
            None if seconds is None else seconds + _GRACE,
            headers,
        )

    async def _whole(self, request: Request, surface: Surface) -> Event | None:
        """The answer when it is done; None when the client leaves first."""
        try:
            return await unless_left(request, surface.whole())
        except Error as error:
            raise _late(error, surface) from None
        finally:
            self._end(request, surface)

    def _end(self, request: Request, surface: Surface, status: int | None = None) -> None:
        """The answer is sent or given up. status: of a stream, whose log line is written here."""
        self._admission.release(*self._places.pop(surface))
        answer = surface.answer
        self._may_tell -= answer.told
        answer.cancel()
        timer = self._timers.pop(surface, None)
        if timer is not None:
            timer.cancel()
        access = request.state.access
        for told in (self._metrics, access):
            told.generated(answer.timings(), answer.cancelled())
        if status is not None:
            self._metrics.answered(route_of(request), status)
            access.end(status)

    def _check_model(self, name: object) -> None:
        if name is not None and name != self._options.model_name:
            raise ApiError(
                f"model: expected {self._options.model_name}, found {shown(name)}",
                404,
                field="model",
                code="model_not_found",
            )

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self._options.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "gptoss",
            "context_length": self._engine.info()["context_length"],
            # How it takes a conversation; null: it cannot.
            "format": None if isinstance(self._chat, Error) else self._chat.name,
        }

    async def _models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [self._describe()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return Json(self._describe())

    async def _tokenize(self, request: Request) -> Response:
        chat = None if isinstance(self._chat, Error) else self._chat
        return await self._told(request, lambda body: tokenize(self._engine, chat, body))

    async def _detokenize(self, request: Request) -> Response:
        return await self._told(request, lambda body: detokenize(self._engine, body))

    async def _told(
        self, request: Request, tell: Callable[[dict[str, Any]], tuple[Event, list[str]]]
    ) -> Response:
        """What needs no step of the engine. It counts as one text."""
        caller = self._caller(request)
        body, size = await self._body(request, caller)
        self._check_model(body.get("model"))

        # On another thread, as all that may take a while: streams go on meanwhile.
        def told() -> Response:
            found, ignored = tell(body)
            return Json(found, headers=ignored_header(ignored))

        self._admission.take(caller.client, 1)
        try:
            return await self._pools.run(caller.client, size, told)
        finally:
            self._admission.release(caller.client, 1)

    async def _tokenizer_info(self, request: Request) -> Response:
        return Json(tokenizer_info(self._engine))

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        """503 where the engine does nothing any more, though it has work."""
        seconds = self._engine.info()["step_seconds"]
        stuck = seconds > self._options.step_timeout
        said = {"status": "stuck" if stuck else "ok", "running": len(self._places)}
        return Json(said, 503 if stuck else 200)


class _EventStream(StreamingResponse):
    """Server-sent events. Whatever ends them, even before the first, `at_end` is called with the
    status: 200, or 499 where the client left. seconds: after which the connection is cut.
    """

    def __init__(
        self,
        events: AsyncIterator[str],
        at_end: Callable[[int], None],
        seconds: float | None,
        headers: dict[str, str],
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._at_end = at_end
        self._seconds = seconds
        self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            await send(message)
            last = message["type"] == "http.response.body" and not message.get("more_body")
            self._complete = self._complete or last

        try:
            await asyncio.wait_for(super().__call__(scope, receive, noting), self._seconds)
        except (ClientDisconnect, asyncio.TimeoutError):
            pass
        finally:
            self._at_end(self.status_code if self._complete else CLIENT_LEFT)


async def _events(surface: Surface, failed: Callable[[int], None]) -> AsyncIterator[str]:
    """What is sent of a stream. Whatever goes wrong, an event of its protocol says so; failed: is
    told which status it would have been.
    """
    try:
        async for event in surface.events():
            yield _event(event, surface.named)
        if not surface.named:
            yield "data: [DONE]\n\n"
        return
    except Error as error:  # the status is long sent
        said = _late(error, surface)
    except Exception:
        log.exception("a stream ended")
        said = MISTAKE
    failed(said.status)
    for event in surface.failed(said.body()["error"]):
        yield _event(event, surface.named)


def _late(error: Error, surface: Surface) -> ApiError:
    """An error of an answer that was fit to run. It is not the request's fault, unless what was
    asked of the answer's form turned out to cost too much.
    """
    if error.field == "grammar":
        return ApiError(f"{surface.form}: {error}", field=surface.form)
    return ApiError.of(error, 400 if error.field == "tools" else 500)


def _event(value: Event, named: bool) -> str:
    name = f"event: {value['type']}\n" if named else ""
    return f"{name}data: {as_json(value)}\n\n"


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that tells a client what of its request meant nothing here.

    Names are any text: what may not stand in a header is percent-encoded, and a long list is cut.
    """
    said = ""
    for name in names:
        written = quote(name.encode("utf-8", "replace"), safe=_HEADER_SAFE)
        more = f"{said}, {written}" if said else written
        if len(more) > _IGNORED_LENGTH:
            return {IGNORED_HEADER: f"{said}, ..." if said else "..."}
        said = more
    return {IGNORED_HEADER: said} if said else {}

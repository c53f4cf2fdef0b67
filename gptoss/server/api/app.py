"""The routes: who may ask, how much at once, and how an answer travels."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gptoss.chat import HarmonyChat, PlainChat, load_chat
from gptoss.engine import AsyncEngine, Engine
from gptoss.errors import Error, shown
from gptoss.request import Timing
from gptoss.server.api.chat_completions import ChatRequest
from gptoss.server.api.completions import CompletionRequest
from gptoss.server.api.fields import Caller, parse_body
from gptoss.server.api.metrics import Metrics
from gptoss.server.api.responses import ResponsesRequest
from gptoss.server.errors import ApiError
from gptoss.server.http import (
    CALLER_HEADER,
    CLIENT_HEADER,
    CLIENT_LEFT,
    MISTAKE,
    Endpoint,
    address_of,
    check_key,
    failed,
    for_origins,
    guarded,
    log,
    no_route,
    read_body,
    unless_left,
)
from gptoss.server.static import page_routes

_GRACE = 5.0  # seconds that a client has to read why its answer ended


@dataclass(frozen=True)
class ServerOptions:
    """model_name: what clients call the model; any other name is refused. api_keys: one of them
    must come as a bearer token; none: anybody may ask. max_requests: at a time, others are told to
    try later. max_body: bytes of a request. origins: web pages that may ask, "*" for all. timeout:
    seconds that an answer may take, waiting included; None: for ever. body_timeout: seconds that a
    client may take to say what it wants. behind_front: headers that a front adds say who asks.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    max_requests: int = 256
    max_body: int = 16 << 20
    origins: tuple[str, ...] = ()
    timeout: float | None = 3600.0
    body_timeout: float = 60.0
    behind_front: bool = False


_Running = TypeVar("_Running", bound="_Work")
_Result = TypeVar("_Result")


class _Work(Protocol):
    def timings(self) -> list[Timing]: ...
    def fail(self, error: Error) -> None: ...
    def cancel(self) -> None: ...


class _Answer(_Work, Protocol):
    object: str
    chunk_object: str
    prefix: str
    streams: bool
    usage_wanted: bool
    usage: dict[str, Any]

    def chunks(self) -> AsyncIterator[dict[str, Any]]: ...
    def join(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]: ...


def create_app(engine: Engine, options: ServerOptions) -> Starlette:
    """An ASGI application, which does not close the engine."""
    return _Server(engine, options).app


class _Server:
    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self._engine = engine
        self._async = AsyncEngine(engine)
        self._options = options
        self._chat: HarmonyChat | PlainChat | Error
        try:
            self._chat = load_chat(engine.tokenizer)
        except Error as error:  # texts and tokens can be completed all the same
            self._chat = error
        self._created = int(time.time())
        self._running = 0
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._metrics = Metrics(engine)
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
                Route("/metrics", self._guarded(self._show_metrics), methods=get),
                Route("/health", self._health, methods=get),
                *page_routes(),
            ],
            middleware=for_origins(options.origins),
            exception_handlers={HTTPException: no_route, Exception: failed},
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
            is_logged=lambda response: isinstance(response, _EventStream),  # when it ends
        )

    async def _body(self, request: Request) -> dict[str, Any]:
        options = self._options
        return parse_body(await read_body(request, options.max_body, options.body_timeout))

    def _client(self, request: Request) -> str:
        if self._options.behind_front:
            return request.headers.get(CLIENT_HEADER, "")
        return address_of(request)

    def _caller(self, request: Request) -> Caller:
        """Clients are told apart by their keys, or else by their addresses."""
        client = request.headers.get("authorization", "") if self._options.api_keys else ""
        if self._options.behind_front:  # all come with one key
            client = request.headers.get(CALLER_HEADER, "")
        return Caller(asyncio.get_running_loop(), client or self._client(request))

    def _format(self) -> HarmonyChat | PlainChat:
        if isinstance(self._chat, Error):
            raise ApiError(f"this model cannot chat here: {self._chat}", 503)
        return self._chat

    async def _responses(self, request: Request) -> Response:
        body = await self._body(request)
        chat, caller, name = self._format(), self._caller(request), self._options.model_name
        answer = await self._submit(
            body, lambda: ResponsesRequest(self._async, chat, body, caller, name)
        )
        if answer.streams:
            return self._stream(request, answer, _named_events(answer))
        found = await self._whole(request, answer, answer.response())
        return Response(status_code=CLIENT_LEFT) if found is None else JSONResponse(found)

    async def _chat_completions(self, request: Request) -> Response:
        body = await self._body(request)
        chat, caller = self._format(), self._caller(request)
        return await self._answer(
            request, body, lambda: ChatRequest(self._async, chat, body, caller)
        )

    async def _completions(self, request: Request) -> Response:
        body = await self._body(request)
        caller = self._caller(request)
        return await self._answer(
            request, body, lambda: CompletionRequest(self._async, body, caller)
        )

    async def _submit(self, body: dict[str, Any], submit: Callable[[], _Running]) -> _Running:
        """The running request. Raises ApiError where it is invalid or may not run now."""
        self._check_model(body.get("model"))
        if self._running >= self._options.max_requests:
            raise ApiError(
                f"{self._running} requests are running, which is as many as may; come again",
                429,
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        self._running += 1
        try:
            # On another thread: to render and to split a long text takes a while.
            answer = await asyncio.to_thread(submit)
        except BaseException:
            self._running -= 1
            raise
        seconds = self._options.timeout
        if seconds is not None:
            late = ApiError(f"the answer took longer than {seconds:g} seconds", 504, code="timeout")
            self._timers[answer] = asyncio.get_running_loop().call_later(seconds, answer.fail, late)
        return answer

    def _stream(self, request: Request, answer: _Work, events: AsyncIterator[str]) -> Response:
        request.state.access.note(stream=True)
        # A client that does not read what it is sent is cut off a little later than one that does.
        seconds = self._options.timeout
        return _EventStream(
            events,
            lambda status: self._end(request, answer, status),
            None if seconds is None else seconds + _GRACE,
        )

    async def _whole(
        self, request: Request, answer: _Work, result: Awaitable[_Result]
    ) -> _Result | None:
        """The answer when it is done; None when the client leaves first."""
        try:
            return await unless_left(request, result)
        except ApiError:
            raise
        except Error as error:  # the request was fit to run: this is not its fault
            raise ApiError(str(error), 500) from None
        finally:
            self._end(request, answer)

    async def _answer(
        self, request: Request, body: dict[str, Any], submit: Callable[[], _Answer]
    ) -> Response:
        answer = await self._submit(body, submit)
        head = {
            "id": f"{answer.prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": self._options.model_name,
        }
        if answer.streams:
            return self._stream(request, answer, _events(answer, head))
        choices = await self._whole(request, answer, _all(answer))
        if choices is None:
            return Response(status_code=CLIENT_LEFT)
        return JSONResponse(
            {**head, "object": answer.object, "choices": answer.join(choices),
             "usage": answer.usage}
        )  # fmt: skip

    def _end(self, request: Request, answer: _Work, status: int | None = None) -> None:
        """The answer is sent or given up. status: of a stream, whose log line is written here."""
        self._running -= 1
        answer.cancel()
        timer = self._timers.pop(answer, None)
        if timer is not None:
            timer.cancel()
        self._metrics.generated(answer.timings())
        request.state.access.generated(answer.timings())
        if status is not None:
            request.state.access.end(status)

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
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._describe())

    async def _tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        text = body.get("prompt", body.get("content"))
        if not isinstance(text, str):
            raise ApiError(f"prompt: expected a string, found {shown(text)}", field="prompt")
        # On another thread, as all that may take a while: streams go on meanwhile.
        tokens = await asyncio.to_thread(self._engine.tokenizer.encode, text)
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def _detokenize(self, request: Request) -> Response:
        tokens = (await self._body(request)).get("tokens")
        size = self._engine.tokenizer.vocab_size
        if not isinstance(tokens, list) or not all(
            isinstance(token, int) and 0 <= token < size for token in tokens
        ):
            raise ApiError(f"tokens: expected a list of ids below {size}", field="tokens")
        text = await asyncio.to_thread(self._engine.tokenizer.decode, tokens)
        return JSONResponse({"prompt": text})

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "running": self._running})


class _EventStream(StreamingResponse):
    """Server-sent events. Whatever ends them, even before the first, `at_end` is called with the
    status: 200, or 499 where the client left. seconds: after which the connection is cut.
    """

    def __init__(
        self, events: AsyncIterator[str], at_end: Callable[[int], None], seconds: float | None
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
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


async def _events(answer: _Answer, head: dict[str, Any]) -> AsyncIterator[str]:
    head = {**head, "object": answer.chunk_object}
    empty = {"usage": None} if answer.usage_wanted else {}
    try:
        async for choice in answer.chunks():
            yield _event({**head, "choices": [choice], **empty})
        if answer.usage_wanted:
            yield _event({**head, "choices": [], "usage": answer.usage})
        yield "data: [DONE]\n\n"
    except Error as error:  # the status is long sent: the stream itself has to say it
        yield _event(_as_api_error(error).body())
    except Exception:
        log.exception("a stream ended")
        yield _event(MISTAKE.body())


async def _named_events(answer: ResponsesRequest) -> AsyncIterator[str]:
    """Events of the responses API: each has its name before it."""
    try:
        async for event in answer.events():
            yield f"event: {event['type']}\n{_event(event)}"
    except Exception as error:
        if not isinstance(error, Error):
            log.exception("a stream ended")
        said = _as_api_error(error) if isinstance(error, Error) else MISTAKE
        yield f"event: error\n{_event({**said.body()['error'], 'type': 'error'})}"


def _as_api_error(error: Error) -> ApiError:
    return error if isinstance(error, ApiError) else ApiError(str(error), 500)


async def _all(answer: _Answer) -> list[dict[str, Any]]:
    return [choice async for choice in answer.chunks()]


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

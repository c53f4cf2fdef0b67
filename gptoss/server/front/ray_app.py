"""The server as an application of Ray Serve: an engine on each of several actors, a front before.

serve run gptoss.server.ray_app:app model=gpt-oss-20b replicas=4 gpus=1
"""

# No `from __future__ import annotations`: Ray reads the class of the builder's argument from its
# signature.

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal

from gptoss.engine import Engine, EngineOptions
from gptoss.engine.options import OPTIONS
from gptoss.errors import Error
from gptoss.extras import install_hint
from gptoss.server.api.app import ServerOptions, create_app

try:
    from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
    from ray import serve
    from ray.exceptions import RayError, TaskCancelledError
    from ray.serve.exceptions import RayServeException
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
except ImportError as error:
    raise Error(f"ray_app: {error.name} is missing: {install_hint('ray')}") from None

from starlette.applications import Starlette
from starlette.types import Message

from gptoss.server.front.app import Broken, Call, FrontOptions, create_front
from gptoss.server.front.router import Router
from gptoss.server.who import PRIORITIES, Hosts, given_keys

log = logging.getLogger("gptoss.server")
_SMALL = 64  # requests that generate nothing, at a time and per replica
_GRACE = 60.0  # seconds that requests have left when the application is taken down
# Seconds between two checks of a replica's health, and until one counts as failed; Ray ends a
# replica after three that failed in a row.
_HEALTH_EVERY, _HEALTH_PATIENCE = 2.0, 5.0


class Arguments(BaseModel):
    """What the application is made of; names and meanings are those of `gptoss serve`.

    Those of the engine are the fields of `EngineOptions`. cpus, gpus: that Ray sets aside for each
    replica; by default an engine has as many threads as cpus, and tensor_parallel is gpus.
    api_keys: also GPTOSS_API_KEY where the application is built. priority: "lower" unless said.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str | None = None
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: int = Field(default=0, ge=0)
    api_keys: list[str] = []
    max_sequences: int = Field(default=256, ge=1)
    allowed_hosts: list[str] = []
    origins: list[str] = []
    timeout: float = Field(default=3600, ge=0)
    priority: Literal["any", "lower", "none"] = "lower"
    cache_isolation: bool = False

    @property
    def engine(self) -> EngineOptions:
        """What each replica's engine is made of. Raises ValueError for what it does not know."""
        given = {k: v for k, v in (self.model_extra or {}).items() if v is not None}
        if unknown := sorted(given.keys() - OPTIONS):
            raise Error(f"arguments: no option is called {', '.join(unknown)}")
        own = {"threads": max(1, int(self.cpus)), "tensor_parallel": max(1, self.gpus)}
        # By pydantic: `serve run` gives every value as text.
        options: EngineOptions = TypeAdapter(EngineOptions).validate_python({**own, **given})
        return options

    @model_validator(mode="after")
    def _check_engine(self) -> "Arguments":
        _ = self.engine
        return self


class EngineActor:
    """An engine and the application before it, which is called without a socket."""

    def __init__(self, arguments: Arguments, inner_key: str) -> None:
        self._engine = Engine.from_options(arguments.engine)
        name = arguments.name or Path(str(self._engine.info()["model"])).name
        # The front counts texts. One that was cancelled may last a moment longer here.
        max_sequences = 2 * arguments.max_sequences
        options = ServerOptions(
            name,
            (inner_key,),
            max_sequences,
            timeout=arguments.timeout or None,
            behind_front=True,
            priorities=PRIORITIES[arguments.priority],
            cache_isolation=arguments.cache_isolation,
        )
        self._app = create_app(self._engine, options)

    async def ask(self, call: Call) -> AsyncIterator[Any]:
        """The answer to a request: its status and headers, then the body as it comes."""
        async with contextlib.aclosing(call_app(self._app, call)) as answer:
            async for part in answer:
                yield part

    async def check_health(self) -> None:
        """Ray asks this of itself, and starts the replica again that does not say it in time, or
        whose engine hangs, several times in a row.
        """
        async with contextlib.aclosing(call_app(self._app, Call("GET", "/health"))) as answer:
            status, _ = await anext(answer)
        if status != 200:
            raise RuntimeError("the engine hangs")

    async def here(self) -> int:
        """The process of this replica, once it is there."""
        return os.getpid()


async def call_app(app: Starlette, call: Call) -> AsyncGenerator[Any, None]:
    """What an ASGI application answers: (status, headers), then parts of the body.

    Closed before its end, the application learns that the client has left.
    """
    path, _, query = call.path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": call.method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in call.headers.items()],
    }
    given = False
    left = asyncio.Event()
    # One part at a time: a reader that does not read holds up the writer.
    messages: asyncio.Queue[Message | None] = asyncio.Queue(1)

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": call.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        except Exception:  # it has answered with an error, and raises that for the log
            log.exception("%s %s", call.method, path)
        finally:
            if not left.is_set():
                await messages.put(None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in message["headers"]}
                yield message["status"], headers
            elif message.get("body"):
                yield message["body"]
    finally:
        left.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _ActorReply:
    def __init__(
        self, replica: "ActorReplica", head: tuple[int, Mapping[str, str]],
        rest: DeploymentResponseGenerator,
    ) -> None:  # fmt: skip
        self.status, self.headers = head
        self._replica = replica
        self._rest = rest

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._rest:
                yield part
        except (RayError, RayServeException) as error:
            raise self._replica.broken(error) from None

    async def close(self) -> None:
        self._rest.cancel()  # of no effect after its end


class ActorReplica:
    """An `Upstream` that is a deployment of Ray Serve with one replica, which Ray starts again when
    it ends.
    """

    def __init__(self, number: int, handle: DeploymentHandle, router: Router) -> None:
        self._number = number
        self._handle = handle
        self._router = router
        self._waiting: asyncio.Task[None] | None = None

    async def ask(self, call: Call) -> _ActorReply:
        """As `Upstream.ask`."""
        answer: Any = self._handle.options(stream=True).ask.remote(call)
        try:
            return _ActorReply(self, await anext(answer), answer)
        except (RayError, RayServeException, StopAsyncIteration) as error:
            raise self.broken(error) from None
        except asyncio.CancelledError:
            answer.cancel()
            raise

    def broken(self, error: Exception) -> Broken:
        """The replica failed: nobody is sent there until it answers again."""
        if isinstance(error, TaskCancelledError):
            return Broken("the request was cancelled")
        log.error("replica %d: %s", self._number, error)
        if self._waiting is None or self._waiting.done():
            self._router.set_up(self._number, False)
            self._waiting = asyncio.ensure_future(self._wait())
        return Broken(f"replica {self._number} ended while it had this request")

    async def _wait(self) -> None:
        while True:
            try:
                await self._handle.here.remote()
                break
            except (RayError, RayServeException):
                await asyncio.sleep(0.5)
        self._router.set_up(self._number, True)


class Front:
    """The deployment that HTTP comes to. There is one: it remembers who read what."""

    def __init__(
        self, arguments: Arguments, inner_key: str, handles: list[DeploymentHandle]
    ) -> None:
        self._options = FrontOptions(
            inner_key,
            tuple(arguments.api_keys),
            origins=tuple(arguments.origins),
            # Where Ray listens is not known here.
            hosts=Hosts.of("0.0.0.0", arguments.allowed_hosts, bool(arguments.api_keys)),
            timeout=arguments.timeout or None,
            cache_isolation=arguments.cache_isolation,
        )
        self._max_sequences = arguments.max_sequences
        self._handles = handles

    def __serve_build_asgi_app__(self) -> Starlette:
        router = Router(len(self._handles), self._max_sequences)
        replicas = [ActorReplica(i, handle, router) for i, handle in enumerate(self._handles)]
        return create_front(replicas, router, self._options)


def build_app(args: Arguments) -> serve.Application:
    """The application, for `serve.run` and configuration files (`import_path`)."""
    keys = given_keys(args.api_keys, "api_keys")
    args = args.model_copy(update={"api_keys": keys})
    inner_key = secrets.token_hex(32)
    max_requests = 2 * args.max_sequences + _SMALL
    # A deployment each, instead of one with several replicas: so a request goes to the one that the
    # router chose, using nothing but Ray's public interface.
    engine: Any = serve.deployment(EngineActor)
    engines = [
        engine.options(
            name=f"replica-{i}",
            num_replicas=1,
            max_ongoing_requests=max_requests,
            ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
            graceful_shutdown_timeout_s=_GRACE,
            health_check_period_s=_HEALTH_EVERY,
            health_check_timeout_s=_HEALTH_PATIENCE,
        ).bind(args, inner_key)
        for i in range(args.replicas)
    ]
    front: Any = serve.deployment(serve.ingress()(Front))
    application: serve.Application = front.options(
        name="front",
        num_replicas=1,
        max_ongoing_requests=max_requests * args.replicas,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=_GRACE,
    ).bind(args, inner_key, engines)
    return application


app = build_app

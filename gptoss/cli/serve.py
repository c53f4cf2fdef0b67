"""`gptoss serve`: OpenAI's API on this machine."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.cli.arguments import add_model, engine_options
from gptoss.errors import Error

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from gptoss.engine import Engine
    from gptoss.server.front.replicas import Plan

NAME = "serve"
HELP = "Answer requests over HTTP, as OpenAI's API does."
_MAX_REPLICAS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""

    add_model(parser)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    add("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any free one")
    add("--name", metavar="NAME", help="what clients call the model (default: its folder's name)")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="ask clients for it; may be given several times; also GPTOSS_API_KEY",
    )
    add(
        "--max-requests",
        type=int,
        default=256,
        metavar="N",
        help="at a time, for each replica (default: 256)",
    )
    add("--timeout", type=float, default=3600.0, metavar="SECONDS",
        help="that an answer may take; 0: for ever (default: 3600)")  # fmt: skip
    add("--no-access-log", action="store_true", help="do not log requests, a line of JSON each")
    add("--origin", action="append", default=[], metavar="URL", help="of web pages that may ask")
    add(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="engines, each a process with the model and a cache of its own (default: 1)",
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Serve until Ctrl-C or SIGTERM; requests that run are finished first."""
    try:
        import uvicorn

        import gptoss.server.api.app
        import gptoss.server.front.replicas  # noqa: F401
    except ImportError as error:
        raise Error(f"serve: {error.name} is missing: pip install 'gptoss[serve]'") from None
    from gptoss.cli.opening import open_engine

    if not 0 <= arguments.port < 1 << 16:
        raise Error(f"--port: expected 0 to 65535, found {arguments.port}")
    if arguments.max_requests < 1:
        raise Error(f"--max-requests: expected at least 1, found {arguments.max_requests}")
    if not 1 <= arguments.replicas <= _MAX_REPLICAS:
        raise Error(f"--replicas: expected 1 to {_MAX_REPLICAS}, found {arguments.replicas}")
    if not arguments.timeout >= 0:
        raise Error(f"--timeout: expected at least 0 seconds, found {arguments.timeout:g}")
    log_to_stderr(arguments.no_access_log)
    keys = arguments.api_key = [
        *arguments.api_key,
        *filter(None, [os.environ.get("GPTOSS_API_KEY")]),
    ]
    if not keys and not _is_loopback(arguments.host):
        print(
            f"gptoss: {arguments.host} can be reached from elsewhere, and no --api-key is set",
            file=sys.stderr,
        )
    if arguments.replicas > 1:
        return _serve_replicas(arguments)
    with open_engine(arguments) as engine:
        server = uvicorn.Server(_config(arguments, application(arguments, engine)))
        try:
            server.run()
        except KeyboardInterrupt:  # uvicorn passes it on when all is finished
            pass
    return 0 if server.started else 1


def application(
    arguments: argparse.Namespace, engine: Engine, *, behind_front: bool = False
) -> Starlette:
    """What answers requests with this engine, as the options of the command say."""
    from gptoss.server.api.app import ServerOptions, create_app

    options = ServerOptions(
        arguments.name or Path(str(engine.info()["model"])).name,
        tuple(arguments.api_key),
        arguments.max_requests,
        origins=tuple(arguments.origin),
        timeout=arguments.timeout or None,
        behind_front=behind_front,
    )
    return create_app(engine, options)


def _config(arguments: argparse.Namespace, app: Starlette) -> uvicorn.Config:
    import uvicorn

    return uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="info",
        access_log=False,  # ours says more
        server_header=False,
        timeout_graceful_shutdown=60,
    )


# Several replicas.


def _serve_replicas(arguments: argparse.Namespace) -> int:
    import uvicorn

    from gptoss.server.front.app import FrontOptions, create_front
    from gptoss.server.front.replicas import PATIENCE, Replicas
    from gptoss.server.front.router import Router

    inner_key = secrets.token_hex(32)
    router = Router(arguments.replicas, arguments.max_requests)
    replicas = Replicas(_plans(arguments, inner_key), router)
    options = FrontOptions(inner_key, tuple(arguments.api_key), origins=tuple(arguments.origin))
    app = create_front(replicas.upstreams, router, options)

    class Server(uvicorn.Server):
        async def shutdown(self, *arguments: Any, **options: Any) -> None:
            await super().shutdown(*arguments, **options)
            # Here, and not after `serve`, which passes the signal on that ended it: nothing of
            # ours may come after that.
            # A second Ctrl-C does not wait.
            await replicas.close(0 if self.force_exit else PATIENCE)

    server = Server(_config(arguments, app))

    async def serve() -> None:
        await replicas.start()
        try:
            await server.serve()
        finally:
            await replicas.close()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        if not server.started:
            raise
    return 0 if server.started else 1


def _plans(arguments: argparse.Namespace, inner_key: str) -> list[Plan]:
    """How each replica is started: as one server would be, but behind the front."""
    from gptoss.server.front.replicas import Plan, gpus_of_replica

    options = engine_options(arguments)  # refused here rather than by each replica
    asked = {
        **{name: value for name, value in vars(arguments).items() if name != "run"},
        "host": "127.0.0.1",
        "port": 0,
        "api_key": [inner_key],
        "origin": [],
        # The front counts requests. One that was cancelled may last a moment longer there.
        "max_requests": 2 * arguments.max_requests,
    }
    if options.threads is None:
        asked["threads"] = max(1, len(os.sched_getaffinity(0)) // arguments.replicas)
    plans = []
    for i in range(arguments.replicas):
        gpus = None
        if options.device in ("auto", "cuda"):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            present = len(list(Path("/dev").glob("nvidia[0-9]*")))
            gpus = gpus_of_replica(i, arguments.replicas, options.tensor_parallel, visible, present)
        environment = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
        command = [sys.executable, "-m", "gptoss.cli.replica", str(i)]
        plans.append(Plan(command, {**asked, "replica": i}, environment))
    return plans


def log_to_stderr(no_access: bool) -> None:
    """Our own log, a line of JSON for each request unless `no_access`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("gptoss")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    if no_access:
        logging.getLogger("gptoss.access").setLevel(logging.WARNING)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

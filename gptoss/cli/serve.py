"""`gptoss serve`: OpenAI's API on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.cli.arguments import add_model, engine_options
from gptoss.errors import Error
from gptoss.extras import install_hint

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from gptoss.engine import Engine
    from gptoss.server.connections import Connections
    from gptoss.server.front.replicas import Plan
    from gptoss.server.who import Hosts

NAME = "serve"
HELP = "Answer requests over HTTP, as OpenAI's API does."
_MAX_REPLICAS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""

    add_model(parser, first=True)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    add("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any free one")
    add("--name", metavar="NAME", help="what clients call the model (default: its own name)")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="ask clients for it; may be given several times; also GPTOSS_API_KEY",
    )
    add(
        "--max-sequences",
        "--max-requests",
        type=int,
        default=256,
        metavar="N",
        help="texts at a time, for each replica: a request's prompts times its n (default: 256)",
    )
    add(
        "--max-connections",
        type=int,
        default=1024,
        metavar="N",
        help="open at a time (default: 1024); beyond it those that ask for nothing are closed",
    )
    add("--timeout", type=float, default=3600.0, metavar="SECONDS",
        help="that an answer may take; 0: for ever (default: 3600)")  # fmt: skip
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which clients may call this server, several times if need be; *: any",
    )
    add(
        "--trusted-proxy",
        action="append",
        metavar="ADDRESS",
        help="a proxy whose X-Forwarded-For says who asks, several times if need be (default: this "
        "machine's own); '': none",
    )
    add(
        "--priority",
        choices=["any", "lower", "none"],
        help="what clients may ask for: to go before others, only after them, or neither (default: "
        "lower where there are several keys, or none on an address that others reach; else any)",
    )
    add(
        "--cache-isolation",
        action="store_true",
        help="what one client sent is in the prefix cache for that client alone",
    )
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
        import gptoss.server.api.app
        import gptoss.server.front.replicas
        import gptoss.server.listen
        import gptoss.server.log
    except ImportError as error:
        raise Error(f"serve: {error.name} is missing: {install_hint('serve')}") from None
    from gptoss.cli.opening import open_engine
    from gptoss.server.who import given_keys, is_loopback

    if not 0 <= arguments.port < 1 << 16:
        raise Error(f"--port: expected 0 to 65535, found {arguments.port}")
    if arguments.max_sequences < 1:
        raise Error(f"--max-sequences: expected at least 1, found {arguments.max_sequences}")
    if arguments.max_connections < 1:
        raise Error(f"--max-connections: expected at least 1, found {arguments.max_connections}")
    if not 1 <= arguments.replicas <= _MAX_REPLICAS:
        raise Error(f"--replicas: expected 1 to {_MAX_REPLICAS}, found {arguments.replicas}")
    if not arguments.timeout >= 0:
        raise Error(f"--timeout: expected at least 0 seconds, found {arguments.timeout:g}")
    gptoss.server.log.log_to_stderr(access=not arguments.no_access_log)
    keys = arguments.api_key = given_keys(arguments.api_key, "--api-key")
    if arguments.priority is None:
        strangers = len(keys) > 1 or (not keys and not is_loopback(arguments.host))
        arguments.priority = "lower" if strangers else "any"
    if not keys and not is_loopback(arguments.host):
        print(
            f"gptoss: {arguments.host} can be reached from elsewhere, and no --api-key is set",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        listening = gptoss.server.listen.bind(arguments.host, arguments.port)
        for each in listening:
            stack.callback(each.close)
        if arguments.replicas > 1:
            return _serve_replicas(arguments, listening)
        with open_engine(arguments) as engine:
            connections = _connections(arguments)
            app = application(arguments, engine, connections)
            server = gptoss.server.listen.Server(_config(arguments, app, connections))
            server.on_start = lambda: _say_where(arguments, listening)
            try:
                server.run(listening)
            except KeyboardInterrupt:  # uvicorn passes it on when all is finished
                pass
        return 0 if server.started else 1


def _say_where(arguments: argparse.Namespace, listening: list[socket.socket]) -> None:
    """The address, the page, and a first request."""
    host, port = listening[0].getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    address = f"http://{host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if arguments.api_key else ""
    request = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    print(
        f"gptoss: {arguments.name or arguments.model_name} is running on {address}\n"
        f"  clients    {address}/v1\n"
        f"  chat page  {address}/\n"
        f"  try it     curl {address}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{request}'",
        file=sys.stderr,
        flush=True,
    )


def application(
    arguments: argparse.Namespace,
    engine: Engine,
    connections: Connections,
    *,
    behind_front: bool = False,
) -> Starlette:
    """What answers requests with this engine, as the options of the command say."""
    from gptoss.server.api.app import ServerOptions, create_app
    from gptoss.server.who import PRIORITIES

    options = ServerOptions(
        arguments.name or arguments.model_name,
        tuple(arguments.api_key),
        arguments.max_sequences,
        origins=tuple(arguments.origin),
        timeout=arguments.timeout or None,
        behind_front=behind_front,
        hosts=None if behind_front else _hosts(arguments),
        priorities=PRIORITIES[arguments.priority],
        cache_isolation=arguments.cache_isolation,
    )
    return create_app(engine, options, connections)


def _connections(arguments: argparse.Namespace, each: int = 1) -> Connections:
    """each: descriptors that one takes."""
    from gptoss.server.connections import Connections, Limits
    from gptoss.server.listen import affordable

    return Connections(affordable(Limits(arguments.max_connections), each))


def _config(
    arguments: argparse.Namespace, app: Starlette, connections: Connections
) -> uvicorn.Config:
    from gptoss.server.listen import config

    proxies = arguments.trusted_proxy
    return config(
        app,
        arguments.host,
        arguments.port,
        connections,
        proxies=["127.0.0.1", "::1"] if proxies is None else list(filter(None, proxies)),
    )


def _hosts(arguments: argparse.Namespace) -> Hosts | None:
    from gptoss.server.who import Hosts

    return Hosts.of(arguments.host, arguments.allowed_host, bool(arguments.api_key))


# Several replicas.


def _serve_replicas(arguments: argparse.Namespace, listening: list[socket.socket]) -> int:
    from gptoss.cli.opening import locate, runs_on_cpu
    from gptoss.server.front.app import FrontOptions, create_front
    from gptoss.server.front.replicas import PATIENCE, Replicas
    from gptoss.server.front.router import Router
    from gptoss.server.listen import Server

    inner_key = secrets.token_hex(32)
    engine = engine_options(arguments)
    # Downloaded once, not by each.
    found = locate(
        arguments.model,
        offline=arguments.offline,
        weights=engine.weights,
        packed_too=runs_on_cpu(engine),
    )
    arguments.model, arguments.name = str(found.model), arguments.name or found.name
    router = Router(arguments.replicas, arguments.max_sequences)
    replicas = Replicas(_plans(arguments, inner_key), router)
    options = FrontOptions(
        inner_key,
        tuple(arguments.api_key),
        origins=tuple(arguments.origin),
        timeout=arguments.timeout or None,
        hosts=_hosts(arguments),
        cache_isolation=arguments.cache_isolation,
    )
    connections = _connections(arguments, each=2)  # one to a client, and one to a replica
    app = create_front(replicas.upstreams, router, options, connections)

    class FrontServer(Server):
        async def shutdown(self, *arguments: Any, **options: Any) -> None:
            await super().shutdown(*arguments, **options)
            # Here, and not after `serve`, which passes the signal on that ended it: nothing of
            # ours may come after that.
            # A second Ctrl-C does not wait.
            await replicas.close(0 if self.force_exit else PATIENCE)

    server = FrontServer(_config(arguments, app, connections))
    server.on_start = lambda: _say_where(arguments, listening)

    async def serve() -> None:
        await replicas.start()
        try:
            await server.serve(listening)
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
        **{
            name: value
            for name, value in vars(arguments).items()
            if name not in ("run", "model_given")
        },
        "host": "127.0.0.1",
        "port": 0,
        "api_key": [inner_key],
        "origin": [],
        # The front counts requests. One that was cancelled may last a moment longer there.
        "max_sequences": 2 * arguments.max_sequences,
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

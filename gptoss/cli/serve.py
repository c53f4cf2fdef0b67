"""`gptoss serve`: OpenAI's API on this machine."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import sys
from pathlib import Path

from gptoss.errors import Error

NAME = "serve"
HELP = "Answer requests over HTTP, as OpenAI's API does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from gptoss.cli.arguments import add_model

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
    add("--max-requests", type=int, default=256, metavar="N", help="at a time (default: 256)")
    add("--timeout", type=float, default=3600.0, metavar="SECONDS",
        help="that an answer may take; 0: for ever (default: 3600)")  # fmt: skip
    add("--no-access-log", action="store_true", help="do not log requests, a line of JSON each")
    add("--origin", action="append", default=[], metavar="URL", help="of web pages that may ask")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Serve until Ctrl-C or SIGTERM; requests that run are finished first."""
    try:
        import uvicorn

        from gptoss.server.app import ServerOptions, create_app
    except ImportError as error:
        raise Error(f"serve: {error.name} is missing: pip install 'gptoss[serve]'") from None
    from gptoss.cli.opening import open_engine

    if not 0 <= arguments.port < 1 << 16:
        raise Error(f"--port: expected 0 to 65535, found {arguments.port}")
    if arguments.max_requests < 1:
        raise Error(f"--max-requests: expected at least 1, found {arguments.max_requests}")
    if not arguments.timeout >= 0:
        raise Error(f"--timeout: expected at least 0 seconds, found {arguments.timeout:g}")
    _log_to_stderr(arguments.no_access_log)
    keys = [*arguments.api_key, *filter(None, [os.environ.get("GPTOSS_API_KEY")])]
    if not keys and not _is_loopback(arguments.host):
        print(
            f"gptoss: {arguments.host} can be reached from elsewhere, and no --api-key is set",
            file=sys.stderr,
        )
    with open_engine(arguments) as engine:
        name = arguments.name or Path(str(engine.info()["model"])).name
        options = ServerOptions(
            name,
            tuple(keys),
            arguments.max_requests,
            origins=tuple(arguments.origin),
            timeout=arguments.timeout or None,
        )
        config = uvicorn.Config(
            create_app(engine, options),
            host=arguments.host,
            port=arguments.port,
            log_level="info",
            access_log=False,  # ours says more
            server_header=False,
            timeout_graceful_shutdown=60,
        )
        server = uvicorn.Server(config)
        try:
            server.run()
        except KeyboardInterrupt:  # uvicorn passes it on when all is finished
            pass
    return 0 if server.started else 1


def _log_to_stderr(no_access: bool) -> None:
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

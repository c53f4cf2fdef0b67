"""How every server of ours listens: one with an engine, a front of replicas, and a replica."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gptoss.errors import Error, shown
from gptoss.files import reason
from gptoss.server.connections import Connections, Limits

log = logging.getLogger("gptoss.server")
_DESCRIPTORS = 1 << 20  # no server of ours needs more
_SPARE = 32  # descriptors for files, pipes and what else comes
_WAITING = 128  # connections that the kernel keeps until they are accepted
# Batches of accepted connections that exist beside those admitted: asyncio accepts one in each turn
# of its loop; it takes three more until one is admitted and what made room for it is closed.
_BATCHES = 4
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Seconds for which a thread keeps Python's lock while others want it. A thread that reads a long
# text otherwise holds up the engine's for 5 ms, several times a step.
_SWITCH = 0.0002
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20  # of malloc.h; bytes
SHUTDOWN_SECONDS = 60  # that running requests are given at the end


class Server(uvicorn.Server):
    """uvicorn's server, which says in one line that no descriptor is left, and accepts in turns.

    on_start: called when requests are accepted.
    """

    on_start: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, *arguments: Any, **options: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(_unhandled)
        sys.setswitchinterval(_SWITCH)
        _give_back_large_blocks()
        try:
            await super().startup(*arguments, **options)
        except OSError as error:  # another server began to listen while the model was loaded
            raise Error(f"the address cannot be listened on: {reason(error)}") from None
        if self.started:
            self.on_start()
            # The kernel may keep more than asyncio accepts in one turn: what it has no place for
            # tries again a second later.
            for listening in (each for server in self.servers for each in server.sockets):
                with socket.fromfd(listening.fileno(), listening.family, listening.type) as same:
                    same.listen(_WAITING)


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets at each address of this name, which refuse connections until a server listens.

    Taken before a model is loaded, so that a port on which somebody listens is found at once. Port
    0: any free one, the same for all. Raises Error.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise Error(
            f"--host: expected an address of this machine, found {shown(host)}: {reason(error)}"
        ) from None
    made: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                each = socket.socket(family, kind, protocol)
            except OSError as error:  # no IPv6, though a name has an address of that kind
                absent = error
                continue
            made.append(each)
            # As asyncio does: a port is free again as soon as its server has ended.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                each.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                absent = error
                made.remove(each)
                each.close()
                continue
            port = each.getsockname()[1]
        if absent is not None and not made:
            raise absent
    except OSError as error:
        for each in made:
            each.close()
        free = "; --port 0 takes any free one" if error.errno == errno.EADDRINUSE else ""
        raise Error(f"{host}, port {port}: cannot be taken: {reason(error)}{free}") from None
    return made


def config(
    app: ASGIApp,
    host: str,
    port: int,
    connections: Connections,
    *,
    log_level: str = "info",
    proxies: list[str] | None = None,
) -> uvicorn.Config:
    """proxies: addresses whose X-Forwarded-For says who asks."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=connections.protocol,  # type: ignore[arg-type]  # called as a class would be
        loop="asyncio",  # how others tell that no descriptor is left was not looked into
        ws="none",
        log_level=log_level,
        log_config=None,  # logged as all else is
        access_log=False,  # ours says more
        server_header=False,
        backlog=connections.limits.backlog,
        timeout_keep_alive=round(connections.limits.idle),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies or [],
    )


def affordable(limits: Limits, each: int = 1) -> Limits:
    """The limits, with as many connections as there are descriptors for.

    Raises this process' limit of descriptors as far as it may be. each: descriptors that a
    connection takes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft == resource.RLIM_INFINITY:
        return limits
    free = soft - len(os.listdir("/proc/self/fd")) - _SPARE
    # Those that are refused have one, too, and those that are not looked at yet.
    refusals = min(limits.refusals, free // 8)
    backlog = max(1, min(limits.backlog, free // 32))
    fewer = max(1, (free - refusals - _BATCHES * backlog) // each)
    if fewer >= limits.connections:
        return replace(limits, backlog=backlog)
    log.warning(
        "this process may open %d files: %d connections at a time, not %d", soft, fewer,
        limits.connections,
    )  # fmt: skip
    return replace(limits, connections=fewer, refusals=refusals, backlog=backlog)


def _give_back_large_blocks() -> None:
    """Have what was held for a body of megabytes returned to the system when it is freed. By
    default glibc's threshold for that grows with the blocks that are freed, up to 32 MiB; and a
    heap with holes of that size in it, one for each thread, never shrinks.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        # Once for each place in the backlog, every second, with a traceback, if asyncio had it.
        log.warning("no connection can be accepted: %s", os.strerror(error.errno or 0))
        return
    loop.default_exception_handler(context)

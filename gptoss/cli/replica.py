"""One engine of `gptoss serve --replicas`; `gptoss.server.front.replicas` starts it.

    python -m gptoss.cli.replica NUMBER DESCRIPTOR

The number is for people who look at a list of processes; the descriptor is a socket's. The first
line that comes over it is a JSON object with the options of `gptoss serve`; one line goes back:
{"port": N} when requests can come, or {"error": "…"}. Its end means that the process that
started us is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
from typing import Any

import uvicorn

from gptoss.cli.opening import open_engine
from gptoss.cli.serve import application
from gptoss.errors import Error
from gptoss.server.connections import Connections, Limits
from gptoss.server.listen import Server, affordable, config
from gptoss.server.log import log_to_stderr

# The front drops a connection before we do: a request on one that is just being closed would be
# lost.
_IDLE = 60.0


def main() -> int:
    """Serve on loopback until SIGTERM."""
    line = socket.socket(fileno=int(sys.argv[2]))
    asked = line.makefile("r", encoding="utf-8").readline()
    if not asked:
        return 1
    # A thread, not the event loop: it runs while the model is loaded, too.
    threading.Thread(target=_end_with, args=[line], daemon=True).start()
    options = json.loads(asked)
    arguments = argparse.Namespace(**options)
    log_to_stderr(access=not arguments.no_access_log)
    try:
        with open_engine(arguments, show=options["replica"] == 0) as engine:
            limits = affordable(Limits(2 * arguments.max_connections, idle=_IDLE))
            connections = Connections(limits)
            app = application(arguments, engine, connections, behind_front=True)
            listening = config(
                app, arguments.host, arguments.port, connections, log_level="warning"
            )
            _Server(listening, line).run()
    except (Error, OSError, MemoryError) as error:
        message = str(error) or "out of memory"
        line.sendall(json.dumps({"error": message}).encode() + b"\n")
        return 1
    return 0


class _Server(Server):
    def __init__(self, config: uvicorn.Config, line: socket.socket) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, *arguments: Any, **options: Any) -> None:
        await super().startup(*arguments, **options)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            self._line.sendall(json.dumps({"port": port}).encode() + b"\n")


def _end_with(line: socket.socket) -> None:
    try:
        while line.recv(4096):
            pass
    except OSError:
        pass
    os._exit(1)  # nobody is left to hear more


if __name__ == "__main__":
    sys.exit(main())

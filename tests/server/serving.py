"""A server on a socket of this machine, for clients that know nothing of it, and rough clients."""

import json
import socket
import threading
from contextlib import contextmanager

import httpx
from waiting import PATIENCE, until


@contextmanager
def serving(app, narrow=False, connections=None, proxies=None):
    """The address of a server that runs while the block does, as `gptoss serve` runs it. narrow:
    its sockets hold little of what is not read. connections: a `Connections`. proxies: that are
    trusted.
    """
    from gptoss.server.connections import Connections
    from gptoss.server.listen import Server, config

    connections = Connections() if connections is None else connections
    made = config(app, "127.0.0.1", 0, connections, log_level="warning", proxies=proxies)
    server = Server(made)
    listening = socket.socket()
    if narrow:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), "the start of the server")
    assert server.started
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def connection(address, narrow=False):
    """A socket. narrow: it holds little of what is not read."""
    made = socket.socket()
    made.settimeout(PATIENCE)
    if narrow:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    host, _, port = address.removeprefix("http://").partition(":")
    made.connect((host, int(port)))
    return made


@contextmanager
def asking(address, path, body, narrow=False, **headers):
    """A client that has asked this, reads nothing, and leaves at the end of the block."""
    data = json.dumps(body).encode()
    lines = {
        "Host": "x",
        "Content-Type": "application/json",
        "Content-Length": len(data),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with connection(address, narrow) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        yield client


def running(address):
    """How many requests a server works on."""
    return httpx.get(f"{address}/health").json()["running"]


def until_none_run(address):
    """A stream is read to its end before the server is done with it."""
    until(lambda: running(address) == 0, "the end of all requests")

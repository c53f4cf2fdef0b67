"""Connections that are not finished, or not read, and more of them than there is room for."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from serving import asking, connection, running, serving
from waiting import PATIENCE, until

from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.connections import Connection, Connections, Limits

NEVER = 3600.0
HALF_A_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


def limits(**given):
    """None of them is met unless given."""
    times = dict.fromkeys(("head", "body", "rest", "write", "idle", "slow"), NEVER)
    return Limits(**{**times, "sweep": 0.02, **given})


@pytest.fixture
def served(engine):
    """Starts servers with these limits: an address, and its connections."""
    with ExitStack() as stack:

        def start(app=None, narrow=False, **given):
            connections = Connections(limits(**given))
            app = app or create_app(engine, ServerOptions("nano"))
            return stack.enter_context(serving(app, narrow, connections)), connections

        yield start


def closed(client):
    """What a server said before it closed the connection."""
    said = b""
    while True:
        try:
            part = client.recv(65536)
        except ConnectionError:
            return said
        if not part:
            return said
        said += part


def trickle(client, byte, stop):
    """A thread that sends a byte again and again until the other side has enough."""

    def send():
        try:
            while not stop.wait(0.01):
                client.sendall(byte)
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_a_head_that_does_not_come_ends_the_connection(served):
    address, connections = served(head=0.2)
    with connection(address) as nothing, connection(address) as half:
        half.sendall(HALF_A_HEAD)
        assert closed(nothing) == b""
        said = closed(half)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"
    assert connections.closed["head"] == 2
    until(lambda: len(connections) == 0, "the end of both connections")


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_trickles_is_late_all_the_same(served, before):
    address, connections = served(head=0.3)
    stop = threading.Event()
    with connection(address) as client:
        if before:
            client.sendall(before)
            said = b""
            while not said.endswith(b"}"):
                said += client.recv(65536)
        client.sendall(HALF_A_HEAD)
        thread = trickle(client, b"a", stop)
        closed(client)
        stop.set()
        thread.join(PATIENCE)
    assert connections.closed["head"] == 1


def test_a_head_in_time_is_answered_however_it_is_cut(served):
    address, connections = served(head=NEVER)
    with connection(address) as client:
        for byte in b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n":
            client.sendall(bytes([byte]))
        assert closed(client).startswith(b"HTTP/1.1 200 ")
    assert not connections.closed


def test_a_connection_may_wait_between_requests(served):
    """The head's limit counts from its first byte."""
    address, connections = served(head=0.2)
    with connection(address) as client:
        for _ in range(2):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += client.recv(65536)
            assert said.startswith(b"HTTP/1.1 200")
            begun = time.monotonic()
            until(lambda begun=begun: time.monotonic() - begun > 0.5, "half a second")
    assert not connections.closed


@pytest.mark.parametrize("path", ["/v1/completions", "/nowhere", "/health"])
def test_a_body_that_nobody_reads_ends_the_connection(engine, served, path):
    """Of requests that are answered before their body is there: no key, no route."""
    app = create_app(engine, ServerOptions("nano", api_keys=("right",)))
    address, connections = served(app, rest=0.3)
    stop = threading.Event()
    with connection(address) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: 10000000\r\n\r\n{".encode()
        )
        said = client.recv(65536)
        assert said.split()[1] in (b"401", b"404", b"405")
        thread = trickle(client, b" ", stop)
        closed(client)
        stop.set()
        thread.join(PATIENCE)
    assert connections.closed["body"] == 1


def test_a_body_that_is_late_is_told_so(engine, served):
    app = create_app(engine, ServerOptions("nano", body_timeout=0.2))
    address, _ = served(app)
    with connection(address) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n\r\n{"
        )
        assert closed(client).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_let_go_and_its_request_too(served):
    address, connections = served(narrow=True, write=0.3)
    body = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "logprobs": 5}
    with asking(address, "/v1/completions", body, narrow=True):
        until(lambda: connections.closed["write"] == 1, "the end of the connection")
        until(lambda: running(address) == 0, "the end of its request")


def test_an_answer_that_is_not_read_to_its_end_ends_the_connection(engine, served):
    """The request is over, and uvicorn would wait for ever until the rest can be sent."""
    address, connections = served(narrow=True, write=0.3, idle=1.0)
    body = {"tokens": [1] * 400_000}
    with asking(address, "/detokenize", body, narrow=True, Connection="close"):
        until(lambda: connections.closed["write"] == 1, "the end of the connection")
    until(lambda: len(connections) == 0, "the end of all connections")


def test_a_slow_reader_gets_all(served):
    address, connections = served(narrow=True, write=0.5)
    body = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with asking(address, "/v1/completions", body, narrow=True, Connection="close") as client:
        said = b""
        while part := client.recv(512):
            said += part
    assert b"data: [DONE]" in said[-100:]
    assert not connections.closed


def test_room_is_made_by_those_that_ask_for_nothing(served):
    address, connections = served(connections=4)
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(address)) for _ in range(8)]
        for client in slow:
            client.sendall(HALF_A_HEAD)
        assert httpx.get(f"{address}/health").status_code == 200
        assert closed(slow[0]) == b""
        assert len(connections) <= 4
    assert connections.closed["room"] >= 5
    assert not connections.closed["refused"]


def half_a_body(client):
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
        b"Content-Type: application/json\r\n\r\n{"
    )


@pytest.mark.parametrize("trickles", [False, True])
def test_room_is_made_by_bodies_that_come_slowly(served, trickles):
    address, connections = served(connections=4, slow=0.1)
    stop = threading.Event()
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(address)) for _ in range(4)]
        for client in slow:
            half_a_body(client)
        threads = [trickle(client, b" ", stop) for client in slow if trickles]
        until(lambda: httpx.get(f"{address}/health").status_code == 200, "room for another one")
        assert closed(slow[0]) == b""
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert connections.closed["room"] >= 1


def test_a_body_that_has_just_begun_makes_no_room(served):
    address, connections = served(connections=1, slow=NEVER)
    with connection(address) as client:
        half_a_body(client)
        until(lambda: httpx.get(f"{address}/health").status_code == 503, "the body's begin")
        assert httpx.get(f"{address}/health").status_code == 503
    assert not connections.closed["room"]


def test_a_connection_with_a_request_never_makes_room(served):
    address, connections = served(connections=2)
    body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with ExitStack() as stack:
        busy = [stack.enter_context(asking(address, "/v1/completions", body)) for _ in range(2)]
        for client in busy:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        refused = stack.enter_context(connection(address))
        refused.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        said = closed(refused)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in said
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "server_error"
        assert connections.closed["refused"] == 1
        for client in busy:
            assert client.recv(100)
    until(lambda: httpx.get(f"{address}/health").status_code == 200, "room for another one")


def test_who_does_not_read_makes_room(served):
    """Before its time is over, and only where there is no room otherwise."""
    address, connections = served(narrow=True, connections=1, deaf=0.2)
    body = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True, "logprobs": 5}

    def answered():
        with connection(address) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200")

    with asking(address, "/v1/completions", body, narrow=True):
        until(answered, "room for another one")
        assert connections.closed["room"] == 1 and not connections.closed["write"]


def test_an_answer_in_sending_is_no_idle_connection(served, monkeypatch):
    """uvicorn calls a request complete when the last byte is in a buffer."""
    address, connections = served(connections=2)
    with connection(address) as sending, connection(address) as idle:
        for client in (sending, idle):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += client.recv(65536)
        port = sending.getsockname()[1]
        monkeypatch.setattr(
            Connection,
            "is_done",
            property(lambda self: self.client is None or self.client[1] != port),
        )
        assert httpx.get(f"{address}/health").status_code == 200
        assert closed(idle) == b"" and connections.closed["room"] == 1
        sending.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert sending.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_byte_too_many_does_not_hide_that_the_client_left(served):
    """What comes behind a request is kept, and the end of the connection is seen all the same."""
    address, _ = served()
    body = {"prompt": ["Once"] * 8, "n": 8, "max_tokens": 1000, "ignore_eos": True}
    with asking(address, "/v1/completions", body) as client:
        client.sendall(b"G")
        until(lambda: running(address) == 1, "the request")
    until(lambda: running(address) == 0, "its end")
    metrics = httpx.get(f"{address}/metrics").text
    assert "gptoss_cancelled_texts_total 64.0" in metrics


def test_more_than_can_be_told_are_closed_without_a_word(served):
    address, connections = served(connections=1, refusals=1, sweep=NEVER)
    body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with asking(address, "/v1/completions", body) as busy, ExitStack() as stack:
        assert busy.recv(100).startswith(b"HTTP/1.1 200")
        told, silent = (stack.enter_context(connection(address)) for _ in range(2))
        assert told.recv(100).startswith(b"HTTP/1.1 503 ")
        assert closed(silent) == b""
    assert connections.closed["refused"] == 2


def test_a_pipeline_is_answered_in_order_and_holds_nothing_up(served):
    address, connections = served()
    asked = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200
    with connection(address) as client:
        client.sendall(asked)
        said = b""
        while said.count(b"HTTP/1.1 200") < 200:
            said += client.recv(65536)
    assert not connections.closed


ATTACKED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from gptoss.cli import main
sys.exit(main(["serve", "--port", "0", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("options", [[], ["--replicas", "2"]], ids=["single", "front"])
def test_few_descriptors_and_many_half_open_connections(tmp_path: Path, options):
    """The server answers all the same, and its log stays short."""
    log = tmp_path / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", ATTACKED, "--no-access-log", *options], stderr=written
        )
    try:
        until(lambda: b"running on http://" in log.read_bytes(), "the start of the server")
        text = log.read_text()
        address = text[text.index("http://") :].split()[0]
        before = log.stat().st_size
        with ExitStack() as stack:
            for _ in range(300):
                try:
                    client = stack.enter_context(connection(address))
                    client.sendall(HALF_A_HEAD)
                except OSError:
                    pass  # closed already
            for _ in range(5):
                assert httpx.get(f"{address}/health", timeout=PATIENCE).status_code == 200
        assert log.stat().st_size - before < 2000
        assert "may open 100 files" in text
        assert "can be accepted" not in log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_no_descriptor_is_left(engine, served, caplog):
    """Something else has taken them: a line says so, not a traceback a hundred times."""
    address, _ = served()
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        ours = [stack.enter_context(socket.socket()) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (ours[-1].fileno() + 1, hard))
        try:
            host, _, port = address.removeprefix("http://").partition(":")
            for client in ours:
                client.settimeout(PATIENCE)
                client.connect((host, int(port)))
            until(
                lambda: any("can be accepted" in r.message for r in caplog.records),
                "the line that says so",
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not any(record.exc_info for record in caplog.records)
    until(lambda: httpx.get(f"{address}/health").status_code == 200, "an answer")

"""Bodies that are too large, too slow, or too many at a time; with no engine behind them."""

import asyncio
import threading
from contextlib import ExitStack, contextmanager

import httpx
from serving import connection, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from waiting import PATIENCE, until

from gptoss.server import bodies as bodies_module
from gptoss.server.bodies import SMALL, Bodies
from gptoss.server.errors import ApiError
from gptoss.server.http import Json

HELD = 100_000  # bytes of each large body
PART = HELD + SMALL


class Told:
    """An application that says how many bytes it was sent. begun, ended: of its requests."""

    def __init__(self, bodies):
        self.bodies = bodies
        self.begun = self.ended = 0
        self.open = threading.Event()
        self.open.set()
        self.app = Starlette(routes=[Route("/", self.answer, methods=["POST"])])

    async def answer(self, request: Request):
        self.begun += 1
        try:
            async with self.bodies.read(request) as data:
                await asyncio.to_thread(self.open.wait, PATIENCE)  # as if it was being parsed
                return PlainTextResponse(str(len(data)))
        except ApiError as error:
            return Json(error.body(), error.status, headers=error.headers)
        finally:
            self.ended += 1


@contextmanager
def told(**given):
    made = Told(Bodies(**{"most": 1 << 20, "seconds": PATIENCE, **given}))
    with serving(made.app) as address:
        yield made, address


def head(size, *lines):
    more = "".join(f"{line}\r\n" for line in lines)
    lines = f"Host: x\r\nConnection: close\r\nContent-Length: {size}\r\n"
    return f"POST / HTTP/1.1\r\n{lines}{more}\r\n".encode()


@contextmanager
def unfinished(address, size=PART):
    """A client that sends all but the last byte of a body."""
    with connection(address) as client:
        client.sendall(head(size) + b"a" * (size - 1))
        yield client


def status(client):
    return int(client.recv(65536).split()[1])


def answer(client):
    """The body of an answer."""
    said = b""
    while part := client.recv(65536):
        said += part
    return said.partition(b"\r\n\r\n")[2].decode()


def arrived(made, size):
    """Waits until so many bytes are counted."""
    until(lambda: made.bodies.held == size, f"{size} bytes")


def test_a_body_within_the_limits():
    with told() as (_, address):
        assert httpx.post(address, content=b"a" * (1 << 20)).text == str(1 << 20)
        assert httpx.post(address, content=b"").text == "0"


def test_one_that_says_it_is_too_large_is_refused_before_it_comes():
    with told() as (_, address), connection(address) as client:
        client.sendall(head((1 << 20) + 1))
        assert status(client) == 413


def test_one_that_does_not_say_how_large_it_is():
    def parts():
        for _ in range(17):
            yield b"a" * (1 << 16)

    with told() as (made, address):
        assert httpx.post(address, content=parts()).status_code == 413
        arrived(made, 0)


def test_a_client_that_asks_first_whether_to_send():
    with told() as (_, address):
        with connection(address) as client:
            client.sendall(head(5, "Expect: 100-continue"))
            assert status(client) == 100
            client.sendall(b"hello")
            assert answer(client) == "5"
        with connection(address) as client:
            client.sendall(head(1 << 30, "Expect: 100-continue"))
            assert status(client) == 413


def test_one_that_is_late_is_told_so_and_not_held():
    with told(seconds=0.2) as (made, address), unfinished(address, 100) as client:
        assert status(client) == 408
        arrived(made, 0)


def test_a_client_that_leaves_gives_back_its_room():
    with told() as (made, address):
        with unfinished(address):
            arrived(made, HELD - 1)
        arrived(made, 0)


def test_there_is_always_room_for_small_ones():
    with told(together=0) as (_, address):
        assert httpx.post(address, content=b"a" * SMALL).text == str(SMALL)
        refused = httpx.post(address, content=b"a" * (SMALL + 1))
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "server_error"


def test_room_is_made_by_the_one_that_has_stalled_longest(monkeypatch):
    monkeypatch.setattr(bodies_module, "STALLED", 0.0)
    with told(together=2 * HELD) as (made, address), ExitStack() as stack:
        first = stack.enter_context(unfinished(address))
        arrived(made, HELD - 1)
        second = stack.enter_context(unfinished(address))
        arrived(made, 2 * HELD - 2)
        assert httpx.post(address, content=b"a" * PART).text == str(PART)
        assert status(first) == 503
        second.sendall(b"a")
        assert answer(second) == str(PART)
        arrived(made, 0)


def test_one_that_still_comes_is_not_given_up_for_another(monkeypatch):
    monkeypatch.setattr(bodies_module, "STALLED", 3600.0)
    with told(together=HELD) as (made, address), unfinished(address) as first:
        arrived(made, HELD - 1)
        assert httpx.post(address, content=b"a" * PART).status_code == 503
        first.sendall(b"a")
        assert answer(first) == str(PART)


def test_what_is_being_parsed_is_counted_and_not_given_up(monkeypatch):
    monkeypatch.setattr(bodies_module, "STALLED", 0.0)
    with told(together=HELD) as (made, address), connection(address) as first:
        made.open.clear()
        first.sendall(head(PART) + b"a" * PART)
        arrived(made, HELD)
        assert httpx.post(address, content=b"a" * PART).status_code == 503
        made.open.set()
        assert answer(first) == str(PART)


def test_many_unfinished_bodies_hold_no_more_than_their_share(monkeypatch):
    """40 bodies of which the last byte does not come."""
    monkeypatch.setattr(bodies_module, "STALLED", 0.0)
    with told(together=4 * HELD) as (made, address), ExitStack() as stack:
        clients = [stack.enter_context(unfinished(address)) for _ in range(40)]
        until(lambda: made.begun == 40, "all of them")
        until(lambda: made.ended >= 36, "the end of most")
        assert made.bodies.held <= 4 * HELD
        assert httpx.post(address, content=b"a" * PART).text == str(PART)
        for client in clients:
            client.close()
        until(lambda: made.ended == made.begun, "the end of all")
        arrived(made, 0)

"""The addresses that a server takes before its model is loaded."""

import errno
import socket

import pytest

pytest.importorskip("uvicorn")

from gptoss.errors import Error
from gptoss.server import listen

BOTH = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
]


@pytest.fixture
def names(monkeypatch):
    """Both kinds of addresses for every name."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)


@pytest.mark.parametrize("where", ["socket", "bind"])
def test_a_machine_without_ipv6(names, monkeypatch, where):
    """As in many containers, where localhost has an address of that kind all the same."""

    class OnlyIPv4(socket.socket):
        def __init__(self, family=-1, *arguments, **options):
            if where == "socket" and family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

        def bind(self, address):
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", OnlyIPv4)
    (made,) = listen.bind("localhost", 0)
    assert made.getsockname()[0] == "127.0.0.1"
    made.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH[:1])
    with pytest.raises(Error, match="localhost, port 0: cannot be taken: (Cannot|Address family)"):
        listen.bind("localhost", 0)


def test_an_address_of_another_machine():
    with pytest.raises(Error, match="Cannot assign requested address"):
        listen.bind("203.0.113.7", 0)

"""Who may ask: keys, and where no key is asked for, only those who are not sent by a web page.

A browser sends requests for every page that its user visits, to this machine too. It says which
page (`Origin`), and by which name it found the server (`Host`). A page may have its own name point
here for a moment, so that the browser takes this server for the page's own: DNS rebinding, as in
CVE-2024-28224. So a name counts only where nobody but the user can have given it to the machine.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gptoss.errors import Error, shown
from gptoss.server.errors import ApiError

# The least and the most priority that clients may ask for: lower goes first.
PRIORITIES = {"any": (-1000, 1000), "lower": (0, 1000), "none": (0, 0)}
_KEY = re.compile(r"[\x21-\x7e]+")
# Names that are answered in a local network, by its own name server or by the machines themselves:
# no name server of the public does (RFC 6761, 6762, 8375, and ICANN's reservation of .internal;
# .lan, which many routers use, is not reserved, but nobody has it either).
_LOCAL = (".localhost", ".local", ".internal", ".home.arpa", ".lan")
_NO_NAME = re.compile(r"[\s/@*]")  # a URL, or a pattern
_JSON = re.compile(r"application/(?:[\w.!#$&^+-]+\+)?json", re.IGNORECASE)


def check_keys(keys: Iterable[object], name: str = "api_keys") -> None:
    """Raises Error where one of the keys cannot be a bearer token."""
    for key in keys:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            # Not shown: it may be most of a real one.
            found = "an empty one" if key == "" else "blanks or other characters in one"
            raise Error(f"{name}: expected a key of visible ASCII characters, found {found}")


def given_keys(options: Sequence[str], name: str) -> list[str]:
    """These keys, and the environment's. name: of the option. Raises Error for a bad one."""
    check_keys(options, name)
    own = os.environ.get("GPTOSS_API_KEY")
    if own is None:
        return list(options)
    if not own:
        raise Error(
            "GPTOSS_API_KEY: expected a key, found an empty one; unset it to serve without a key"
        )
    check_keys([own], "GPTOSS_API_KEY")
    return [*options, own]


def knows_key(request: Request, keys: Iterable[str]) -> bool:
    """Whether the request's bearer token is one of the keys; any request where there are none."""
    keys = list(keys)
    if not keys:
        return True
    kind, given = _authorization(request)
    # Digests of all are compared, each in constant time: how long it takes tells nothing, not even
    # how long a key is.
    mine = _digest(given)
    good = [hmac.compare_digest(mine, _digest(key)) for key in keys]
    return kind == "bearer" and any(good)


def check_key(request: Request, keys: Iterable[str]) -> None:
    """Raises ApiError unless `knows_key`."""
    if not knows_key(request, keys):
        raise ApiError(
            "Authorization: expected a bearer token that this server knows",
            401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def caller_of(request: Request, keyed: bool, address: str) -> str:
    """What tells clients apart: their keys, or else where they are. keyed: whether `check_key` has
    found the request's key to be one.
    """
    # Not the header: "bearer", "Bearer" and "BEARER" are one client. Nor the key, which is secret.
    return _digest(_authorization(request)[1])[:16].hex() if keyed else network_of(address)


def _authorization(request: Request) -> tuple[str, str]:
    """(the scheme, in lower case; what was given with it)."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower(), given


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Hosts:
    """Names that a server answers to. names: in lower case, "*" for all. local: also those that
    only a local network can give, and addresses.
    """

    names: frozenset[str]
    local: bool = False

    @classmethod
    def of(cls, address: str, allowed: Sequence[str], keyed: bool) -> Hosts | None:
        """Those of a server that listens on this address; None: whatever name a request has.

        allowed: names that were given for it. keyed: whether it asks for keys, which no page has.
        """
        for name in allowed:
            if name != "*" and (_NO_NAME.search(name) or not _host_of(name)):
                raise Error(f'--allowed-host: expected a name or "*", found {shown(name)}')
        names = frozenset(map(_host_of, allowed))
        if keyed:
            return cls(names) if names else None
        here = {"localhost", "127.0.0.1", "[::1]", _host_of(_bracketed(address))}
        if is_loopback(address):
            return cls(names | here)
        # Once: to ask a name server may take seconds, and would hold up everybody.
        own = {_host_of(socket.gethostname()), _host_of(socket.getfqdn())}
        return cls(names | here | own, local=True)

    def allow(self, authority: str) -> bool:
        """Whether a request that names this host, with or without a port, is answered."""
        host = _host_of(authority)
        if not host:
            return False
        if host in self.names or "*" in self.names:
            return True
        if not self.local:
            return False
        if _is_address(host):
            return True  # no name at all
        return "." not in host or host.endswith(_LOCAL)


def is_loopback(host: str) -> bool:
    """Whether a server on this address can be reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class OnlyFriends:
    """Middleware: refuses requests that name another host (403), come from another site's page
    (403), or bring a body that is not said to be JSON (415), before anything of them is read.

    Args:
        hosts: None: any. origins: of pages that may ask, "*" for all. keyed: whether a key is asked
            for; then browsers may send what they like.
        refused: is told of each, with the error.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts | None,
        origins: Sequence[str],
        keyed: bool,
        refused: Callable[[Request, ApiError], None],
        answer: Callable[[ApiError], ASGIApp],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(map(_origin, origins))
        self._keyed = keyed
        self._refused = refused
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                self._refused(Request(scope), error)
                await self._answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and not self._hosts.allow(host):
            raise ApiError(
                f"Host: expected a name of this server, found {shown(host)}; "
                "gptoss serve --allowed-host NAME allows one more",
                403,
            )
        if not self._keyed and self._hosts is not None:
            self._check_origin(scope, headers, host)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            _check_type(headers)

    def _check_origin(self, scope: Scope, headers: Headers, host: str) -> None:
        if "*" in self._origins:
            return
        origin = headers.get("origin")
        if origin is None:
            # Sent without it: images, scripts and the like of another page, and links to this one.
            site, mode = headers.get("sec-fetch-site", ""), headers.get("sec-fetch-mode", "")
            opens = scope["method"] in ("GET", "HEAD") and mode == "navigate"
            if site in ("cross-site", "same-site") and not opens:
                raise ApiError(
                    "Sec-Fetch-Site: expected same-origin or none, found a page of another site",
                    403,
                )
            return
        if origin.lower() in self._origins:
            return
        scheme, _, authority = origin.lower().partition("://")
        if authority and _with_port(authority, scheme) == _with_port(host.lower(), scheme):
            return
        raise ApiError(
            f"Origin: expected this server's own page, found {shown(origin)}; "
            "gptoss serve --origin URL allows another",
            403,
        )


def for_origins(origins: Sequence[str], id_header: str, told: Sequence[str]) -> list[Middleware]:
    """What lets web pages of these origins ask; nothing where there are none. told: headers of
    answers that they may read.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(map(_origin, origins)),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", id_header],
            expose_headers=list(told),
        )
    ]


def _origin(url: str) -> str:
    """As browsers write it."""
    return url.lower().rstrip("/")


def network_of(address: str) -> str:
    """What tells clients without keys apart: an address, of IPv6 the part that one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


def _check_type(headers: Headers) -> None:
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return  # no body, which the route will miss
    given = headers.get("content-type", "")
    if not _JSON.fullmatch(given.partition(";")[0].strip()):
        found = shown(given) if given else "none"
        raise ApiError(f"Content-Type: expected application/json, found {found}", 415)


def _host_of(authority: str) -> str:
    """The host of "host:port", in lower case."""
    host = authority.strip().lower()
    if host.startswith("["):
        inside, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return ""
        try:
            return f"[{ipaddress.ip_address(inside).compressed}]"
        except ValueError:
            return ""
    if host.count(":") > 1:  # an IPv6 address without brackets, as --host has it
        return _host_of(f"[{host}]")
    return host.partition(":")[0].rstrip(".")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _with_port(authority: str, scheme: str) -> tuple[str, str]:
    port = authority.rpartition(":")[2] if re.search(r":\d+$", authority) else ""
    return _host_of(authority), port or {"http": "80", "https": "443"}.get(scheme, "")

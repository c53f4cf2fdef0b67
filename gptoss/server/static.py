"""The chat page at `/`: a handful of files, and what a browser may do with them."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_FILES = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# A model's words are shown here. Even if showing them had a hole, nothing that they smuggle in
# would be run, loaded or sent: code and styles are this server's alone, and no string becomes HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """`/`, and the page's other files below `/page/`. They need no key: what they ask for does."""
    files = sorted(path for path in _FILES.iterdir() if path.suffix in _TYPES)
    return [_route("/" if path.name == "index.html" else f"/page/{path.name}", path)
            for path in files]  # fmt: skip


def _route(address: str, path: Path) -> Route:
    async def give(request: Request) -> Response:
        # Read anew each time, a few kilobytes: changes to the page show on reloading.
        return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=_HEADERS)

    return Route(address, give, methods=["GET"], include_in_schema=False)

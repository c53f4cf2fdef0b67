"""Bodies of requests: how large each may be, how long it may take, and how much of all is held."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from gptoss.server.errors import ApiError

SMALL = 1 << 16  # bytes of a body for which there is always room
STALLED = 1.0  # seconds without a byte, after which one makes room for others


class Bodies:
    """The bodies that a server holds while they come and until they are understood.

    Args:
        most: bytes of one. seconds: until it is complete. together: bytes of all, but for the
        first 64 KiB of each.

    Attributes:
        held: bytes that are counted now.
    """

    def __init__(self, most: int, seconds: float, together: int = 256 << 20) -> None:
        self._most, self._seconds, self._together = most, seconds, together
        self.held = 0
        self._arriving: OrderedDict[_Body, None] = OrderedDict()  # the latest to have grown last

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, held while the block runs.

        Raises ApiError where it is too large (413), takes too long (408), or where there is no room
        (503): one that has stalled goes first then.
        """
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._most:
            raise self._too_large()
        body = _Body(asyncio.get_running_loop().time())
        reading = asyncio.ensure_future(self._receive(request, body))
        body.reading = reading
        self._arriving[body] = None
        try:
            await asyncio.wait({reading}, timeout=self._seconds)
            if body.refused:
                raise self._no_room()
            if not reading.done():
                raise ApiError(f"body: expected it within {self._seconds:g} seconds", 408)
            self._arriving.pop(body, None)
            yield reading.result()
        finally:
            self._arriving.pop(body, None)
            self.held -= body.counted
            if not reading.done():
                reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _receive(self, request: Request, body: _Body) -> bytes:
        data = bytearray()
        try:
            async for part in request.stream():
                data += part
                if len(data) > self._most:
                    raise self._too_large()
                self._grow(body, len(data))
            return bytes(data)
        finally:
            data.clear()  # what was raised holds this frame for as long as it lives

    def _grow(self, body: _Body, size: int) -> None:
        body.grown = asyncio.get_running_loop().time()
        self._arriving.move_to_end(body)
        more = max(0, size - SMALL) - body.counted
        while self.held + more > self._together:
            first = next((other for other in self._arriving if other.counted), body)
            if first is body or body.grown - first.grown < STALLED:
                raise self._no_room()
            first.refuse()
            self.held -= first.counted
            first.counted = 0
            del self._arriving[first]
        self.held += more
        body.counted += more

    def _too_large(self) -> ApiError:
        return ApiError(f"body: expected at most {self._most} bytes", 413)

    def _no_room(self) -> ApiError:
        return ApiError(
            f"the bodies of requests that are being read have {self._together} bytes together, "
            "which is as many as may; come again",
            503,
            headers={"Retry-After": "1"},
        )


class _Body:
    """grown: when its last bytes came. counted: bytes of it that are counted."""

    def __init__(self, now: float) -> None:
        self.grown = now
        self.counted = 0
        self.refused = False
        self.reading: asyncio.Future[bytes] | None = None

    def refuse(self) -> None:
        self.refused = True
        if self.reading is not None:
            self.reading.cancel()

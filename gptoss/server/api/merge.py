"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Merged(Generic[_Item]):
    """Items of several streams in the order in which they come, each with its stream's place.

    To be iterated once, by one task. An error of one stream ends the iteration, after the items
    that came before it. However the iteration ends, no stream is read any further; stopping the
    streams themselves is up to their owner.
    """

    def __init__(self, streams: Sequence[AsyncIterable[_Item]]) -> None:
        self._streams = streams
        self._readers: list[asyncio.Task[None]] = []

    async def __aiter__(self) -> AsyncIterator[tuple[int, _Item]]:
        if len(self._streams) == 1:  # as in most requests: no task and no queue in between
            async for item in self._streams[0]:
                yield 0, item
            return
        arrived: asyncio.Queue[tuple[int, _Item] | Exception | None] = asyncio.Queue()
        for place, stream in enumerate(self._streams):
            reader = asyncio.create_task(_read(place, stream, arrived))
            reader.add_done_callback(lambda _: arrived.put_nowait(None))
            self._readers.append(reader)
        running = len(self._readers)
        try:
            while running:
                found = await arrived.get()
                if found is None:
                    running -= 1
                elif isinstance(found, Exception):
                    raise found
                else:
                    yield found
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the iteration, if it goes on; called on the loop's thread."""
        for reader in self._readers:
            reader.cancel()


async def _read(
    place: int,
    stream: AsyncIterable[_Item],
    arrived: asyncio.Queue[tuple[int, _Item] | Exception | None],
) -> None:
    try:
        async for item in stream:
            arrived.put_nowait((place, item))
    except Exception as error:
        arrived.put_nowait(error)

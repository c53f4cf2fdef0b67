"""Threads that read requests: small ones never wait for large ones."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gptoss.server.errors import too_many

SMALL = 1 << 16  # bytes of a body
_SMALL_THREADS = 8
_WAITING, _OF_ONE = 64, 16  # large requests that wait, of all clients and of one

_Result = TypeVar("_Result")


class Pools:
    """Two pools of threads. To read megabytes takes seconds: those have half the cores."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        self._small = ThreadPoolExecutor(_SMALL_THREADS, "gptoss-request")
        self._large = ThreadPoolExecutor(max(1, cores // 2), "gptoss-large-request")
        self._waiting: Counter[str] = Counter()

    async def run(self, client: str, size: int, work: Callable[[], _Result]) -> _Result:
        """What it returns. size: bytes of the request. Raises ApiError (429) where too many large
        ones wait.
        """
        loop = asyncio.get_running_loop()
        if size <= SMALL:
            return await loop.run_in_executor(self._small, work)
        if self._waiting[client] >= _OF_ONE or self._waiting.total() >= _WAITING:
            raise too_many(
                f"{self._waiting.total()} large requests wait to be read, "
                f"{self._waiting[client]} of them yours"
            )
        self._waiting[client] += 1
        try:
            return await loop.run_in_executor(self._large, work)
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
